"""Where the factors of a low-rank change start, one file each, which has the initialiser's name; nothing else lists them."""

from inlay import plugins
from inlay.initializers.contract import Initializer, Source

__all__ = ["UNIFORM", "Initializer", "Source", "find", "names"]

UNIFORM = "uniform"
"""LoRA's own start, A uniform and B zero, which finds nothing and has no file: `inlay.core.lowrank.kaiming_uniform`."""

TABLE = plugins.Table(
    room=__name__,
    folder=tuple(__path__),
    group="inlay.initializers",
    what="initializer",
    choice=f"--initializer {UNIFORM}",
    take=plugins.class_of(Initializer),
)
"""The initialisers that exist."""

names = TABLE.names


def find(name: str) -> type[Initializer] | None:
    """The initialiser called `name`: the one class that its file defines; None for `UNIFORM`.

    **Raises:**

    - `UnknownNameError`: there is none of that name.
    - `CompatibilityError`: another package brings it, and it can't be used.
    """
    if name == UNIFORM:
        return None
    if name not in names():
        raise TABLE.unknown(name, [*names(), UNIFORM])
    return TABLE.find(name)
