"""The command that makes the same run again, for the card of an adapter: what is not as it is unless asked."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from inlay import methods
from inlay.methods.contract import Method
from inlay.tasks.contract import DEFAULT_TASK
from inlay.training.settings import Settings


def command(
    base: str,
    data: str,
    task: str,
    method: Method,
    settings: Settings,
    *,
    goes_on: str | None = None,
    others: Mapping[str, str | None],
) -> str:
    """`inlay train` with the flags of a run.

    **Arguments:**

    - `base`, `data`: what they are called, without the folders that they lie in.
    - `goes_on`: the adapter that it started from, whose method it has.
    - `others`: flag -> its value, of what is neither the method's nor a setting; None leaves it out.
    """
    said = [part for flag, value in others.items() if value is not None for part in (flag, value)]
    said += [] if task == DEFAULT_TASK else ["--task", task]
    if goes_on is not None:
        said += ["--from", goes_on]
    else:
        said += ["--method", methods.name_of(method), *_flags(method)]
    return shlex.join(["inlay", "train", base, data, "--output", "DIR", *said, *_flags(settings)])


def _flags(values: Any) -> Iterator[str]:
    """The fields of a dataclass that are not as they are by default, as flags."""
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        is_made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if is_made else field.default  # type: ignore[misc]  # it is one
        if value == default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, Mapping):
            yield from (flag, *(str(part) for item in value.items() for part in item))
        elif isinstance(value, tuple):
            yield from (flag, ",".join(map(str, value)))
        elif isinstance(value, bool):
            yield flag if value else f"--no-{flag.removeprefix('--')}"
        else:
            yield from (flag, str(value))
