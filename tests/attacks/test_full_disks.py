"""A disk that is full in the middle of each command that writes: an error that says so, nothing half-written, nothing lost."""

import hashlib
import warnings

import pytest

import inlay
from inlay.cli import main
from inlay.formats.peft import TENSORS
from inlay.io import output
from tests.support import disks, homes
from tests.support.command import run

PAGE = 4096

COMMANDS = {
    "train": "train base rows.jsonl --output small/new --max-steps 2",
    "quantize": "quantize base --scheme int8 --output small/new",
    "merge": "merge base one --output small/new",
    "merge --gguf": "merge base one --gguf f16 --output small/new.gguf",
    "combine": "combine one two --how cat --output small/new",
    "extract": "extract base merged --r 2 --output small/new",
    "convert": "convert base one --output small/new --r 2",
    "export to peft": "export base one --for peft --output small/new",
    "export to mlx": "export base one --for mlx --output small/new",
    "export to llama.cpp": "export base one --for llama.cpp --output small/new",
    "diff --plot": "diff one two --plot small/new.png",
    "store add": "store add one --tag name@1",
    "data check --fix": "data check rows.jsonl --model base --fix small/new.jsonl",
}
"""What is typed for each."""


GOES_ON = ".new.quantizing/"
"""Where the quantisation of a base lies that goes on once there is room."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = homes.trained(tmp_path_factory.mktemp("made"), 30)
    assert (
        main([str(argument) for argument in ("merge", made / "base", made / "one", "--output", made / "merged")]) == 0
    )
    return made


def contents(root):
    """Every file beside the small disk, with what is in it."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("pages", [1, 3, 6])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_said_and_leaves_nothing(made, tmp_path, capsys, monkeypatch, command, pages):
    monkeypatch.setattr(output, "check_space", lambda path, num_bytes: None)  # the disk fills while it is written to
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "small" / "store"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "small"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(made)
    before = contents(made)
    typed = COMMANDS[command].replace("small/", f"{tmp_path}/small/").split()
    with disks.small(tmp_path / "small", pages * PAGE) as small:
        status, _, err = run(capsys, *typed)
        if status == 0:
            assert pages * PAGE > sum(path.stat().st_size for path in small.rglob("*") if path.is_file()) > 0
        else:
            assert (status, "the disk is full" in err, "please report" in err) == (1, True, False), err
            left = [str(path.relative_to(small)) for path in small.rglob("*") if path.is_file()]
            assert [name for name in left if not name.startswith(GOES_ON)] == []
    monkeypatch.undo()
    assert contents(made) == before


def test_a_full_disk_for_record_page_and_state_costs_warnings_and_not_the_adapter(made, tmp_path, monkeypatch):
    """All that a run writes but its adapter lies on a disk that has room for the adapter alone."""
    monkeypatch.setattr(output, "check_space", lambda path, num_bytes: None)
    rows, base = made / "rows.jsonl", inlay.load(made / "base")
    how = dict(method=inlay.Lora(r=2), max_steps=4, save_every=1, progress=False)
    inlay.train(base, rows, output=tmp_path / "whole", **how)
    pages = sum(-(-path.stat().st_size // PAGE) for path in (tmp_path / "whole").iterdir())
    with disks.small(tmp_path / "small", (pages + 4) * PAGE) as small, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        monkeypatch.setenv("INLAY_RUNS", str(small / "runs.sqlite"))
        inlay.train(base, rows, output=small / "mine", **how)
        assert (small / "mine" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    texts = " ".join(str(one.message) for one in said)
    assert "the record of runs is not written" in texts
    assert "was not kept: the disk is full" in texts
