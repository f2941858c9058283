"""Which rows are held out, and a digest of rows."""

import dataclasses
import hashlib
import json
import math
from array import array
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

from inlay.data.rows import Kept
from inlay.data.sources import VALIDATION, Data, Source
from inlay.disk import OnDisk, Picked

MIN_ROWS_TO_HOLD_OUT = 20
"""Fewer rows than this are all trained on: a held-out row or two says nothing."""

AnyRow = TypeVar("AnyRow", bound=Kept)
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Divided(Generic[AnyRow]):
    """What a run learns from."""

    rows: Sequence[AnyRow]
    held_out: Sequence[AnyRow]
    notes: tuple[str, ...]
    """What there is to say about them."""
    found: Data[AnyRow]
    """What was read of the source."""


def divided(
    read: Callable[..., Data[AnyRow]], source: Source, eval_data: Source | None, fraction: float
) -> Divided[AnyRow]:
    """The rows of a source, and those held out: of `eval_data`, of the source's own validation split, or a part of its rows."""
    found = read(source)
    notes = list(found.notes)
    if eval_data is not None:
        held = read(eval_data, VALIDATION)
        notes += [f"held out: {note}" for note in held.notes]
        notes += [f"left alone: {found.held_out_name}, since other rows are held out"] * bool(found.held_out)
        return Divided(found.rows, held.rows, tuple(notes), found)
    if found.held_out and fraction:
        notes.append(f"held out: {found.held_out_name}, as the data has it")
        return Divided(found.rows, found.held_out, tuple(notes), found)
    if found.held_out:
        notes.append(f"left alone: {found.held_out_name}, since nothing is held out")
        return Divided(found.rows, [], tuple(notes), found)
    return Divided(*hold_out(found.rows, fraction), tuple(notes), found)


def hold_out(rows: Sequence[AnyRow], fraction: float) -> tuple[Sequence[AnyRow], Sequence[AnyRow]]:
    """(rows to train on, rows held out): by a hash of each row's prompt, so that order does not matter and all answers
    to one prompt are on one side.

    Never more than twice the part that is asked for, and never none where there are rows enough: the answers to a prompt that
    more rows share are told apart by what they say, and where the hash alone goes beyond these bounds, the rows of the
    smallest hashes are taken, as many as are asked for. Only rows that all say the same can't be told apart.
    """
    if len(rows) < MIN_ROWS_TO_HOLD_OUT or fraction == 0:
        return rows if isinstance(rows, OnDisk) else list(rows), []
    wanted = max(1.0, fraction * len(rows))
    most = min(2 * wanted, len(rows) - 1)
    keys = _keys(rows, int(most))
    held = keys < np.uint64(min(math.ceil(fraction * 2**64), 2**64 - 1))
    if not 0 < held.sum() <= most:
        held = np.isin(keys, _smallest(keys, wanted, most))
    return _picked(rows, ~held), _picked(rows, held)


def _picked(rows: Sequence[AnyRow], chosen: np.ndarray) -> Sequence[AnyRow]:
    """The rows for which it is true; those of a file stay there."""
    numbers = np.flatnonzero(chosen)
    return Picked(rows, array("q", numbers)) if isinstance(rows, OnDisk) else [rows[i] for i in numbers.tolist()]


def _smallest(keys: np.ndarray, wanted: float, most: float) -> np.ndarray:
    """The smallest keys: as many as hold `wanted` rows, and `most` at most."""
    held, total = list[int](), 0
    found, counts = np.unique(keys, return_counts=True)
    for one, count in zip(found.tolist(), counts.tolist(), strict=True):
        if total < wanted and total + count <= most:
            held.append(one)
            total += count
    return np.array(held, np.uint64)


def _keys(rows: Sequence[Kept], most: int) -> np.ndarray:
    """For each row the hash of what rows that stay together share: their prompt, or all, where more than `most` share that."""
    keys = np.fromiter((hash64(_prompt(row)) for row in rows), np.uint64, len(rows))
    _, groups, counts = np.unique(keys, return_inverse=True, return_counts=True)
    for i in np.flatnonzero(counts[groups] > most).tolist():
        keys[i] = hash64(rows[i].content())
    return keys


def _prompt(row: Kept) -> str:
    return row.content() if row.prompt is None else json.dumps(row.prompt, ensure_ascii=False)


def hash64(key: str) -> int:
    """A hash of 64 bits."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def digest(rows: Sequence[Kept]) -> str:
    """SHA-256 of the rows' content, in order, in hexadecimal."""
    total = hashlib.sha256()
    for row in rows:
        total.update(row.content().encode() + b"\n")
    return total.hexdigest()


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly over all of them."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
