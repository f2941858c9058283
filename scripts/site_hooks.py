"""What mkdocs does to a page on its way into HTML: blocks of code are named for what they are, words of code break
where a reader would break them, and the search prefers pages that say what to do.

A block without a language that begins with `$ ` is a transcript: `console` tells commands from what was printed, and the button
beside it copies the commands alone. One that begins with a command is `bash`.
"""

import re
from typing import Any

BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
"""A block with or without a language: both are matched, so that the end of one is not taken for the beginning of another."""

COMMANDS = ("inlay", "pip", "python", "scripts/", "curl", "docker", "sqlite3", "INLAY_WRITE_PAGES=1", "torchrun", "uv")

INLINE = re.compile(r"(?<!</span>)<code>([^<\n]+)</code>")
"""Code within a line: a block has spans or ends of lines."""

LINE = re.compile(r'<span id="__line-[\d-]+">')
"""A line of a block: several blocks of the reference would have the same anchors."""

PAGE = re.compile(r"<code>docs/([a-z/-]+\.md)</code>")
"""A page as a docstring names it."""

WORD = re.compile(r"(?:[^\s&]|&\w+;)+")
"""A word of code."""

SHORT, SHORT_FLAG = 16, 20
"""Letters of a word, and of a flag, that fits into a column on a phone: its dashes are no places to break it."""

JOINT = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[_./=(,:])(?=\w)")
"""Where a longer word may be broken."""

CELL = re.compile(r"<td>(?=[^<]{24})")
"""A cell of a table that holds a sentence."""

BOOSTS = {
    "start/install.md": 1.5,
    "guides/data.md": 1.2,
    "index.md": 0.3,
    "reference/commands.md": 0.3,
    "reference/python.md": 0.3,
    "reference/models.md": 0.3,
    "reference/method-": 0.3,
    "reference/": 0.1,
    "decisions/": 0.02,
    "architecture.md": 0.1,
    "releases.md": 0.1,
}
"""How much the search thinks of pages, by what their paths begin with, the first that fits. Those that say how Inlay is made,
or list all that there is, have most words of a question somewhere, and few answers.
"""


def language(text: str) -> str:
    """What a block without a language holds."""
    if text.startswith("$ "):
        return "console"
    return "bash" if text.startswith(COMMANDS) else "text"


def named(markdown: str) -> str:
    """A page whose blocks without a language have one."""
    return BLOCK.sub(lambda match: f"```{match[1] or language(match[2])}\n{match[2]}```", markdown)


def readable(html: str) -> str:
    """A page whose words of code break where a reader would break them, and whose long cells are known."""
    html = INLINE.sub(lambda match: f"<code>{WORD.sub(_word, match[1])}</code>", html)
    return CELL.sub('<td class="long">', LINE.sub('<span class="line">', html))


def _word(match: re.Match[str]) -> str:
    text = match[0].replace("\\|", "|")  # in a table, where a bar has to be written so
    is_short = len(text) <= (SHORT_FLAG if text.startswith("--") else SHORT)
    return f'<span class="whole">{text}</span>' if is_short else JOINT.sub("<wbr>", text)


def boost(path: str) -> float:
    """How much the search thinks of a page."""
    return next((by for start, by in BOOSTS.items() if path.startswith(start)), 1.0)


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Called by mkdocs for each page."""
    page.meta.setdefault("search", {})["boost"] = boost(page.file.src_uri)
    return named(markdown)


def on_page_content(html: str, page: Any, files: Any, **_: object) -> str:
    """Called by mkdocs for each page that is HTML."""

    def link(match: re.Match[str]) -> str:
        return f'<a href="{files.get_file_from_path(match[1]).url_relative_to(page.file)}">{match[0]}</a>'

    return readable(PAGE.sub(link, html))
