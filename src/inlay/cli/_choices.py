"""Flags that take one of the names that exist."""

from collections.abc import Iterable
from typing import Any

import tyro


def one_of(names: Iterable[str], *, several: bool = False) -> Any:
    """What a flag is marked with that takes one of these names, or several with commas between: its help lists them."""
    return tyro.conf.arg(metavar="{" + ",".join(names) + "}" + (",..." if several else ""))
