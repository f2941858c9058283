"""Hostile input from a generator: configurations, records, tensors, tokenizers, templates, rows and settings, changed at random.

`scripts/fuzz SECONDS` searches for longer.
"""

import pytest

from tests.support import fuzz

SECONDS = 15
"""So long it searches here; a search by hand begins elsewhere every time."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("fuzz") / "home"
    fuzz.make(home)
    return home


def test_no_input_ends_in_a_traceback_a_hang_or_gigabytes(home, tmp_path):
    found, ends = fuzz.search(home, tmp_path, SECONDS)
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
