"""A pytest plugin that breaks one function of the package before any test is imported: `-p tests.mutants.plugin`.

The environment variable INLAY_MUTANT names the mutant. A function is found by its name, in whatever module of the package
defines it, so that a move breaks no mutant; modules that have imported it already get the broken one too.
"""

import functools
import importlib
import inspect
import os
import re
import sys
from pathlib import Path

import pytest

import inlay
from tests.mutants.mutants import MUTANTS, PLANTED

VARIABLE = "INLAY_MUTANT"


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    function, mutation, _ = (MUTANTS | PLANTED)[os.environ[VARIABLE]]
    put_(function, mutation)


def find(function):
    """What holds a function, its name there, and the function.

    `function` is a name such as 'row_segments' or 'LowRank.init'; with its folder or file before it, 'training:factor' or
    'model/origin:check', where there are several of one name.
    """
    where, _, name = function.rpartition(":")
    outer, *inner = name.split(".")
    defining = [file for file, names in _definitions().items() if outer in names]
    files = [file for file in defining if f"{file}/".startswith(where and f"{where}/")]
    if len(files) != 1:
        raise LookupError(f"{function}: {outer} is defined by {files or 'no file of the package'}")
    holder = importlib.import_module(f"inlay.{files[0].replace('/', '.')}".removesuffix(".__init__"))
    for attribute in inner:
        holder, outer = getattr(holder, outer), attribute
    return holder, outer, inspect.getattr_static(holder, outer)


def mutated(original, mutation):
    """A function, or the getter of a property, with a mutation."""
    return property(mutation(original.fget)) if isinstance(original, property) else mutation(original)


def put_(function, mutation):
    """Let the mutant take a function's place, under every name that modules have for it."""
    holder, name, original = find(function)
    broken = mutated(original, mutation)
    setattr(holder, name, broken)
    for module in [module for key, module in sys.modules.items() if key.partition(".")[0] in ("inlay", "tests")]:
        for alias in [alias for alias, value in vars(module).items() if value is original]:
            setattr(module, alias, broken)


@functools.cache
def _definitions():
    """The functions and classes of each file of the package, by its path there without the ending."""
    root, definition = Path(inlay.__file__).parent, re.compile(r"^(?:def|class) (\w+)", re.MULTILINE)
    files = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.py")}
    return {file: definition.findall(path.read_text("utf-8")) for file, path in files.items()}
