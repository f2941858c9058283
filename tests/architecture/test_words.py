"""Words that do not stay in a tree: a TODO of nobody in particular, a path of one machine's temporary folder."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READ = ("src", "docs", "scripts", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples", "benchmarks")
UNREAD = (".safetensors", ".png", "demo_base/tokenizer.json")

TODO = re.compile(r"\b(?:TODO|FIXME|XXX)\b(?!\([a-z][\w-]*, \d{4}-\d\d-\d\d\))")
"""A marker that is not of the form TODO(name, 2026-01-31)."""

TEMPORARY = re.compile(r"(?<![\w.$}])/(?:tmp|var/folders)/\w")


def strange_words(text):
    """Each marker without a name and a date, and each path into a temporary folder, with its line."""
    return [
        f"{number}: {match.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in (TODO, TEMPORARY)
        for match in pattern.finditer(line)
    ]


def test_every_todo_has_a_name_and_a_date_and_no_path_is_temporary():
    command = ["git", "ls-files", "--", *READ]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [name for name in listed if (ROOT / name).is_file() and not name.endswith(UNREAD)]
    assert any(name.startswith("src/") for name in names), "nothing was read"
    found = {name: strange_words((ROOT / name).read_text("utf-8")) for name in names}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("text", ["x = 1  # TODO: later", "# TODO(ann): later", "# FIXME", 'open("/tmp/a")'])
def test_a_planted_word_is_found(text):
    assert len(strange_words(f"a line\n{text}\n")) == 1


@pytest.mark.parametrize("text", ["# TODO(ann, 2026-01-31): later", "TODOS", "$HOME/tmp/a", "tests/tmp/a"])
def test_other_words_are_left_alone(text):
    assert strange_words(text) == []
