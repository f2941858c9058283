"""Rows that are longer than wanted: how many may be left out, and what would keep them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from inlay.errors import DataError, explain
from inlay.text.mask import Example

MANY, TOO_MANY = 0.1, 0.5
"""Parts of the rows that are left out as too long: beyond the first it is said what would keep them, beyond the second the
rows are refused, unless it was said what happens to longer ones."""


def unheard(done: int, total: int) -> None:
    """Nobody wants to hear how many rows are done."""


def fit(example: Example, max_length: int, too_long: str) -> list[Example]:
    """The row itself where it has at most `max_length` tokens; otherwise nothing ('drop') or its windows ('window').

    A window starts with the last token of the one before it, so that no target is lost: the first token of a window has
    nothing before it to be predicted from. Windows without a target are left out; one token alone is never one.
    """
    if len(example.input_ids) <= max_length:
        return [example]
    if too_long == "drop" or max_length < 2:
        return []
    windows = []
    for start in range(0, len(example.input_ids) - 1, max_length - 1):
        ids, trained = example.input_ids[start : start + max_length], example.trained[start : start + max_length]
        if any(trained[1:]):
            windows.append(dataclasses.replace(example, input_ids=ids, trained=bytes((0, *trained[1:]))))
    return windows


def left_out(
    lengths: Sequence[int],
    max_length: int,
    too_long: str | None,
    positions: int | None,
    *,
    may_be_empty: bool,
    num_left: int,
    can_window: bool = True,
) -> dict[str, Any]:
    """How many rows are left out or cut, and what would keep them: fields of `Prepared`.

    **Raises:**

    - `DataError`: none is left, or less than half although nobody said that longer ones may be left out.
    """
    num_long, is_windowed = sum(length > max_length for length in lengths), too_long == "window"
    if not may_be_empty:
        _check(lengths, max_length, too_long, positions, num_left, ", or --too-long window" if can_window else "")
    return {
        "num_dropped": 0 if is_windowed else num_long,
        "num_windowed": num_long if is_windowed else 0,
        "advice": "" if is_windowed else advice(lengths, max_length, positions),
    }


def _check(
    lengths: Sequence[int], max_length: int, too_long: str | None, positions: int | None, num_left: int, window: str
) -> None:
    num_long = sum(length > max_length for length in lengths)
    found = f"{len(lengths):,} rows, the longest of {max(lengths):,} tokens; max_length={max_length:,}"
    fits = positions is None or max(lengths) <= positions
    longer = f"--max-length {max(lengths)}" if fits else f"shorter rows: the model has {positions:,} positions"
    if not num_left:
        wrong = "no row is left to train on: all are longer than max_length"
        raise DataError(explain(wrong, found=found, do=longer + window))
    if too_long is None and num_long > TOO_MANY * len(lengths):
        wrong = f"{num_long:,} of {len(lengths):,} rows are longer than max_length, and would be left out"
        do = advice(lengths, max_length, positions) + window + ", or --too-long drop to train on the others"
        raise DataError(explain(wrong, found=found, do=do.removeprefix(", or ")))


def advice(lengths: Sequence[int], max_length: int, positions: int | None) -> str:
    """What would keep most of the rows, and all of them, where more than `MANY` are longer than `max_length`."""
    num_long = sum(length > max_length for length in lengths)
    if num_long <= MANY * len(lengths):
        return ""
    ordered = sorted(lengths)
    most, longest = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], ordered[-1]
    wanted = [most, longest] if max_length < most < 0.8 * longest else [longest]
    room = [length for length in wanted if positions is None or length <= positions]
    if not room and positions is not None and positions > max_length:
        room = [positions]
    kept = {length: sum(other <= length for other in lengths) / len(lengths) for length in room}
    return ", ".join(f"--max-length {length} keeps {100 * part:.0f} %" for length, part in kept.items())
