"""A folder as somebody has it who has trained a little: base, rows.jsonl, and the adapters one and two."""

from inlay.cli import main
from tests.support import bases


def trained(home, number=20):
    """Make it, with so many rows."""
    bases.directory(home / "base")
    bases.jsonl(home / "rows.jsonl", bases.rows(number))
    for name, steps in (("one", 2), ("two", 3)):
        given = ["train", home / "base", home / "rows.jsonl", "--output", home / name, "--r", 2, "--max-steps", steps]
        assert main([str(argument) for argument in given]) == 0
    return home
