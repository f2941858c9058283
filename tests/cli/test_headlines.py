"""docs/troubleshooting.md: each error of the page is one that the code prints, word for word."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"


def headlines(page: str) -> list[str]:
    """The errors that a page speaks of: its headings in code."""
    return re.findall(r"^### `([^`]+)`", page, re.MULTILINE)


def texts(tree: ast.AST) -> Iterator[str]:
    """Patterns of the texts of a module: what is filled in may be anything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.escape(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = [re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in node.values]
            if sum(len(part) for part in parts if part != ".+") > 12:  # else it would fit whatever is said
                yield "".join(parts)


def unsaid(page: str, modules: Iterable[str]) -> list[str]:
    """The errors of a page that no module prints."""
    found = re.compile("|".join(dict.fromkeys(text for module in modules for text in texts(ast.parse(module)))))
    return [headline for headline in headlines(page) if not found.fullmatch(headline)]


def test_every_error_of_the_page_is_one():
    page = PAGE.read_text("utf-8")
    assert len(headlines(page)) >= 20
    assert unsaid(page, [path.read_text("utf-8") for path in (ROOT / "src" / "inlay").rglob("*.py")]) == []


@pytest.mark.parametrize("text", ['f"{name} was trained on another base"', '"it was trained on another base"'])
def test_an_error_with_a_name_in_it_is_found(text):
    assert unsaid("### `it was trained on another base` { #other }", [f"x = {text}"]) == []


def test_an_error_that_nobody_prints_is_found():
    assert unsaid("### `out of memory`\n\n### `no memory`", ["x = 'out of memory'"]) == ["no memory"]
