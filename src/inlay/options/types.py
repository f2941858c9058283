"""How fields say what is typed for them, where their type does not."""

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any

from inlay import fields
from inlay.errors import ConfigError, explain
from inlay.plugins import Table

MAX_LAYER = 100_000
"""Layers are counted up to here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """What stands in `Annotated` beside the type of a field that is a flag; `inlay.options.flag.Flag` says what each means."""

    name: str = ""
    """What it is called, where its own name would be a word of Python's."""
    metavar: str = ""
    short: str = ""
    choices: tuple[str, ...] = ()
    plugins: str = ""
    has_commas: bool = False
    repeats: bool = False
    is_positional: bool = False
    is_required: bool = False
    """It has to be given though the field has a default: only where something else is given too, it need not be."""
    frees: tuple[str, ...] = ()
    only_with: tuple[str, ...] = ()


def one_of(names: Iterable[str], *, name: str = "", plugins: str = "") -> Mark:
    """What a flag is marked with that takes one of these names, or one that other packages bring to a group of entry points."""
    return Mark(name=name, choices=tuple(names), plugins=plugins)


def found_in(table: Table[Any], *, several: bool = False) -> Mark:
    """What a flag is marked with that takes the name of a thing of this kind, or several with commas between."""
    return Mark(choices=tuple(table.ours()), plugins=table.group, has_commas=several)


def repeated(kind: Any, metavar: str = "") -> Any:
    """The type of a flag that may be given several times."""
    return Annotated[tuple[kind, ...], Mark(repeats=True, metavar=metavar)]


def layers(text: str) -> tuple[int, ...] | None:
    """'0-5,11' as layer numbers; 'all' as None."""
    if text == "all":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        valid = all(number.isdecimal() and len(number) < 10 for number in (first, last or first))
        if not valid or int(last or first) > MAX_LAYER or len(numbers) > MAX_LAYER:
            raise ConfigError(
                explain("this names no layers", found=fields.shown(text), do="--layers-to-transform 0-5,11")
            )
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)
