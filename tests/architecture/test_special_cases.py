"""Special cases have homes: what knows of one is listed here, and nothing else names it."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "inlay"

HOMES = {
    "experts": {
        "modules/experts.py": "what they are, and how they compute",
        "modules/maps.py": "they are among the maps of a model",
        "methods/contract.py": "the name of their kind, and which methods may adapt it",
        "io/counts.py": "the end of a name in configurations of models",
    },
    "transposed": {
        "modules/frozen.py": "frozen layers of both kinds",
        "modules/linear.py": "the one face of them",
        "modules/experts.py": "an attribute of transformers",
    },
    "token_rows": {
        "methods/contract.py": "the name of the tensor",
        "layout/layout.py": "of which module it is",
    },
}
"""What names a special case -> the files that may, and why."""

KINDS = {"LinearMethod", "LowRankMethod", "BlockMethod", "PromptMethod"}
ASKING = {
    "methods/contract.py": "by_kind, which answers for everyone",
}
"""The files that ask which kind a method is, and why."""


def naming(source, word):
    """The files that name a special case."""
    return {_name(source, path) for path in source.rglob("*.py") if re.search(word, path.read_text("utf-8"))}


def asking(source):
    """The files that ask with isinstance or issubclass which kind a method is, at least once outside a class of that kind."""
    return {_name(source, path) for path in source.rglob("*.py") if any(map(_asks, ast.walk(_tree(path))))}


def _name(source, path):
    return path.relative_to(source).as_posix()


def _tree(path):
    return ast.parse(path.read_text("utf-8"))


def _asks(node):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        return any(getattr(n, "id", getattr(n, "attr", None)) in KINDS for n in ast.walk(node.args[1]))
    if isinstance(node, ast.MatchClass):
        return any(getattr(n, "id", getattr(n, "attr", None)) in KINDS for n in ast.walk(node.cls))
    return False


@pytest.mark.parametrize("word", HOMES)
def test_a_special_case_is_named_in_its_homes_alone(word):
    assert naming(SOURCE, word) == set(HOMES[word])


def test_which_kind_a_method_is_is_asked_in_few_places():
    assert asking(SOURCE) == set(ASKING)


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(method, LinearMethod)",
        "isinstance(method, contract.BlockMethod | int)",
        "issubclass(kind, (PromptMethod, str))",
        "match method:\n    case contract.LowRankMethod():\n        pass",
    ],
)
def test_a_question_that_is_planted_is_found(tmp_path, line):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "planted.py").write_text(f"{line}\n")
    assert asking(tmp_path) == {"model/planted.py"}


def test_a_name_that_is_planted_is_found(tmp_path):
    (tmp_path / "planted.py").write_text("kind = 'experts'\n")
    assert naming(tmp_path, "experts") == {"planted.py"}
    assert not naming(tmp_path, "transposed")
