"""Hostile rows at the gate: no time beyond their length, no traceback, nothing on the terminal but letters."""

import json
import time

import pytest

from inlay.data import forms
from inlay.gate import texts, turns
from inlay.gate.near import Near
from tests.support import bases
from tests.support.command import run

LONG = 1 << 20
HOSTILE = {
    "letters before a sign": "a" * LONG + "@",
    "signs": "a@" * (LONG // 2),
    "domains without end": "a@" + "b-" * (LONG // 2),
    "domains of dots": "a@" + "b." * (LONG // 2),
    "digits": "1" * LONG,
    "digits in groups": "1111 " * (LONG // 5),
    "digits with signs": "+1 11-" * (LONG // 6),
    "brackets": "(111) " * (LONG // 6),
    "letters of a wrong decoding": "\u00c3" * LONG,
    "control characters": "\x07" * LONG,
    "blanks": " " * LONG,
    "one letter": "a" * LONG,
}
MAX_SECONDS = 10.0
"""For a megabyte, on a machine that does other things too; what is quadratic takes hours."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_long_row_takes_no_longer_than_its_length(kind):
    start = time.perf_counter()
    texts.faults([HOSTILE[kind], "short"])
    near = Near()
    near.add([HOSTILE[kind]] * 3)
    near.pairs()
    assert time.perf_counter() - start < MAX_SECONDS


def test_a_talk_without_end_takes_no_longer_than_its_length():
    row = forms.read_rows(
        [{"messages": [{"role": role, "content": "x"} for _ in range(50_000) for role in ("user", "assistant")]}]
    )[0]
    start = time.perf_counter()
    assert not turns.are_odd(row)
    assert time.perf_counter() - start < MAX_SECONDS


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return bases.directory(tmp_path_factory.mktemp("gate") / "base")


GOOD = json.dumps({"prompt": "say 1", "completion": "it is 1"}).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01\x02\xff" * 1000,
        b"\x1f\x8b" + b"x" * 100,
        GOOD + b"\xff\n",
        GOOD + b'{"prompt": "a"',
        GOOD + b'{"prompt": "a", "prompt": "b", "completion": "c"}\n',
        GOOD + b'{"a":' * 100_000,
        GOOD + b'{"prompt": ' + b"[" * 100_000,
        b'{"prompt": 1e999999, "completion": "x"}\n',
    ],
)
@pytest.mark.parametrize("verb", ["check", "show"])
def test_what_is_no_data_is_refused(base, tmp_path, capsys, content, verb):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    status, out, err = run(capsys, "data", verb, path, "--model", base)
    assert "Traceback" not in err
    assert "fault of its own" not in err
    if verb == "check" or not content.startswith(GOOD):
        assert status == 1 or "can't be trained on" in out


@pytest.mark.parametrize("verb", ["check", "show"])
def test_rows_control_no_terminal(base, tmp_path, capsys, verb):
    evil = "\x1b]0;owned\x07"
    rows = [
        {"prompt": evil, "completion": f"x{evil}", evil * 100: 1},
        {"messages": [{"role": evil, "content": "x"}]},
        {evil: 1},
    ]
    path = bases.jsonl(tmp_path / "rows.jsonl", rows)
    status, out, err = run(capsys, "data", verb, path, "--model", base)
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    assert len(out + err) < 5000, "names of columns are cut"
    assert status in (0, 1)


def test_a_copy_that_fails_leaves_nothing(base, tmp_path, capsys, monkeypatch):
    path = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(30))
    monkeypatch.setattr("inlay.gate.stream._readable", lambda value: 1 / 0)
    status, _, err = run(capsys, "data", "check", path, "--model", base, "--fix", tmp_path / "out.jsonl")
    assert status == 1, err
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]
