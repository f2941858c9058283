"""Who may import whom: parsed from the source, so that nothing has to be imported to know."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "inlay"

LAYERS = [
    {"cli"},
    {"training", "serve"},
    {"hub"},
    {"combine"},
    {"model"},
    {"io"},
    {"text", "methods", "quant"},
    {"core", "kernels"},
    {"errors"},
]
"""Top to bottom. A module imports its own folder or a lower layer: never up, never sideways."""

HEIGHT = {name: len(LAYERS) - i for i, layer in enumerate(LAYERS) for name in layer}
ALONE = {"methods", "quant"}
"""Folders whose files know only their _contract."""


def imported(path):
    """The names that a file imports, at any depth of its code, as (line, dotted name or None for a relative import)."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, None
            else:  # `from inlay.io import peft` imports a module, `from inlay.io.peft import read` a name in one
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(source):
    """Every import of the tree at `source` that the layers do not allow, as text."""
    found = []
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if parts in (("__init__",), ("__main__",)):
            continue
        own, file = parts[0], parts[-1]
        if own not in HEIGHT:
            found.append(f"{path.name}: {own} is in no layer")
            continue
        for line, name in imported(path):
            problem = _problem(own, file, name)
            if problem:
                found.append(f"{'/'.join(parts)}:{line}: {problem}")
    return found


def _problem(own, file, name):
    if name is None:
        return "relative import"
    first, *rest = name.split(".")
    if first != "inlay" or not rest or rest[0] in ("__version__",):
        return None
    target = rest[0]
    if target not in HEIGHT:
        return f"{target} is in no layer"
    if target == own:
        inner = rest[1] if len(rest) > 1 else ""
        if own in ALONE and file not in ("__init__", "_contract") and inner != "_contract":
            return f"a file of {own} knows only its _contract, not {name}"
        return None
    if HEIGHT[target] >= HEIGHT[own]:
        return f"{own} may not import {target}"
    return None


def test_every_import_goes_down():
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "code", "problem"),
    [
        ("core/routed.py", "from inlay.methods import lora", "core may not import methods"),
        ("io/peft.py", "import inlay.model.base", "io may not import model"),
        ("methods/lora.py", "from inlay.text import mask", "methods may not import text"),
        ("methods/dora.py", "from inlay.methods.lora import Lora", "knows only its _contract"),
        ("quant/nf4.py", "from inlay.methods import _contract", "quant may not import methods"),
        ("training/loop.py", "def f():\n    from inlay.serve import http", "training may not import serve"),
        ("serve/http.py", "from inlay.training.loop import run", "serve may not import training"),
        ("model/base.py", "from . import attach", "relative import"),
        (
            "model/base.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import inlay.cli",
            "may not import cli",
        ),
        ("helpers/x.py", "import os", "helpers is in no layer"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, code, problem):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(code)
    assert len(violations(tmp_path)) == 1
    assert problem in violations(tmp_path)[0]


def test_what_is_allowed_is_allowed(tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "lora.py").write_text(
        "import torch\nfrom inlay.methods._contract import LinearMethod\nimport inlay.core"
    )
    assert violations(tmp_path) == []
