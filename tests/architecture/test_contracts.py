"""A class of one of the kinds that can't be used is refused where it is defined, with everything that is wrong."""

import dataclasses
import inspect
import sys

import pytest

from inlay import formats, initializers, methods, plugins, quant
from inlay.errors import CompatibilityError
from inlay.formats.contract import Format
from inlay.initializers.contract import Initializer
from inlay.methods import hooks
from inlay.methods.contract import BlockMethod, LinearMethod, LowRankMethod, Method, PromptMethod
from inlay.quant.contract import Scheme
from tests.support import forks, packages

GOOD = '''
    """y"""

    learning_rate_scale = 1.0

    def shapes(self, base):
        return {}

    def init(self, base, generator):
        return {}

    def delta(self, params, x, y, base):
        return 0 * y

    def merge(self, params, weight, bias, start=0):
        return weight, bias

    def describe(self):
        return ""
'''
HOOKS = [cls for cls in vars(hooks).values() if inspect.isabstract(cls) and cls.__module__ == hooks.__name__]
HEAD = "import dataclasses\nfrom inlay.methods import contract, hooks\nfrom inlay.methods.contract import *\n"
CLASS = "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Odd(contract.LinearMethod):"

WRONG = {
    "it is right": (GOOD, ()),
    "no merge": (GOOD.replace("def merge", "def _merge"), ("merge is missing",)),
    "nothing": ("\n    '''y'''", ("shapes", "init", "delta", "merge", "describe", "learning_rate_scale")),
    "a field without a default": (f"{GOOD}\n    r: int\n    'Rank.'", ("the field r has no default",)),
    "a field without a docstring": (
        f"{GOOD}\n    r: int = 3\n    s: int = 4\n    'Sum.'",
        ("the field r has no docstring",),
    ),
    "no docstring at all": (GOOD.replace('"""y"""', ""), ("the class has no docstring",)),
    "a function that is not its own": (f"{GOOD}\n    def require(self): ...", ()),
}


def refused(kind, body, **how):
    """The problems that are found in a class of `kind` with these members."""
    with pytest.raises(CompatibilityError) as caught:
        type(kind)(
            "Toy", (kind,), {"__module__": "somewhere.toy", "__qualname__": "Toy", "__doc__": "A toy.", **body}, **how
        )
    assert "extend.md" in caught.value.hint
    return [found.removeprefix("somewhere.toy.Toy: ") for found in caught.value.found]


def loaded(tmp_path, monkeypatch, code, file="odd"):
    """The problems of the class `Odd` that a file defines; none where it is taken."""
    (tmp_path / f"{file}.py").write_text(HEAD + code)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop(file, None)
    try:
        __import__(file)
    except CompatibilityError as error:
        return [found.partition(": ")[2] for found in error.found]
    finally:
        sys.modules.pop(file, None)
    return []


@pytest.mark.parametrize(("body", "problems"), WRONG.values(), ids=WRONG)
def test_what_a_class_lacks_is_said_where_it_is_defined(tmp_path, monkeypatch, body, problems):
    found = loaded(tmp_path, monkeypatch, f"{CLASS}{body}")
    assert len(found) == len(problems)
    assert all(any(problem in line for line in found) for problem in problems)


def test_everything_that_is_wrong_is_said_at_once(tmp_path, monkeypatch):
    body = GOOD.replace("def merge", "def _merge").replace("def describe", "def for_module") + "\n    r: int"
    found = loaded(tmp_path, monkeypatch, f"{CLASS}{body}", "strange")
    assert found == [
        "merge is missing",
        "describe is missing",
        "the field r has no default",
        "the file strange.py has another name",
        "the field r has no docstring",
    ]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(LowRankMethod, "delta"), (LowRankMethod, "merge"), (PromptMethod, "numbers"), (Scheme, "num_bytes")],
)
def test_a_function_with_a_body_is_not_replaced(kind, name):
    assert f"{name} replaces a function of the contract that has a body" in refused(kind, {name: lambda self: 0})
    assert refused(kind, {name: lambda self: 0}, abstract=True) == [
        f"{name} replaces a function of the contract that has a body"
    ]


@pytest.mark.parametrize(
    "kind", [Method, LinearMethod, LowRankMethod, BlockMethod, PromptMethod, Scheme, Initializer, Format]
)
def test_whatever_is_abstract_must_be_there(kind):
    missing = {name for name in dir(kind) if getattr(getattr(kind, name), "__isabstractmethod__", False)}
    assert missing
    problems = refused(kind, {})
    assert {f"{name} is missing" for name in missing} <= set(problems)


@pytest.mark.parametrize(
    ("kind", "name"), [(Scheme, "marks"), (Scheme, "config"), (Initializer, "source"), (Format, "files")]
)
def test_a_class_variable_without_a_value_is_missed(kind, name):
    assert f"{name} has no value" in refused(kind, {})


def test_what_adapts_experts_has_factors():
    body = {"__module__": "toy", "__qualname__": "Toy", "kinds": ("linear", "experts")}
    with pytest.raises(CompatibilityError, match="only a LowRankMethod can adapt experts"):
        type(LinearMethod)("Toy", (LinearMethod,), body, abstract=True)
    type(LinearMethod)("Toy", (LowRankMethod,), body, abstract=True)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_is_only_half_there_is_refused(hook):
    assert len(HOOKS) == 9
    half = type(hook)("_Half", (hook,), {"__module__": "somewhere.toy"})
    body = {"__module__": "somewhere.toy", "__qualname__": "Toy", "__doc__": "A toy."}
    with pytest.raises(CompatibilityError, match=f"{sorted(hook.__abstractmethods__)[0]} is missing"):
        type(Method)("Toy", (half, Method), body)


def test_a_class_of_a_notebook_or_a_function_needs_no_file():
    with pytest.raises(CompatibilityError) as caught:

        class Toy(Method):
            """A toy."""

    assert not any("another name" in line for line in caught.value.found)


def test_a_class_that_is_no_dataclass_is_refused_where_it_is_asked_for(tmp_path):
    code = HEAD + CLASS.partition("\n")[2].replace("Odd", "Plain") + GOOD + "\n    r: int = 3\n    'Rank.'"
    packages.write(tmp_path, "gold", "1.2", {"gold.plain": code}, {"inlay.methods": {"plain": "gold.plain"}})
    ask = "from inlay import methods\ntry:\n    methods.find('plain')\nexcept Exception as error:\n    print(error)"
    status, out, err = forks.run(f"{forks.ANEW}sys.path.insert(0, {str(tmp_path)!r})\n{ask}")
    assert "it is no frozen dataclass" in out, err
    assert status == 0


@pytest.mark.parametrize(
    "table", [methods.TABLE, quant.TABLE, initializers.TABLE, formats.TABLE], ids=lambda table: table.group
)
def test_every_field_of_ours_has_its_docstring(table):
    for _, thing in table.own():
        for cls in (thing if isinstance(thing, type) else type(thing)).__mro__:
            if issubclass(cls, plugins.Contract) and cls is not plugins.Contract:
                names = [f.name for f in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
                own = [name for name in names if name in inspect.get_annotations(cls)]
                assert list(plugins._undocumented(cls, own)) == []
