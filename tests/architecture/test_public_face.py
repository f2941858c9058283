"""The names of the package itself: what `dir` lists is what there is, spelled out for people and editors alike."""

import ast
import dataclasses
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import inlay
from inlay import errors, methods
from tests.cli.test_pages import script

SOURCE = Path(__file__).parents[2] / "src"
FUNCTIONS = ["attach", "load", "merge", "sweep", "train"]
CLASSES = ["Adapter", "AdapterSet", "Base"]
ANY = {
    ("train", "source"): "data sets and data frames, whose libraries are not imported for a hint",
    ("train", "eval_data"): "likewise",
    ("sweep", "source"): "likewise",
    ("sweep", "eval_data"): "likewise",
}
"""(Function, argument) -> why it may be anything."""


def offered():
    """Every public function, and every public method of the classes that do something, by name."""
    for name in FUNCTIONS:
        yield name, getattr(inlay, name)
    for name in CLASSES:
        cls = getattr(inlay, name)
        found = {key: value for key, value in vars(cls).items() if not key.startswith("_")}
        yield from ((f"{name}.{key}", value) for key, value in found.items() if inspect.isfunction(value))


def vague(name, function):
    """What the signature of a function leaves open."""
    found = []
    for argument in inspect.signature(function).parameters.values():
        if argument.name == "self":
            continue
        is_open = argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        is_any = argument.annotation in (argument.empty, typing.Any) and (name, argument.name) not in ANY
        found += [f"{name}: {argument}"] * (is_open or is_any)
    return found + [f"{name}: no answer's type"] * (inspect.signature(function).return_annotation is inspect._empty)


def test_what_is_listed_is_what_there_is():
    assert dir(inlay) == sorted(inlay.__all__)
    assert all(hasattr(inlay, name) for name in dir(inlay))
    assert not any(name.startswith("_") for name in dir(inlay))
    family = [
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    own = [cls.__name__ for _, cls in methods.TABLE.own()]
    assert set(dir(inlay)) >= {
        *FUNCTIONS,
        *CLASSES,
        *family,
        *own,
        "Settings",
        "Report",
        "Comparison",
        "Progress",
        "Sweep",
    }
    with pytest.raises(AttributeError, match="'inlay' has no attribute 'Nope'"):
        inlay.Nope  # noqa: B018


def test_editors_are_told_what_the_program_finds():
    tree = ast.parse((SOURCE / "inlay" / "__init__.py").read_text("utf-8"))
    seen = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert {name: seen[name] for name in inlay._HOMES} == inlay._HOMES
    assert set(inlay.__all__) == {*inlay._HOMES, *(name for name, module in seen.items() if module == "inlay.errors")}


def test_every_name_has_its_words():
    assert script("make_reference").undocumented() == []
    assert [name for name, function in offered() if not inspect.getdoc(function)] == []


def test_the_reference_has_every_name():
    """Each on the page of the package, but for methods, which that page links to, and errors, which have a page of their own."""
    reference = script("make_reference")
    page = reference.python()
    lacking = [name for name in dir(inlay) if f"::: inlay.{name}\n" not in page]
    assert "inlay.errors" in reference.pages()["errors"]
    assert [name for name in lacking if f"[`{name}`](method-" not in page and not hasattr(errors, name)] == []


@pytest.mark.parametrize(("name", "function"), list(offered()))
def test_signatures_are_spelled_out(name, function):
    assert vague(name, function) == []


def test_an_open_signature_is_found():
    def open_(a, b: typing.Any, *args: int, **more: int): ...

    assert len(vague("open_", open_)) == 5


@pytest.mark.parametrize("function", [inlay.train, inlay.sweep])
def test_training_takes_every_setting_under_its_own_name(function):
    taken = inspect.signature(function).parameters
    for field in dataclasses.fields(inlay.Settings):
        assert (taken[field.name].annotation, taken[field.name].default) == (field.type, field.default)


PROGRAM = """
import torch
import inlay

base = inlay.load("a", quantize="nf4")
report = inlay.train(base, "rows.jsonl", method=inlay.Lora(r=16), output="mine", max_steps=3, train_on="all")
reveal_type(base)
reveal_type(report.eval_loss)
reveal_type(base.attach("mine"))
reveal_type(base.generate(["one", "two"], adapters=["mine", None]))
reveal_type(inlay.merge(base, "mine", output="merged").largest_difference)
reveal_type(inlay.attach(torch.nn.Sequential(), inlay.Lora(r=4)).parameters())
with base.using(None):
    pass
try:
    base.adapters["mine"]
except inlay.UnknownNameError as error:
    reveal_type(error.hint)
"""
TYPES = ["Base", "float | None", "Adapter", "list[str]", "float", "list[Tensor]", "str"]
WRONG = {
    'inlay.train(inlay.load("a"), "rows", output="b", max_step=3)': "max_step",
    'inlay.train(inlay.load("a"), "rows", output="b", train_on="some")': "train_on",
    'inlay.load("a", quantise="nf4")': "quantise",
    'inlay.load("a").generate("b", temprature=1.0)': "temprature",
    "inlay.Lora(rank=3)": "rank",
    "inlay.Nope": "Nope",
    "inlay.Settings(max_steps='many')": "max_steps",
}
"""A line that is wrong -> what pyright names."""


def checked(path, text):
    """What pyright says of a program: (severity, message, line from 0), in order."""
    path.write_text(text)
    (path.parent / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(SOURCE)], "pythonVersion": "3.10"}))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(path.parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = json.loads(done.stdout)["generalDiagnostics"]
    return [(one["severity"], one["message"], one["range"]["start"]["line"]) for one in said]


def test_a_small_program_is_understood_and_a_wrong_one_is_not(tmp_path):
    lines = [f"{line}  # wrong" for line in WRONG]
    said = checked(tmp_path / "program.py", PROGRAM + "\n".join(lines) + "\n")
    types = [message.rpartition(" is ")[2].strip('"') for severity, message, _ in said if severity == "information"]
    assert types == TYPES
    first = PROGRAM.count("\n")
    mistakes = {line - first: message for severity, message, line in said if severity == "error"}
    assert sorted(mistakes) == list(range(len(WRONG))), said
    for number, named in enumerate(WRONG.values()):
        assert named in mistakes[number]
