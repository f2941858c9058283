"""Quantisation schemes, one file each: the file's name is the scheme's name, and nothing else lists them."""

from typing import Any

from inlay import plugins
from inlay.errors import CompatibilityError, explain
from inlay.quant.contract import Scheme


def _scheme(module: Any) -> Scheme:
    cls: Any = plugins.class_of(Scheme)(module)  # not abstract, as typed
    made: Scheme = cls()
    if not module.__name__.startswith(f"{__name__}."):
        shared = [f"{mark} of {name}" for name, ours in TABLE.own() for mark in ours.marks if mark in made.marks]
        if shared:  # what it has quantised would be read as that
            raise CompatibilityError(explain("its marks are those of another scheme", found=shared))
        if made.config.get("quant_method") in (None, "bitsandbytes"):
            raise CompatibilityError(
                explain("its config names no quant_method of its own", found=str(dict(made.config)))
            )
    return made


TABLE: plugins.Table[Scheme] = plugins.Table(
    room=__name__,
    folder=tuple(__path__),
    group="inlay.schemes",
    what="quantisation scheme",
    choice="--scheme nf4",
    take=_scheme,
)
"""The schemes that exist."""

names, find = TABLE.names, TABLE.find
