"""Quantisation schemes, one file each: the file's name is the scheme's name, and nothing else lists them."""

from typing import Any

from inlay import plugins
from inlay.quant.contract import Scheme


def names() -> list[str]:
    """The schemes that exist, by name: the files of this folder."""
    return plugins.names(__path__)


def find(name: str) -> Scheme:
    """The scheme called `name`: the one class of the kind that its file defines.

    **Raises:**

    - `UnknownNameError`: there is no file of that name.
    """
    scheme: Any = plugins.find(
        __name__, names(), name, Scheme, "quantisation scheme", "--scheme nf4"
    )  # not abstract, as typed
    return scheme()
