"""Adapter methods, one file each: the file's name is the method's name, and nothing else lists them."""

import importlib
import pkgutil

from inlay.errors import UnknownNameError, explain, nearest
from inlay.methods._contract import LinearMethod


def names() -> list[str]:
    """The methods that exist, by name: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> type[LinearMethod]:
    """The method called `name`: the one class that its file defines.

    **Raises:**

    - `UnknownNameError`: there is no file of that name.
    """
    if name not in names():
        near = nearest(name, names())
        raise UnknownNameError(
            explain(
                "no adapter method of that name",
                found=f"{name!r}; the methods are {', '.join(names())}",
                do=f"--method {near or names()[0]}",
            )
        )
    module = importlib.import_module(f"{__name__}.{name}")
    return next(
        value
        for value in vars(module).values()
        # type(value), because Python 3.10 takes `dict[str, int]` for an instance of type
        if issubclass(type(value), type) and issubclass(value, LinearMethod) and value.__module__ == module.__name__
    )


def name_of(method: LinearMethod) -> str:
    """The name of a method: that of the file which defines its class."""
    return type(method).__module__.rpartition(".")[2]
