"""What a run may take, and the way to run it that keeps to that at the least cost.

Ways are tried in the order of what they cost: activations that are recomputed give the same numbers a little later, fewer
tokens at a time take longer by the products' overhead, a quantised base by some percent, and learns on other weights. None of
them changes the rows of a step, so that the batch that the optimiser sees stays what it is.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from inlay.errors import CapacityError, ConfigError, explain
from inlay.runs.forecast import Forecast
from inlay.screen import size

SCHEME = "nf4"
"""What a base is quantised by where memory asks for it: the smallest that trains as well."""

TOKENS = (1024, 512, 256, 128, 1)
"""How many tokens go through the model at a time, where all that suit it are too many; a row alone may be longer."""

LARGEST = 1 << 60
"""Budgets beyond this are none."""

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may take; None: all that there is."""

    memory_bytes: int | None = None
    seconds: float | None = None
    disk_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Way:
    """How a run is run, as far as memory can decide it."""

    quantize: str | None
    micro_batch_tokens: int | None
    recompute: bool = False


def num_bytes(flag: str, text: str) -> int:
    """A size such as 6GB, 1.5GB or 500MB in bytes, above 0.

    **Raises:**

    - `ConfigError`: it is none.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kMGT]?)B", text.strip())
    number = int(float(match[1]) * 1000 ** ("", "k", "M", "G", "T").index(match[2])) if match else 0
    if not 0 < number < LARGEST:
        raise ConfigError(explain("this is no size that a run could keep to", found=f"{flag} {text}", do=f"{flag} 6GB"))
    return number


def num_seconds(flag: str, text: str) -> float:
    """A time such as 2h, 90min, 1h30m or 45s in seconds, above 0.

    **Raises:**

    - `ConfigError`: it is none.
    """
    parts = re.findall(r"(\d{1,9}(?:\.\d{1,6})?)\s*(min|[smhd])", text)
    left = re.sub(r"\d{1,9}(?:\.\d{1,6})?\s*(?:min|[smhd])", "", text).strip()
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if left or not 0 < total < LARGEST:
        raise ConfigError(explain("this is no time that a run could keep to", found=f"{flag} {text}", do=f"{flag} 2h"))
    return total


def read(memory: str | None, time: str | None, disk: str | None, flag: Callable[[str], str]) -> Budget:
    """The budget of these sizes and this time, each under the name that `flag` makes of its own.

    **Raises:**

    - `ConfigError`: one is no size, or no time.
    """
    return Budget(
        memory_bytes=None if memory is None else num_bytes(flag("memory"), memory),
        seconds=None if time is None else num_seconds(flag("time"), time),
        disk_bytes=None if disk is None else num_bytes(flag("disk"), disk),
    )


def check_disk(budget: Budget, forecast: Forecast) -> None:
    """Refuse a run that has no other way, and needs more of the disk than it may add.

    **Raises:**

    - `CapacityError`: it does; the message names the smallest budget that would do.
    """
    if "disk" in _beyond(budget, forecast):
        raise _refused(budget, [forecast])


def ways(asked: Way, can_quantize: bool) -> Iterator[Way]:
    """As it was asked for, then what takes less and less memory."""
    schemes = (asked.quantize, SCHEME) if can_quantize and asked.quantize is None else (asked.quantize,)
    fewer = [tokens for tokens in TOKENS if tokens < (asked.micro_batch_tokens or LARGEST)]
    yield asked
    for scheme in schemes:
        for tokens in (asked.micro_batch_tokens, *fewer):
            if (way := Way(scheme, tokens, recompute=True)) != asked:
                yield way


def choose(
    budget: Budget, asked: Way, foresee: Callable[[Way], Forecast], *, can_quantize: bool
) -> tuple[Way, Forecast]:
    """The first way that keeps to the budget's memory and disk, and what it takes.

    **Arguments:**

    - `asked`: the way that the settings name.
    - `foresee`: what a run takes that is run in some way.

    **Raises:**

    - `CapacityError`: none does; the message names the smallest budget that would.
    """
    tried: list[tuple[Way, Forecast]] = []
    for way in ways(asked, can_quantize):
        tried.append((way, foresee(way)))
        if not _beyond(budget, tried[-1][1]):
            return tried[-1]
    raise _refused(budget, [forecast for _, forecast in tried])


def _beyond(budget: Budget, forecast: Forecast) -> list[str]:
    """What of a forecast does not fit, by the name of its flag."""
    taken = {"memory": forecast.memory_bytes, "disk": forecast.disk_bytes}
    given = {"memory": budget.memory_bytes, "disk": budget.disk_bytes}
    return [name for name, value in taken.items() if (limit := given[name]) is not None and value > limit]


def _refused(budget: Budget, tried: Sequence[Forecast]) -> CapacityError:
    """The error where no way fits."""
    with_disk = [f for f in tried if budget.disk_bytes is None or f.disk_bytes <= budget.disk_bytes]
    if not with_disk:
        least = min(forecast.disk_bytes for forecast in tried)
        found = f"at least {size(least)}; --disk allows {size(budget.disk_bytes or 0)}"
        return CapacityError(explain("this run needs more of the disk", found=found, do=f"--disk {above(least)}"))
    least = min(forecast.memory_bytes for forecast in with_disk)
    found = f"about {size(least)} at least; {size(budget.memory_bytes or 0)} is what there is"
    do = f"--memory {above(least)}, a smaller --max-length, or a smaller base"
    return CapacityError(explain("this run needs more memory, however it is run", found=found, do=do))


def above(number: int) -> str:
    """A size that can be typed, not below this one."""
    unit, name = (10**9, "GB") if number >= 10**9 else (10**6, "MB")
    return f"{-(-10 * number // unit) / 10:g}{name}"
