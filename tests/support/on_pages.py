"""The commands that pages show: those of every fenced block that is not of another language, in the order of the page."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.parent != ROOT / "docs" / "reference"  # made of the code when the site is built
}

OTHERS = ("python", "json", "toml", "yaml", "nginx", "dockerfile")
"""Languages in which no shell is spoken. A container's entry point is read by tests/serve/test_guide.py."""

_BLOCK = re.compile(r"^( *)(`{3,})([^\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|(?<=[\s/|(;&]))(?P<inlay>inlay) ")
_INSTALLED = re.compile(r"\b(pip|uv|pipx|uvx|tool) [\w -]*install\b")

_NONE = ("#", "error:", "found:", "hint:")
"""What begins a line that is no command: a remark, or what an error says."""


class Shown(NamedTuple):
    """A command on a page."""

    arguments: list[str]
    before: str
    """What stands before it in its line: what it reads, or what starts it."""
    error: str
    """The first line that it is shown to print, where that is an error."""


def commands(text):
    """Those that a page shows."""
    return [command for block in _BLOCK.finditer(text) if block[3] not in OTHERS for command in _of_block(block[4])]


def _of_block(block):
    """In a transcript, whose lines begin with `$`, the others are what was printed; it proposes a command where it says `try it`."""
    lines = [line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    is_transcript = any(line.startswith("$ ") for line in lines)
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        typed = re.match(r"(?:\$ |try it +)(.*)" if is_transcript else "(.*)", line)
        if not typed or line.startswith(_NONE) or _INSTALLED.search(line):
            continue
        error = following.removeprefix("error: ") if following.startswith("error: ") else ""
        found = [*_COMMAND.finditer(typed[1])]
        for i, one in enumerate(found):
            before, behind = typed[1][: one.start("inlay")], typed[1][one.end() :]
            behind = behind.partition(")")[0] if before.endswith("$(") else behind
            yield Shown(_words(behind), before, error if i + 1 == len(found) else "")


def _words(text):
    """The arguments that a command's shell hands over: up to what ends a command, without a remark."""
    shell = shlex.shlex(text, posix=True, punctuation_chars=">|;&")
    shell.whitespace_split, words = True, []
    for word in shell:
        if set(word) <= set(">|;&"):
            break
        words.append(word)
    return words
