"""Who may import whom: parsed from the source, so that nothing has to be imported to know."""

import ast
import itertools
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "inlay"

LAYERS = [
    {"cli"},
    {"options"},
    {"planning", "sweeps"},
    {"training", "http"},
    {"report"},
    {"evaluation", "export", "runs", "serve"},
    {"base"},
    {"generation", "gate"},
    {"tasks"},
    {"model"},
    {"layout", "combine"},
    {"formats", "modules"},
    {"hub", "gguf", "engines", "streams"},
    {"io", "data", "packing", "pickled", "distributed"},
    {"text", "methods", "quant"},
    {"initializers"},
    {"kernels"},
    {"core"},
    {"picture"},
    {"disk", "extras", "fields", "licenses", "names", "plugins", "process", "screen"},
    {"errors"},
]
"""Top to bottom. A module imports its own folder or a lower layer: never up, never sideways."""

APART = {("training", "serve")}
"""Who may not know whom, though it is lower."""

HEIGHT = {name: len(LAYERS) - i for i, layer in enumerate(LAYERS) for name in layer}
ALONE = {"methods", "quant", "initializers", "formats"}
"""Folders whose files know only the contract and those that begin with an underscore; these know the contracts alone, and `contract` none."""

IMPORTERS = {"import_module", "__import__", "find_spec", "resolve_name", "run_module"}
"""Functions of the standard library that take the name of a module."""

CONTRACTS = {"contract", "hooks"}
"""Files of such a folder that every other one knows; `hooks`, what only some things have, rests on the contract."""

DATA = {"__version__"}
"""What the package's own file holds itself: to read it imports nothing else."""


def imported(path, module):
    """The names that a file imports, at any depth of its code, as (line, dotted name or None for a relative import).

    Calls that import by name are read as far as the name is written out; a name that is only a variable can't be seen.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, None
            else:  # `from inlay.io import peft` imports a module, `from inlay.formats.peft import read` a name in one
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, name) for name in _imported_by_call(node, module))


def _imported_by_call(node, module):
    """What a call such as `importlib.import_module("inlay.formats.peft")` imports."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called not in IMPORTERS:
        return
    for given in (*node.args, *(keyword.value for keyword in node.keywords)):
        text = _start(given, module)
        if text.startswith("."):
            yield None
        elif text:
            yield text.replace(":", ".").rstrip(".")  # resolve_name takes "module:name"


def _start(node, module):
    """What is known of a string before the program runs: all of a literal, the beginning of most others."""
    if isinstance(node, ast.JoinedStr):
        parts = [_start(value, module) for value in node.values]
        return "".join(itertools.takewhile(bool, parts))
    if isinstance(node, ast.FormattedValue):
        return _start(node.value, module)
    if isinstance(node, ast.BinOp):
        left, right = _start(node.left, module), _start(node.right, module)
        return left + right if left else ""
    if isinstance(node, ast.Name) and node.id == "__name__":
        return module
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


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
        module = ".".join(("inlay", *parts)).removesuffix(".__init__")
        for line, name in imported(path, module):
            problem = _problem(own, file, name)
            if problem:
                found.append(f"{'/'.join(parts)}:{line}: {problem}")
    return found


def _problem(own, file, name):
    if name is None:
        return "relative import"
    first, *rest = name.split(".")
    if first != "inlay" or (rest and rest[0] in DATA):
        return None
    if not rest:
        return f"the package itself is above {own}: import from the module that defines the name"
    target = rest[0]
    if target not in HEIGHT:
        return f"{target} is in no layer"
    if target == own:
        inner = rest[1] if len(rest) > 1 else ""
        by_name = file == "__init__" and not inner  # a folder finds its own files by their names
        shared = file != "contract" and (inner in CONTRACTS or (inner.startswith("_") and not file.startswith("_")))
        shared = shared and not (file == "hooks" and inner != "contract")
        if own in ALONE and not shared and not by_name:
            return f"a file of {own} knows only what the folder shares, not {name}"
        return None
    if HEIGHT[target] >= HEIGHT[own] or (own, target) in APART:
        return f"{own} may not import {target}"
    if any(part.startswith("_") for part in rest[1:]):
        return f"{name} is private to {target}"
    return None


def test_every_import_goes_down():
    assert violations(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "code", "problem"),
    [
        ("core/routed.py", "from inlay.methods import lora", "core may not import methods"),
        ("formats/peft.py", "import inlay.base.base", "formats may not import base"),
        ("methods/lora.py", "from inlay.text import mask", "methods may not import text"),
        ("base/load.py", "from inlay.text import _renderer", "inlay.text._renderer is private to text"),
        (
            "base/load.py",
            "from inlay.methods.lora import _scaling",
            "inlay.methods.lora._scaling is private to methods",
        ),
        ("model/adapter_set.py", "from inlay.base import base", "model may not import base"),
        ("io/records.py", "from inlay.formats import peft", "io may not import formats"),
        ("base/load.py", "from inlay.export import merge", "base may not import export"),
        ("combine/checks.py", "from inlay.layout import layout", "combine may not import layout"),
        ("tasks/embedding.py", "from inlay.base import base", "tasks may not import base"),
        ("base/load.py", "from inlay.tasks._encode import inputs", "inlay.tasks._encode.inputs is private to tasks"),
        ("base/load.py", "from inlay.evaluation import score", "base may not import evaluation"),
        ("evaluation/score.py", "from inlay.export import merge", "evaluation may not import export"),
        ("evaluation/score.py", "from inlay.training import loop", "evaluation may not import training"),
        ("methods/dora.py", "from inlay.methods.lora import Lora", "knows only what the folder shares"),
        ("methods/__init__.py", "from inlay.methods import lora", "knows only what the folder shares"),
        ("methods/__init__.py", "from inlay.methods.lora import Lora", "knows only what the folder shares"),
        ("methods/contract.py", "def f():\n    import inlay.methods.lora", "knows only what the folder shares"),
        ("methods/contract.py", "from inlay.methods import find", "knows only what the folder shares"),
        ("methods/contract.py", "import inlay.methods", "knows only what the folder shares"),
        ("methods/contract.py", "from inlay.methods.hooks import Shares", "knows only what the folder shares"),
        ("methods/hooks.py", "from inlay.methods._low_rank import LowRank", "knows only what the folder shares"),
        ("quant/nf4.py", "from inlay.methods import contract", "quant may not import methods"),
        ("base/base.py", "import inlay", "the package itself is above base"),
        ("cli/train.py", "import os, inlay as package", "the package itself is above cli"),
        ("base/base.py", "from inlay import *", "* is in no layer"),
        ("base/base.py", "from inlay import train", "train is in no layer"),
        (
            "core/routed.py",
            "import importlib\nimportlib.import_module('inlay.formats.peft')",
            "core may not import formats",
        ),
        ("core/routed.py", "import importlib as i\ni.import_module(name='inlay')", "the package itself"),
        (
            "formats/peft.py",
            "from importlib import import_module\nimport_module('inlay.cli')",
            "formats may not import cli",
        ),
        ("formats/peft.py", "__import__('inlay.base.base')", "formats may not import base"),
        ("formats/peft.py", "import importlib\nimportlib.import_module('..model', 'inlay.io')", "relative import"),
        (
            "formats/peft.py",
            "import importlib\nimportlib.import_module(f'inlay.model.{x}')",
            "formats may not import model",
        ),
        (
            "formats/peft.py",
            "import importlib\nimportlib.import_module('inlay.model.' + x)",
            "formats may not import model",
        ),
        (
            "methods/lora.py",
            "import importlib\nimportlib.import_module(f'inlay.methods.{x}')",
            "knows only what the folder shares",
        ),
        ("methods/__init__.py", "import importlib\nimportlib.import_module(__name__ + '.lora')", "knows only what"),
        ("methods/__init__.py", "import importlib\nimportlib.import_module(f'{__name__}.lora')", "knows only what"),
        ("text/mask.py", "import pkgutil\npkgutil.resolve_name('inlay.base.base:load')", "text may not import base"),
        ("training/loop.py", "def f():\n    from inlay.serve import slots", "training may not import serve"),
        ("serve/slots.py", "from inlay.training.loop import run", "serve may not import training"),
        ("http/paths.py", "from inlay.training.loop import run", "http may not import training"),
        ("base/base.py", "from . import attach", "relative import"),
        (
            "base/base.py",
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


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("methods/lora.py", "import torch\nfrom inlay.methods.contract import LinearMethod\nimport inlay.core"),
        ("methods/lora.py", "from inlay.methods.hooks import Rates\nfrom inlay.methods._low_rank import LowRank"),
        ("methods/hooks.py", "from inlay.methods.contract import Method"),
        ("methods/__init__.py", "from inlay.methods.contract import LinearMethod"),
        ("methods/__init__.py", "import importlib\nimportlib.import_module(f'{__name__}.{name}')"),
        ("cli/_talk.py", "import importlib\nimportlib.import_module(f'inlay.cli.{name}')"),
        ("training/job.py", "from inlay import __version__, methods"),
        ("formats/peft.py", "import importlib.metadata\nimportlib.metadata.version('inlay')"),
        ("formats/peft.py", "import importlib\nimportlib.import_module(name)\nopen('inlay.json')"),
    ],
)
def test_what_is_allowed_is_allowed(tmp_path, file, code):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(code)
    assert violations(tmp_path) == []


def circles(source):
    """Modules that import each other, directly or through others: the files of a circle in order, circle by circle."""
    files = {".".join(("inlay", *p.relative_to(source).with_suffix("").parts)): p for p in sorted(source.rglob("*.py"))}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    edges = {name: set() for name in files if name != "inlay"}
    for name, reached in edges.items():
        for _, target in imported(files[name], name):
            found = next((t for t in (target, (target or "").rpartition(".")[0]) if t in edges), None)
            reached |= {found} - {name, None}
    reachable = {name: _reachable(name, edges) for name in edges}
    rings = {tuple(sorted(other for other in reachable[name] if name in reachable[other])) for name in edges}
    return [list(ring) for ring in sorted(rings) if ring]


def _reachable(start, edges):
    seen, left = set(), [start]
    while left:
        for name in edges[left.pop()] - seen:
            seen.add(name)
            left.append(name)
    return seen


def test_no_circle_lies_inside_a_room():
    assert circles(SOURCE) == []


@pytest.mark.parametrize("last", ["import inlay.kernels.a", "def f():\n    from inlay.kernels.a import x"])
def test_a_planted_circle_is_found(tmp_path, last):
    (tmp_path / "kernels").mkdir()
    for name, code in {"a": "from inlay.kernels import b", "b": "from inlay.kernels.c import x", "c": last}.items():
        (tmp_path / "kernels" / f"{name}.py").write_text(code)
    assert circles(tmp_path) == [["inlay.kernels.a", "inlay.kernels.b", "inlay.kernels.c"]]
