"""The ways of combining, a file for each."""

from typing import Any

from inlay.combine.contract import Way, settings
from inlay.combine.ways.cat import Cat
from inlay.combine.ways.dare import Dare
from inlay.combine.ways.linear import Linear
from inlay.combine.ways.slerp import Slerp
from inlay.combine.ways.svd import Svd
from inlay.combine.ways.ties import Ties
from inlay.errors import ConfigError, UnknownNameError, explain, nearest

WAYS: dict[str, type[Way]] = {"cat": Cat, "svd": Svd, "ties": Ties, "dare": Dare, "linear": Linear, "slerp": Slerp}
"""name -> the way."""


def find(name: str, given: dict[str, Any]) -> Way:
    """The way called `name` with these settings; those that are None were not given.

    **Raises:**

    - `UnknownNameError`: there is none of that name.
    - `ConfigError`: it has no such setting, or the value is out of its range.
    """
    if name not in WAYS:
        found, do = f"{name!r}; they are {', '.join(WAYS)}", f"--how {nearest(name, WAYS) or 'svd'}"
        raise UnknownNameError(explain("there is no such way of combining", found=found, do=do))
    way, given = WAYS[name], {key: value for key, value in given.items() if value is not None}
    if unread := [f"--{key}" for key in given if key not in settings(way)]:
        has = ", ".join(f"--{key}" for key in settings(way)) or "none"
        do = f"leave it out, or --how {next(other for other, cls in WAYS.items() if unread[0][2:] in settings(cls))}"
        raise ConfigError(explain(f"{name} has no such setting", found=f"{', '.join(unread)}; it has {has}", do=do))
    return way(**given)
