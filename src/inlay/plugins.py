"""What is found by name, of five kinds: adapter methods, quantisation schemes, tasks, initialisers, formats of adapters.

Ours are files: the file's name is the thing's, and nothing else lists them. A package outside ours names such a file of its
own, a module, in its `pyproject.toml`:

    [project.entry-points."inlay.methods"]
    toy = "some_package.toy"

A module is imported when its name is asked for, or when what somebody else made has to be recognised and none of ours knows it.
Names out of files are looked up in these tables and nowhere else: no file can have anything else imported.
"""

import abc
import ast
import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import itertools
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from inlay.errors import CompatibilityError, InlayError, UnknownNameError, explain, nearest

Kind = TypeVar("Kind")
Thing = TypeVar("Thing")

CONTRACTS = ("contract", "hooks")
"""The files of a folder that say what such a thing is, and what only some have."""


_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}==[A-Za-z0-9.+!]{1,50}").fullmatch


class Origin(NamedTuple):
    """A package outside ours that brings something."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"


@dataclasses.dataclass(frozen=True)
class Table(Generic[Thing]):
    """Everything of one kind, by name."""

    room: str
    """The package that holds ours, such as `inlay.methods`."""
    folder: tuple[str, ...]
    """Its `__path__`."""
    group: str
    """What entry points of this kind stand under, such as `inlay.methods`."""
    what: str
    """What such a thing is called in a message: its kind, such as 'adapter method'; the last word stands alone."""
    choice: str
    """What chooses the usual one on the command line."""
    take: Callable[[Any], Thing]
    """Imported module -> the thing that it defines; `CompatibilityError` where it defines none. See `class_of`, `value_of`."""
    joint: str = "_"
    """What names have where files have an underscore."""

    def ours(self) -> list[str]:
        """The names of our files."""
        return [name.replace("_", self.joint) for name in _files(self.folder)]

    def names(self) -> list[str]:
        """The names that exist: ours, and those that other packages bring. Nothing is imported to know them."""
        return sorted({*self.ours(), *(point.name for point, _ in _brought(self.group))})

    def origin(self, name: str) -> Origin | None:
        """The package that brings the thing called `name`; None where it is ours, or nobody's."""
        return next((origin for point, origin in _brought(self.group) if point.name == name), None)

    def find(self, name: str) -> Thing:
        """The thing called `name`.

        **Raises:**

        - `UnknownNameError`: there is none of that name.
        - `CompatibilityError`: it can't be used: several packages bring it, or its module is broken.
        """
        if name not in self.names():
            raise self.unknown(name, self.names())
        brought = [(point, origin) for point, origin in _brought(self.group) if point.name == name]
        is_ours = name in self.ours()
        if len(brought) + is_ours > 1:
            sources = ["inlay itself"] * is_ours + [f"{origin}: {point.value}" for point, origin in brought]
            do = f"pip uninstall {brought[-1][1].package}"
            raise CompatibilityError(explain(f"several packages bring the {self.what} {name}", found=sources, do=do))
        return self._ours(name) if is_ours else self._brought(name, *brought[0])

    def known(self) -> Iterator[tuple[str, Thing]]:
        """(name, thing) of everything, ours first: for what has to be recognised; see `others`."""
        yield from self.own()
        yield from self.others()

    def own(self) -> Iterator[tuple[str, Thing]]:
        """(name, thing) of ours."""
        for name in self.ours():
            yield name, self._ours(name)

    def others(self) -> Iterator[tuple[str, Thing]]:
        """(name, thing) of what other packages bring. One that can't be used is left out here, and refused where it is asked
        for by its name."""
        for name in self.names():
            if name not in self.ours():
                with contextlib.suppress(CompatibilityError):
                    yield name, self.find(name)

    def check_installed(self, name: str, needs: object, where: object) -> None:
        """Refuse a name out of the file `where` whose package is not installed, or is broken.

        `needs`: what the file says of the package, as `Origin` writes it; it may be anything.

        **Raises:**

        - `CompatibilityError`: nothing here has that name, and the file says which package brings it; or as `find` does.
        """
        if self.origin(name):
            self.find(name)
        if name in self.names() or not isinstance(needs, str) or not _REQUIREMENT(needs):
            return
        do = f"pip install {needs}, if you trust that package: it is the file that names it"
        found = f"{where}: {name}, which {needs} brings"
        raise CompatibilityError(explain(f"this is of a {self.what} that is not installed", found=found, do=do))

    def unknown(self, name: str, known: Sequence[str]) -> UnknownNameError:
        """The error for a name that is none of those that are known."""
        near = nearest(name, known)
        return UnknownNameError(
            explain(
                f"no {self.what} of that name",
                found=f"{name!r}; the {self.what.split()[-1]}s are {', '.join(known)}",
                do=f"{self.choice.split()[0]} {near}" if near else self.choice,
            )
        )

    def _ours(self, name: str) -> Thing:
        return self.take(importlib.import_module(f"{self.room}.{name.replace('-', '_')}"))

    def _brought(self, name: str, point: importlib.metadata.EntryPoint, origin: Origin) -> Thing:
        """What the module of an entry point defines."""
        try:
            if point.attr or point.module.rpartition(".")[2].replace("_", self.joint) != name:
                rule = f"names a module, whose last part is {name.replace('-', '_')}"
                raise CompatibilityError(f"{self.group} {rule}; it is {point.value}")
            return self.take(importlib.import_module(point.module))
        except InlayError as error:
            reasons = [error.wrong, *error.found]
        except (Exception, SystemExit) as error:
            reasons = [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
        raise CompatibilityError(
            explain(
                f"the {self.what} {name} can't be used as {origin.package} brings it",
                found=[f"{origin}, {point.module}: {reason}" for reason in reasons],
                do=f"pip install --upgrade {origin.package}, or pip uninstall {origin.package}",
            )
        )


class Contract(abc.ABC):  # noqa: B024  # what is abstract is for the kinds to say
    """What a class of one of these kinds derives from: one that can't be used is refused where it is defined, in words.

    It has everything that is abstract, a value for every class variable that has none, and replaces no function with a body:
    another way is another class of the contract. It is called as its file is (`LnTuning` in `ln_tuning.py`), its fields have
    defaults, and each has a docstring, which is its help. A class that others are made of says `abstract=True`.

    **Raises:** `CompatibilityError`, with everything that is wrong.
    """

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        problems = [*_replaced(cls), *([] if abstract or cls.__name__.startswith("_") else _missing(cls))]
        if problems:
            found = [f"{cls.__module__}.{cls.__qualname__}: {problem}" for problem in problems]
            kind = next(base.__name__ for base in cls.__mro__[1:] if issubclass(base, Contract))
            do = "docs/guides/extend.md; a class that others are made of says abstract=True"
            raise CompatibilityError(explain(f"this class is no {kind} that can be used", found=found, do=do))


def _replaced(cls: type) -> Iterator[str]:
    """Functions of a class that replace one with a body."""
    for name, value in vars(cls).items():
        above = next((vars(base)[name] for base in cls.__mro__[1:] if name in vars(base)), None)
        is_final = _is_function(above) and not getattr(above, "__isabstractmethod__", False)
        if is_final and _is_function(value) and not name.startswith("__"):
            yield f"{name} replaces a function of the contract that has a body"


def _is_function(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, property | staticmethod | classmethod)


def _missing(cls: type) -> Iterator[str]:
    """What a class that is to be used lacks."""
    names = {name: None for base in cls.__mro__ for name in vars(base)}
    yield from (
        f"{name} is missing" for name in names if getattr(getattr(cls, name, None), "__isabstractmethod__", False)
    )
    hints = {name: hint for base in cls.__mro__ for name, hint in inspect.get_annotations(base).items()}
    is_class_variable = {name: str(hint).startswith(("typing.ClassVar", "ClassVar")) for name, hint in hints.items()}
    yield from (
        f"{name} has no value" for name, is_one in is_class_variable.items() if is_one and not hasattr(cls, name)
    )
    own = [name for name in inspect.get_annotations(cls) if not is_class_variable[name]]
    yield from (f"the field {name} has no default" for name in own if name not in vars(cls))
    file = cls.__module__.rpartition(".")[2]
    if cls.__qualname__ == cls.__name__ and file != "__main__" and file.replace("_", "") != cls.__name__.lower():
        yield f"the file {file}.py has another name"
    if not cls.__module__.startswith("inlay."):  # of ours a test sees to it
        yield from (f"{name} has no docstring" for name in _undocumented(cls, own))


def _undocumented(cls: type, fields: Sequence[str]) -> Iterator[str]:
    """The fields of a class, or the class itself, without a docstring; none where its source can't be read."""
    if not cls.__doc__:
        yield "the class"
    with contextlib.suppress(OSError, TypeError, SyntaxError):
        said = docstrings(cls)
        yield from (f"the field {name}" for name in fields if name not in said)


def docstrings(cls: type) -> dict[str, str]:
    """The docstring under each field that a class itself has, from its source; each in one line.

    **Raises:** `OSError` or `TypeError`: its source can't be read.
    """
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        field.target.id: " ".join(after.value.value.split())
        for field, after in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }


def class_of(kind: type[Kind]) -> Callable[[Any], type[Kind]]:
    """What takes the one class of `kind` out of a module: public, finished, and defined there."""

    def take(module: Any) -> type[Kind]:
        # type(value), because Python 3.10 takes `dict[str, int]` for an instance of type
        own = [v for v in vars(module).values() if issubclass(type(v), type) and v.__module__ == module.__name__]
        own = [v for v in own if issubclass(v, kind) and not v.__name__.startswith("_") and not inspect.isabstract(v)]
        if len(own) != 1:
            found = f"{', '.join(cls.__name__ for cls in own) or 'none'} in {module.__name__}"
            raise CompatibilityError(explain(f"it does not define one class of the kind {kind.__name__}", found=found))
        return own[0]

    return take


def value_of(constant: str, kind: type[Kind]) -> Callable[[Any], Kind]:
    """What takes the value of `kind` that is called `constant` out of a module."""

    def take(module: Any) -> Kind:
        value = getattr(module, constant, None)
        if not isinstance(value, kind):
            found = f"{type(value).__name__} in {module.__name__}"
            raise CompatibilityError(explain(f"its {constant} is no {kind.__name__}", found=found))
        return value

    return take


@functools.cache  # asked again for every adapter that is read
def _files(folder: tuple[str, ...]) -> list[str]:
    """The files of a folder by name: not its contract, and not those that begin with an underscore."""
    found = {module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_")}
    return sorted(found - set(CONTRACTS))


def brought(group: str) -> list[str]:
    """The names that other packages bring to a group of entry points; nothing is imported to know them."""
    return [point.name for point, _ in _brought(group)]


@functools.cache
def _brought(group: str) -> tuple[tuple[importlib.metadata.EntryPoint, Origin], ...]:
    """The entry points of a group, each with the package that has it."""
    found = _entry_points().select(group=group)
    origins = ((point, point.dist) for point in found)
    made = [(point, Origin(dist.name, dist.version) if dist else Origin("?", "?")) for point, dist in origins]
    return tuple(sorted(made, key=lambda pair: (pair[0].name, pair[1])))


@functools.cache
def _entry_points() -> Any:
    return importlib.metadata.entry_points()
