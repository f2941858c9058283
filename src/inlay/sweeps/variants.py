"""The runs of a sweep: every combination of the values of what is swept, for every source of rows.

    {"learning_rate": (1e-4, 1e-3), "r": (8, 32)}   ->   learning-rate-0.0001-r-8, learning-rate-0.0001-r-32, ...

What may be swept is a setting, a field of the method, or the method. What is of the base, which all runs share, or of the rows,
by which they are compared, is refused.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inlay import fields, methods
from inlay.data.sources import Source, name_of
from inlay.errors import ConfigError, explain, nearest
from inlay.methods.contract import Method
from inlay.training.settings import LOOKED_AT, Settings

METHOD = "method"
"""What the method is swept by."""

MAX_RUNS = 256
"""More than these are a slip of the pen."""

_ROWS = "it changes the rows, and losses on other rows can't be compared"
_NOTHING = "it changes nothing of what is learned"
_BASE = "it is of the base, which all runs share"
REFUSED = {
    **dict.fromkeys(("max_length", "too_long", "train_on", "eval_fraction", "eval_rows"), _ROWS),
    **dict.fromkeys((*LOOKED_AT, "micro_batch_tokens"), _NOTHING),
    **dict.fromkeys(("model", "quantize", "dtype", "device", "device_memory", "task"), _BASE),
    **dict.fromkeys(("data", "eval_data"), "each data file has a run by --each"),
    **dict.fromkeys(("from", "from_adapter"), "all runs go on from one adapter, or begin"),
}
"""What can't be swept, and why."""

_LONGEST = 80
"""As many characters has the name of a run."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One run of a sweep."""

    name: str
    """What its adapter is called, and the directory that it is written to."""
    source: Source
    method: Method | str | None
    settings: Settings
    swept: dict[str, Any]
    """What it has of what is swept."""


def variants(
    sources: Sequence[Source],
    method: Method | str | None,
    settings: Settings,
    over: Mapping[str, Sequence[Any]],
) -> list[Variant]:
    """Every run of a sweep, in order: by source, and then as a counter of several digits runs, the last thing swept first.

    **Arguments:**

    - `method`: what the methods of runs are made from; None where an adapter brings its own.
    - `over`: setting, field of the method, or `METHOD` -> its values.

    **Raises:**

    - `ConfigError`: something can't be swept, or a method has no such field; or there is nothing to sweep, or too much.
    """
    over = {key.replace("-", "_"): tuple(values) for key, values in over.items()}
    _check(over, len(sources))
    combinations = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    found: dict[str, Variant] = {}
    for source, swept in itertools.product(sources, combinations):
        words = [*_stem(source, len(sources)), *(f"{key.replace('_', '-')}-{label(swept[key])}" for key in swept)]
        name = _free(_slug("-".join(words)), found)
        found[name] = Variant(name, source, *_made(method, settings, swept), swept)
    return [*found.values()]


def label(value: Any) -> str:
    """A value that is swept, in a word."""
    if isinstance(value, Method):
        return methods.name_of(value)
    if isinstance(value, list | tuple):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _check(over: Mapping[str, Sequence[Any]], num_sources: int) -> None:
    for key, values in over.items():
        if why := REFUSED.get(key):
            raise ConfigError(explain("this can't be swept", found=f"{key}: {why}", do=f"a run for each {key}"))
        if not values or len(set(map(label, values))) < len(values):
            found = f"{key}: {', '.join(map(label, values)) or 'none'}"
            raise ConfigError(explain("what is swept has several values, each once", found=found, do=_example(key)))
    number = num_sources
    for values in over.values():
        number *= len(values)
    if number < 1 or number > MAX_RUNS:
        found = f"{number:,} runs; at most {MAX_RUNS}"
        raise ConfigError(explain("there are too many runs" if number else "there is no run", found=found))


def _made(method: Method | str | None, settings: Settings, swept: Mapping[str, Any]) -> tuple[Any, Settings]:
    """(the method, the settings) of a run, with what it has of what is swept."""
    own = {key: value for key, value in swept.items() if key in _names(Settings)}
    others = {key: value for key, value in swept.items() if key not in own and key != METHOD}
    chosen = _method(method, swept[METHOD]) if METHOD in swept else method
    if others:
        chosen = methods.find(chosen or "lora")() if isinstance(chosen, str | None) else chosen
        unknown = [key for key in others if key not in _names(type(chosen))]
        if unknown:
            raise _unknown(unknown[0], chosen)
        chosen = dataclasses.replace(chosen, **fields.fitted(type(chosen), others))
    return chosen, dataclasses.replace(settings, **fields.fitted(Settings, own))


def _method(given: Method | str | None, asked: Any) -> Method:
    """A method that is swept: the one given, where that is asked for by its name."""
    if isinstance(asked, Method):
        return asked
    is_given = isinstance(given, Method) and methods.name_of(given) == asked
    made: Method = given if is_given else methods.find(str(asked))()  # type: ignore[assignment]  # it is one
    return made


def _names(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _unknown(key: str, method: Method) -> ConfigError:
    """The error for what is neither a setting nor a field of the method."""
    near = nearest(key, {*_names(Settings), *_names(type(method)), METHOD} - REFUSED.keys())
    found = f"{key}, with the method {methods.name_of(method)}"
    return ConfigError(explain("this is no setting and no field of the method", found=found, do=_example(near or "r")))


def _example(key: str) -> str:
    return f"--sweep {key.replace('_', '-')}=VALUE,VALUE"


def _stem(source: Source, number: int) -> Iterator[str]:
    """What the runs of a source are called after, where there are several."""
    if number > 1:
        is_path = isinstance(source, str | os.PathLike)
        yield os.path.basename(os.fspath(source)).partition(".")[0] if is_path else name_of(source)


def _slug(text: str) -> str:
    """A text as the name of a directory, and of an adapter."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.")[:_LONGEST].rstrip("-.") or "run"


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """A name that no run has."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)
