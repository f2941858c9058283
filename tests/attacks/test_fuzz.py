"""Hostile input from a generator: configurations, records, tensors, tokenizers, templates, rows and settings, changed at random; and
rows of every layout, of which nothing may be lost.

`scripts/fuzz SECONDS` searches for longer.
"""

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inlay.data import forms, messages
from inlay.tasks import causal_lm
from inlay.text import pieces
from tests.support import conserved, fuzz

SECONDS = [5, pytest.param(60, marks=pytest.mark.slow)]
"""So long it searches here, from the same seed each time; a search by hand begins elsewhere."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("fuzz") / "home"
    fuzz.make(home)
    return home


@pytest.mark.parametrize("seconds", SECONDS)
def test_no_input_ends_in_a_traceback_a_hang_or_gigabytes(home, tmp_path, seconds):
    found, ends = fuzz.search(home, tmp_path, seconds)
    assert not found, "\n".join(found)
    assert ends


PLANTED = {
    "unforeseen: Inlay failed": "from inlay.io import json_files; json_files.read_json = lambda path, limit=0: 1 / 0",
    "no end": "import inlay.cli; inlay.cli.main = lambda arguments: __import__('time').sleep(99)",
    "GB of memory": "import inlay.cli; inlay.cli.main = lambda arguments: len(bytes(range(256)) * 400_000) * 0",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(home, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(fuzz, "SECONDS", 2 if fault == "no end" else fuzz.SECONDS)
    monkeypatch.setattr(fuzz, "MEMORY", 50_000_000 if fault == "GB of memory" else fuzz.MEMORY)
    worker = fuzz.Worker(PLANTED[fault])
    try:
        _, arguments = fuzz.case(home, tmp_path / "case", 0)
        assert fault in fuzz.problem(*worker.run(arguments))
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [
        ((0, "", 1, 0), ""),
        ((1, "error: no such file", 1, 0), ""),
        ((2, "usage", 1, 0), ""),
        ((1, "Traceback (most recent call last):", 1, 0), "a traceback"),
        ((1, "", 1, 0), "no word"),
        ((99, "", 1, 0), "status 99"),
        ((None, "", 60, 0), "no end"),
        ((1, "error: a", 1, 3 * 10**9), "3.0 GB"),
        ((1, "error: the library x failed on what it was given", 1, 0), "unforeseen"),
    ],
)
def test_what_is_wrong_with_an_end_is_told(ended, wrong):
    found = fuzz.problem(*ended)
    assert found.startswith(wrong) if wrong else not found


def test_a_case_is_that_of_its_seed(home, tmp_path):
    for seed in range(22):
        first = fuzz.case(home, tmp_path / "case", seed)
        small = [path for path in (tmp_path / "case").rglob("*") if path.is_file() and path.stat().st_size < 10**7]
        files = {path: path.read_bytes() for path in small}
        assert fuzz.case(home, tmp_path / "case", seed) == first
        assert all(path.read_bytes() == content for path, content in files.items())


def test_no_row_loses_what_it_says():
    found, num_tried, num_refused = conserved.search(60, number=500)
    assert not found, "\n".join(found)
    assert num_tried == 500
    assert 100 < num_refused < 300  # most templates have no tools, many no system


def last_left_out(function):
    """A function that gives all but the last of what it is given first."""
    return lambda values, *rest: function(values[:-1] if isinstance(values, list) else values, *rest)


def only_the_last_answer(function):
    def begun(*values, **named):
        end = function(*values, **named)
        return lambda: [dataclasses.replace(draft, spans=draft.spans[-1:]) for draft in end()]

    return begun


FORGETFUL = {
    "the column": (forms, "unused_of", lambda function: lambda keys: []),
    "a content of turn": (messages, "_text", last_left_out),
    "a schema of the tools": (messages, "schemas", last_left_out),
    "a content of the system": (forms, "_system", lambda function: lambda columns: function(columns) and ""),
    "a part that is no text": (messages, "_part", lambda function: lambda part: part.get("text", "") if isinstance(part, dict) else part),
    "an unknown key in a message": (messages, "_check_keys", lambda function: lambda given: None),
    "a call of turn": (messages, "_calls", last_left_out),
    "a reasoning of turn": (pieces.Said, "faults", lambda function: lambda *self: []),
    "is learned, and is no answer": (messages, "_flag", lambda function: lambda given, role: None),
    "is learned 0 times": (causal_lm, "begun", only_the_last_answer),
}  # fmt: skip
"""What is found -> the function that forgets something, and how it does."""


@pytest.mark.parametrize("fault", FORGETFUL)
def test_a_row_that_loses_something_is_found(monkeypatch, fault):
    owner, name, forget = FORGETFUL[fault]
    monkeypatch.setattr(owner, name, forget(getattr(owner, name)))
    searches = (conserved.search(60, seed, number=40)[0] for seed in range(0, 400, 40))
    assert any(fault in text.splitlines()[0] for found in searches for text in found)


@pytest.mark.slow
def test_a_search_by_hand_begins_at_once_and_says_what_it_tried():
    command = [sys.executable, "-m", "tests.support.fuzz", "8", "5"]
    waits = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}  # a person's terminal, which never ends
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **waits) as search:
        late = threading.Timer(120, search.kill)
        late.start()
        out = "".join(iter(search.stdout.readline, ""))
        late.cancel()
        search.stdin.close()
    assert search.returncode == 0, out
    assert out.startswith("from seed 5 on, for 8 s")
    assert "prepared: " in out
    assert out.endswith("cases, 0 findings\n")
