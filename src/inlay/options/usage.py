"""A command line as values, by what is known of its flags: nothing is imported that computes.

`--name value` and `--name=value`, with `-` or `_` in the name; a value may begin with a `-` where it can't be a flag, as -1 and
"- one" do. Behind `--` nothing is a flag. What is wrong is said all at once.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from inlay.errors import UsageError, explain, few, nearest
from inlay.options import flag
from inlay.options.flag import Flag

_FLAG = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL).fullmatch

EVERYWHERE = ("json", "debug")
"""The flags that every command has."""


class Fault(NamedTuple):
    """Something that is wrong with a command line."""

    wrong: str
    found: str
    do: str


def read(
    flags: Sequence[Flag], arguments: Sequence[str], given: Mapping[str, Any], hint: Callable[[str], str], usage: str
) -> dict[str, Any]:
    """The values that the arguments give, by the names of the fields that they fill.

    **Arguments:**

    - `given`: values of a configuration file, which need not be given again.
    - `hint`: what to type in place of a flag that there is not.
    - `usage`: what to type where something is missing.

    **Raises:**

    - `UsageError`: there is no such flag, something is missing or too much, or a value is of another kind.
    """
    typed, loose, unknown = _split(flags, arguments)
    _refuse([Fault(f"there is no flag {name}", "", hint(name)) for name in unknown])
    faults = _placed(flags, loose, typed, usage)
    values: dict[str, Any] = {}
    for own in flags:
        if own.name in typed:
            value = _value(own, typed[own.name])
            if isinstance(value, Fault):
                faults.append(value)
            else:
                values[own.name] = value
    _refuse(faults or _missing(flags, values, {**given, **values}, usage))
    return values


def _split(flags: Sequence[Flag], arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """The values of each flag, what stands without a flag, and flags that there are not."""
    names = {name: own for own in flags if not own.is_positional for name in (own.typed, own.short) if name}
    typed: dict[str, list[str]] = {}
    loose: list[str] = []
    unknown: list[str] = []
    left = list(arguments)
    while left:
        text = left.pop(0)
        if text == "--":
            return typed, loose + left, unknown
        if not _FLAG(text):
            loose.append(text)
            continue
        name, has_value, value = text.partition("=")
        own = names.get(name if name in names else name.replace("_", "-"))
        if own is None:
            unknown.append(name)
            continue
        values = [value] if has_value else _behind(own, left)
        before = typed.get(own.name, []) if own.repeats else []
        typed[own.name] = before + values
    return typed, loose, unknown


def _behind(own: Flag, left: list[str]) -> list[str]:
    """The values that stand behind a flag; they are taken off what is left."""
    number = 0 if own.kind in (flag.SWITCH, flag.OFF) else own.num_values or len(left)
    values: list[str] = []
    while left and len(values) < number and not _FLAG(left[0]) and left[0] != "--":
        values.append(left.pop(0))
    return values


def _placed(flags: Sequence[Flag], loose: Sequence[str], typed: dict[str, list[str]], usage: str) -> list[Fault]:
    """Give what stands without a flag to the arguments in their order; what is too much is a fault."""
    left = list(loose)
    for own in flags:
        if own.is_positional and left:
            number = own.num_values or len(left)
            if len(left) < number:
                return [Fault(f"{own.typed} must be given", " ".join(left), usage)]
            typed[own.name], left = left[:number], left[number:]
    found = ", ".join(few(left))
    return [Fault("there is more than the command takes", found, usage)] if left else []


def _missing(flags: Sequence[Flag], values: Mapping[str, Any], known: Mapping[str, Any], usage: str) -> list[Fault]:
    """What has to be given and is not, or can't be given with something else."""
    for own in flags:
        if own.only_with and own.name in values:
            others = [f.typed for f in flags if f.name in values and f.name not in (own.name, *own.only_with)]
            wrong = f"{own.typed} stands alone: what else there is to say was said before"
            return [Fault(wrong, ", ".join(others), f"{own.typed} {own.metavar}")] if others else []
    freed = {name for own in flags if known.get(own.name) for name in own.frees}
    lacks = [own.typed for own in flags if own.is_required and own.name not in known and own.name not in freed]
    return [Fault(f"{' and '.join(lacks)} must be given", "", usage)] if lacks else []


def _value(own: Flag, texts: Sequence[str]) -> Any:
    """The value of a flag, or what is wrong with it."""
    if own.kind in (flag.SWITCH, flag.OFF):
        return Fault(f"{own.typed} takes no value", texts[0], own.typed) if texts else own.kind == flag.SWITCH
    if len(texts) < own.num_values:
        return Fault(f"{own.typed} lacks its value", "", f"{own.typed} {own.takes()}")
    if own.is_map:
        return _pairs(own, texts)
    values: list[Any] = []
    for text in texts:
        value = _chosen(own, text) if own.choices else _plain(own, text)
        if isinstance(value, Fault):
            return value
        values.append(value)
    return values if own.repeats or own.num_values != 1 else values[-1]


def _pairs(own: Flag, texts: Sequence[str]) -> Any:
    if len(texts) % 2:
        return Fault(f"{own.typed} takes pairs", " ".join(texts), f"{own.typed} {own.metavar}")
    values = [_plain(own, text) for text in texts[1::2]]
    return next((value for value in values if isinstance(value, Fault)), dict(zip(texts[::2], values, strict=True)))


def _chosen(own: Flag, text: str) -> Any:
    """A choice, or several with commas between, with `-` or `_` in its name."""
    known = {name.replace("_", "-"): name for name in own.choices}
    values: list[str] = []
    for part in text.split(",") if own.has_commas else [text]:
        plain = part.strip().replace("_", "-")
        if plain not in known:
            known |= {name.replace("_", "-"): name for name in brought(own.plugins)}
        if plain not in known:
            do = f"{own.typed} {known[nearest(plain, known) or next(iter(known))]}"
            return Fault(f"{own.typed} takes no such value", f"{part[:80]!r}; it takes {', '.join(known.values())}", do)
        values.append(known[plain])
    return ",".join(values)


_WORDS = {flag.WHOLE: ("a whole number", "4"), flag.NUMBER: ("a finite number", "0.5")}
"""Kind -> it in words, and a value that fits."""


def _plain(own: Flag, text: str) -> Any:
    """A text as a value of a kind that has no choices."""
    if own.kind == flag.PATH:
        return os.path.expanduser(text)
    if own.kind == flag.TEXT:
        return text
    try:
        number = int(text) if own.kind == flag.WHOLE else float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number
    words, fitting = _WORDS[own.kind]
    return Fault(f"{own.typed} takes {words}", repr(text[:80]), f"{own.typed} {own.default or fitting}")


def brought(group: str) -> list[str]:
    """The names that other packages bring to a group of entry points, without an import of theirs."""
    if not group:
        return []
    from inlay import plugins

    return plugins.brought(group)


def _refuse(faults: Sequence[Fault]) -> None:
    """Raise what is wrong, in one error."""
    if not faults:
        return
    if len(faults) == 1:
        [fault] = faults
        raise UsageError(explain(fault.wrong, found=fault.found or (), do=fault.do))
    found = [f"{fault.wrong}: {fault.found}" if fault.found else fault.wrong for fault in faults]
    do = "; ".join(dict.fromkeys(fault.do for fault in faults))
    raise UsageError(explain("some of this is not as the command takes it", found=found, do=do))
