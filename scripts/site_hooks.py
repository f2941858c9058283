"""What mkdocs does to a page before it makes HTML of it: blocks of code are named for what they are.

A block without a language that begins with `$ ` is a transcript: `console` tells commands from what was printed, and the button
beside it copies the commands alone. One that begins with a command is `bash`.
"""

import re

BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
"""A block with or without a language: both are matched, so that the end of one is not taken for the beginning of another."""

COMMANDS = ("inlay", "pip", "python", "scripts/", "curl", "docker", "sqlite3", "INLAY_WRITE_PAGES=1", "torchrun", "uv")


def language(text: str) -> str:
    """What a block without a language holds."""
    if text.startswith("$ "):
        return "console"
    return "bash" if text.startswith(COMMANDS) else "text"


def named(markdown: str) -> str:
    """A page whose blocks without a language have one."""
    return BLOCK.sub(lambda match: f"```{match[1] or language(match[2])}\n{match[2]}```", markdown)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by mkdocs for each page."""
    return named(markdown)
