"""Where the factors of a low-rank change start, one file each, which has the initialiser's name; nothing else lists them."""

from inlay import plugins
from inlay.initializers.contract import Initializer, Source

__all__ = ["UNIFORM", "Initializer", "Source", "find", "names"]

UNIFORM = "uniform"
"""LoRA's own start, A uniform and B zero, which finds nothing and has no file: `inlay.core.lowrank.kaiming_uniform`."""


def names() -> list[str]:
    """The initialisers that exist, by name: the files of this folder."""
    return plugins.names(__path__)


def find(name: str) -> type[Initializer] | None:
    """The initialiser called `name`: the one class that its file defines; None for `UNIFORM`.

    **Raises:**

    - `UnknownNameError`: there is no file of that name.
    """
    if name == UNIFORM:
        return None
    return plugins.find(__name__, [*names(), UNIFORM], name, Initializer, "initializer", f"--initializer {UNIFORM}")
