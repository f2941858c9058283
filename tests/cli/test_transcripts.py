"""What README and guides show of a training has the lines that a training prints now, in their order."""

import re
from pathlib import Path

import pytest

from inlay.cli.demo import BASE
from tests.support import bases
from tests.support.command import run

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/start/quickstart.md", "docs/guides/fine-tune.md", "docs/guides/quantize.md")
DEPENDS = {"note", "check", "task", "scores"}
"""Lines that some runs have."""


def labels(lines):
    """What stands in the first ten columns, without what continues a line, each once."""
    return [*dict.fromkeys(line[:10].strip() for line in lines if line[:1].isalpha())]


def shown(page):
    """The lines of each training that a page shows."""
    blocks = re.findall(
        r"\n\$ inlay train (?![^\n]*--show-tokens)[^\n]*\n(base .*?)\n(?:```|\$ )",
        (ROOT / page).read_text("utf-8"),
        re.DOTALL,
    )
    return [block.splitlines() for block in blocks]


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    made = tmp_path_factory.mktemp("printed")
    return made, ["train", BASE, bases.jsonl(made / "rows.jsonl", bases.rows(60)), "--max-steps", 2, "--output"]


def test_trainings_are_shown_as_they_are_printed(printed, capsys):
    made, command = printed
    status, _, err = run(capsys, *command, made / "mine")
    assert status == 0, err
    wanted = [label for label in labels(err.splitlines()) if label not in DEPENDS]
    found = {page: [labels(lines) for lines in shown(page)] for page in PAGES}
    assert all(found.values()), "each page shows one"
    assert {
        page: [[label for label in one if label not in DEPENDS] for one in each] for page, each in found.items()
    } == {page: [wanted] * len(each) for page, each in found.items()}


def test_a_line_that_is_missing_would_be_seen():
    lines = ["base      a", "          b", "steps     1", "needs     1 GB", "..."]
    assert labels(lines) == ["base", "steps", "needs"]
    assert labels(lines[:3]) != labels(lines)
