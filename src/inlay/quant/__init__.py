"""Quantisation schemes, one file each: the file's name is the scheme's name, and nothing else lists them."""

import importlib
import pkgutil

from inlay.errors import UnknownNameError, explain, nearest
from inlay.quant._contract import Scheme


def names() -> list[str]:
    """The schemes that exist, by name: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> Scheme:
    """The scheme called `name`: the one class of the kind that its file defines.

    **Raises:**

    - `UnknownNameError`: there is no file of that name.
    """
    if name not in names():
        near = nearest(name, names())
        raise UnknownNameError(
            explain(
                "no quantisation scheme of that name",
                found=f"{name!r}; the schemes are {', '.join(names())}",
                do=f"--scheme {near or names()[0]}",
            )
        )
    module = importlib.import_module(f"{__name__}.{name}")
    found = [value for value in vars(module).values() if type(value) is type(Scheme) and issubclass(value, Scheme)]
    return next(scheme for scheme in found if scheme.__module__ == module.__name__)()
