"""A value against the type of the field that it is to fill, whoever gives it: a file, a flag or a program.

    fit(4.0, int) is 4    fit({"q_proj"}, str | tuple[str, ...]) is ("q_proj",)    fit("4", int) is MISFIT

What means the same is taken over into Python's own types, which JSON can hold: whole numbers and numbers of any library,
lists and sets, a single value where several are wanted. A number is finite, a whole number has at most 64 bits with its
sign. Nothing is read out of text: "4" is no number, "no" is not false.
"""

import functools
import itertools
import math
import numbers
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from inlay.errors import ConfigError, explain, nearest

MISFIT: Any = object()
"""What `fit` returns for a value that does not fit."""

MAX_SHOWN = 80
"""As many characters of a value are shown in a message."""

MAX_VALUES = 10_000
"""As many names, patterns or numbers has a setting of several: more can't be told apart in reasonable time."""

_WORDS = {
    bool: ("true or false", ""),
    int: ("a whole number of at most 64 bits", "4"),
    float: ("a finite number", "0.5"),
    str: ("text", "NAME"),
    Path: ("a path", "PATH"),
    type(None): ("null", ""),
}
"""Each plain type in words, and a value that fits."""

_NUMERALS = {int: r"-?\d+", float: r"-?\d*\.?\d+(e-?\d+)?"}


def settle_(instance: Any) -> None:
    """Bring the fields of a frozen dataclass into their types, from its `__post_init__`; see `fitted`."""
    for name, value in fitted(type(instance), vars(instance)).items():
        number = value.count(",") if isinstance(value, str) else len(value) if isinstance(value, Mapping | tuple) else 0
        if number > MAX_VALUES:
            found = f"{name}: {number:,}; at most {MAX_VALUES:,}"
            raise ConfigError(explain("a setting has too many values", found=found, do=f"fewer in {name}, or patterns"))
        object.__setattr__(instance, name, value)


def fitted(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` in the types that the class `cls` declares for them; a name that it does not declare stays as it is.

    **Raises:**

    - `ConfigError`: some do not fit; the message lists all of them.
    """
    declared = _hints(cls)
    fits = {name: fit(value, declared.get(name, Any)) for name, value in values.items()}
    wrong = [name for name, value in fits.items() if value is MISFIT]
    if wrong:
        found = [f"{name}={shown(values[name])}, not {words(declared[name])}" for name in wrong]
        do = " ".join(_flag(name, values[name], declared[name]) for name in wrong)
        raise ConfigError(explain("some settings have values of another kind", found=found, do=do))
    return fits


def fit(value: Any, hint: Any) -> Any:
    """`value` as the type `hint` has it, or `MISFIT`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fit(value, parts[0])
    if origin in (Union, types.UnionType):
        return next((found for part in parts if (found := fit(value, part)) is not MISFIT), MISFIT)
    if origin is Literal:
        return next((choice for choice in parts if type(value) is type(choice) and value == choice), MISFIT)
    if origin is tuple:
        several = sorted(value, key=repr) if isinstance(value, set | frozenset) else value  # a set has no order to keep
        return _items(several if isinstance(several, list | tuple) else [value], parts[0])
    if origin is Mapping:
        if not isinstance(value, Mapping):
            return MISFIT
        keys, items = _items(value.keys(), parts[0]), _items(value.values(), parts[1])
        return MISFIT if MISFIT in (keys, items) else dict(zip(keys, items, strict=True))
    return _plain(value, hint)


def _items(values: Iterable[Any], hint: Any) -> Any:
    """Values as a tuple of the type `hint`, or `MISFIT`."""
    found = tuple(fit(value, hint) for value in values)
    return MISFIT if any(value is MISFIT for value in found) else found


def shown(value: Any) -> str:
    """A value for a message, cut where it is long; no more of it is written out than is shown."""
    return cut(repr(_beginning(value, [MAX_SHOWN])))


def cut(text: str) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _beginning(value: Any, left: list[int]) -> Any:
    """As much of a value as `left` characters show: lists within lists may unfold to more than any memory holds."""
    left[0] -= 1
    kind: Any = type(value)
    if isinstance(value, str | bytes):
        left[0] -= min(len(value), MAX_SHOWN)
        return value[: MAX_SHOWN + 1]
    if kind in (list, tuple, set, frozenset):
        return kind(_beginning(item, left) for item in itertools.takewhile(lambda item: left[0] > 0, value))
    if kind is dict:
        some = itertools.takewhile(lambda pair: left[0] > 0, value.items())
        return {_beginning(key, left): _beginning(item, left) for key, item in some}
    is_long = isinstance(value, int) and value.bit_length() > 4 * MAX_SHOWN
    return f"a number of {value.bit_length():,} bits" if is_long else value


def words(hint: Any) -> str:
    """What fits `hint`, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return words(parts[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(words, parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return f"a list, each {words(parts[0])}"
    if origin is Mapping:
        return f"a mapping of names, each to {words(parts[1])}"
    return _WORDS[hint][0] if hint in _WORDS else "such a value"


def _plain(value: Any, hint: Any) -> Any:
    """`value` as a type that is made of no others; any value where no type of `_WORDS` is asked for."""
    if hint in (int, float):
        return _number(value, hint)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return value if hint not in _WORDS or isinstance(value, hint) else MISFIT


def _number(value: Any, hint: Any) -> Any:
    kind = type(value)
    if kind is bool or not issubclass(kind, numbers.Real):
        return MISFIT
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the floating-point ones
        return MISFIT
    if not math.isfinite(number):
        return MISFIT
    whole = int(value)
    if hint is float:
        return whole if issubclass(kind, numbers.Integral) else number
    return whole if whole == value and -(2**63) <= whole < 2**63 else MISFIT


def _flag(name: str, value: Any, hint: Any) -> str:
    """A flag that fits: with the choice that `value` is nearest to, where there are choices."""
    return f"--{name.replace('_', '-')} {_example(value, hint)}".rstrip()


def _example(value: Any, hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return nearest(shown(value).strip("'"), map(str, parts)) or str(parts[0])
    if origin is Mapping:
        return " ".join(_example(value, part) for part in parts)
    if parts:
        return _example(value, parts[0])
    quoted = isinstance(value, str) and re.fullmatch(_NUMERALS.get(hint, "(?!)"), value)
    return value if quoted else _WORDS.get(hint, ("", "VALUE"))[1]


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)
