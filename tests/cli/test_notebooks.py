"""The notebooks run from their first cell to their last, and print what is stored beside their cells.

INLAY_WRITE_PAGES=1 scripts/test tests/cli/test_notebooks.py      stores what they print now
"""

import os
import re
from pathlib import Path

import pytest

from tests.support import notebooks, pages

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_says(path, tmp_path):
    status, printed, err = notebooks.run(path, tmp_path)
    assert status == 0, err
    notebook = notebooks.read(path)
    if os.environ.get(pages.SWITCH):
        notebooks.write(path, notebook, printed)
    assert printed == notebooks.stored(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_form_of_one_and_says_what_it_shows(path):
    notebook = notebooks.read(path)
    assert notebooks.faults(notebook) == []
    assert sum(map(bool, notebooks.stored(notebook))) >= 4, "most cells have a result that is compared"


def test_the_page_names_every_notebook():
    page = (ROOT / "docs" / "start" / "notebooks.md").read_text("utf-8")
    assert sorted(re.findall(r"`examples/(\w+\.ipynb)`", page)) == [path.name for path in NOTEBOOKS]
    assert len(NOTEBOOKS) == 3


def made(*sources, **more):
    """A notebook of these code cells."""
    blank = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    cells = [{**blank, "id": f"code-{number}", "source": [source]} for number, source in enumerate(sources)]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | more


def planted(tmp_path, *sources):
    """What comes of a notebook of these cells."""
    path = tmp_path / "planted.ipynb"
    notebooks.write(path, notebook := made(*sources), ["" for _ in notebook["cells"]])
    return notebooks.run(path, tmp_path)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("assert 1 + 1 == 3", "code cell 2"),
        ("import warnings\nwarnings.warn('old')", "UserWarning: old"),
        ("class Mute:\n    _repr_html_ = lambda self: ''\nMute()", "it shows something"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
    ],
)
def test_a_cell_that_fails_fails_the_notebook(tmp_path, bad, said):
    status, printed, err = planted(tmp_path, "print('first')", bad, "print('never')")
    assert (status, printed) == (1, ["first\n"])
    assert said in err


def test_a_server_that_a_cell_leaves_behind_is_ended(tmp_path):
    sleeps = "import subprocess, sys\nleft = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)"
    status, printed, _ = planted(tmp_path, f"{sleeps}\nprint(left.pid)", "x = left.pid\nx")
    assert status == 0
    assert not Path("/proc", printed[0].strip()).exists()


def test_another_result_and_a_broken_form_are_found(tmp_path):
    path, notebook = tmp_path / "a.ipynb", made("print(2)", "print(3)")
    notebooks.write(path, notebook, ["2\n", ""])
    _, printed, _ = notebooks.run(path, tmp_path)
    assert printed == ["2\n", "3\n"] != notebooks.stored(notebooks.read(path)) == ["2\n", ""]
    assert notebooks.faults(notebook) == []
    notebook["cells"][0]["id"] = notebook["cells"][1]["id"] = "a b"
    notebook["cells"][0]["outputs"] = [{"output_type": "display_data", "data": {}}]
    assert notebooks.faults(notebook | {"nbformat_minor": 4}) == ["version", "ids", "outputs"]
