"""Things that are found by the name of their file: adapter methods, quantisation schemes, tasks. Nothing else lists them."""

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any, TypeVar

from inlay.errors import UnknownNameError, explain, nearest

Kind = TypeVar("Kind")

CONTRACT = "contract"
"""The file of a folder that says what such a thing is."""


def names(folder: Iterable[str]) -> list[str]:
    """The files of a package's `__path__`, by name: not its contract, and not those that begin with an underscore."""
    return list(_names(tuple(folder)))


@functools.cache  # asked again for every adapter that is read
def _names(folder: tuple[str, ...]) -> list[str]:
    found = {module.name for module in pkgutil.iter_modules(folder) if not module.name.startswith("_")}
    return sorted(found - {CONTRACT})


def find(package: str, known: list[str], name: str, kind: type[Kind], what: str, choice: str) -> type[Kind]:
    """The one class of `kind` that the file `name` of `package` defines; see `module`.

    **Raises:**

    - `UnknownNameError`: there is no file of that name.
    """
    found = module(package, known, name, what, choice)
    return next(
        value
        for value in vars(found).values()
        # type(value), because Python 3.10 takes `dict[str, int]` for an instance of type
        if issubclass(type(value), type) and issubclass(value, kind) and value.__module__ == found.__name__
    )


def module(package: str, known: list[str], name: str, what: str, choice: str) -> Any:
    """The file `name` of `package`, imported.

    **Arguments:**

    - `known`: the names that exist, as `names` gives them.
    - `what`: what such a thing is called in a message: its kind, such as 'adapter method'; the last word stands alone.
    - `choice`: what chooses the usual one on the command line.

    **Raises:**

    - `UnknownNameError`: there is no file of that name.
    """
    if name not in known:
        near = nearest(name, known)
        raise UnknownNameError(
            explain(
                f"no {what} of that name",
                found=f"{name!r}; the {what.split()[-1]}s are {', '.join(known)}",
                do=f"{choice.split()[0]} {near}" if near else choice,
            )
        )
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")
