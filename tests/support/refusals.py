"""Commands that have to fail, and how: a clear message, the right status, nothing left behind."""

from pathlib import Path

from tests.support.command import run


def refused(capsys, *arguments, says, status=1):
    """The command fails with this status, says what is asked for without a traceback, and leaves no new file."""
    folder = next(Path(a).parent for a in arguments if isinstance(a, Path))
    before = sorted(folder.rglob("*"))
    ended, out, err = run(capsys, *arguments)
    assert ended == status, err
    assert status == 2 or "error: " in err, err
    assert "Traceback" not in err
    for text in says:
        assert text in err, err
    assert sorted(folder.rglob("*")) == before
    return out, err


def train(place, *extra, model="base", rows="rows.jsonl", out="new"):
    return ["train", place / model, place / rows, "--output", place / out, "--max-steps", 3, "--r", 2, *extra]


def generate(place, adapter, *extra, model="base"):
    return ["generate", place / model, "--adapter", place / adapter, "--prompt", "say 3", "--max-new-tokens", 2, *extra]
