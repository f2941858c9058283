"""Which rows are held out, and a digest of rows."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from inlay.data.rows import Kept
from inlay.data.sources import VALIDATION, Data, Source

MIN_ROWS_TO_HOLD_OUT = 20
"""Fewer rows than this are all trained on: a held-out row or two says nothing."""

AnyRow = TypeVar("AnyRow", bound=Kept)
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Divided(Generic[AnyRow]):
    """What a run learns from."""

    rows: list[AnyRow]
    held_out: list[AnyRow]
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


def hold_out(rows: Sequence[AnyRow], fraction: float) -> tuple[list[AnyRow], list[AnyRow]]:
    """(rows to train on, rows held out): by a hash of each row's prompt, so that order does not matter and all answers
    to one prompt are on one side.

    Never more than twice the part that is asked for, and never none where there are rows enough: the answers to a prompt that
    more rows share are told apart by what they say, and where the hash alone goes beyond these bounds, the rows of the
    smallest hashes are taken, as many as are asked for. Only rows that all say the same can't be told apart.
    """
    if len(rows) < MIN_ROWS_TO_HOLD_OUT or fraction == 0:
        return list(rows), []
    wanted = max(1.0, fraction * len(rows))
    groups = _groups(rows, int(2 * wanted))
    held = {key for key in groups if hash64(key) < fraction * 2**64}
    most = min(2 * wanted, len(rows) - 1)
    if not 0 < sum(len(groups[key]) for key in held) <= most:
        held = _smallest(groups, wanted, most)
    out = {i for key in held for i in groups[key]}
    return [row for i, row in enumerate(rows) if i not in out], [rows[i] for i in sorted(out)]


def _smallest(groups: Mapping[str, Sequence[int]], wanted: float, most: float) -> set[str]:
    """The groups of the smallest hashes: as many as hold `wanted` rows, and `most` at most."""
    held, total = set[str](), 0
    for key in sorted(groups, key=hash64):
        if total < wanted and total + len(groups[key]) <= most:
            held.add(key)
            total += len(groups[key])
    return held


def _groups(rows: Sequence[Kept], most: int) -> dict[str, list[int]]:
    """The numbers of the rows that stay together: those of one prompt, or of one content where more than `most` share it."""
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        key = row.content() if row.prompt is None else json.dumps(row.prompt, ensure_ascii=False)
        by_prompt.setdefault(key, []).append(i)
    groups: dict[str, list[int]] = {}
    for key, numbers in by_prompt.items():
        for i in numbers:
            groups.setdefault(key if len(numbers) <= most else rows[i].content(), []).append(i)
    return groups


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
