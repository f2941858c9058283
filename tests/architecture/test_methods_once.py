"""No method is written twice: no two files of `methods/` share six lines of logic, and none is above 200 lines."""

import ast
import itertools
from pathlib import Path

import pytest

METHODS = Path(__file__).parents[2] / "src" / "inlay" / "methods"
MOST_LINES, MOST_SHARED = 200, 5


def logic(source):
    """The lines of the bodies of a file's functions, each body by itself: no signatures, docstrings, settings or imports."""
    bodies = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[ast.get_docstring(node) is not None :]
            bodies.append("\n".join(ast.unparse(statement) for statement in body).splitlines())
    return bodies


def longest_shared(one, other):
    """The longest run of lines that two files have in common."""
    best = []
    for left, right in itertools.product(logic(one), logic(other)):
        for i, j in itertools.product(range(len(left)), range(len(right))):
            length = 0
            while left[i + length : i + length + 1] == right[j + length : j + length + 1] != []:
                length += 1
            best = max(best, left[i : i + length], key=len)
    return best


def test_no_two_methods_share_six_lines():
    files = {path.stem: path.read_text("utf-8") for path in METHODS.glob("*.py")}
    for one, other in itertools.combinations(sorted(files), 2):
        shared = longest_shared(files[one], files[other])
        assert len(shared) <= MOST_SHARED, f"{one} and {other}: {shared}"


def test_no_method_is_above_two_hundred_lines():
    for path in METHODS.glob("*.py"):
        if path.stem != "contract":
            assert path.read_text("utf-8").count("\n") <= MOST_LINES, path.name


@pytest.mark.parametrize("lines", [5, 6])
def test_a_planted_copy_is_found(lines):
    body = "\n".join(f"    x{i} = {i}" for i in range(lines))
    assert len(longest_shared(f"def f():\n    y = 0\n{body}", f"def g():\n{body}\n    return 1")) == lines
