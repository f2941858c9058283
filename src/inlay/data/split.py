"""Which rows are held out, and a digest of rows."""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

from inlay.data.rows import Kept

MIN_ROWS_TO_HOLD_OUT = 20
"""Fewer rows than this are all trained on: a held-out row or two says nothing."""

AnyRow = TypeVar("AnyRow", bound=Kept)


def hold_out(rows: Sequence[AnyRow], fraction: float) -> tuple[list[AnyRow], list[AnyRow]]:
    """(rows to train on, rows held out): by a hash of each row's prompt, so that order does not matter and all answers
    to one prompt are on one side."""
    if len(rows) < MIN_ROWS_TO_HOLD_OUT or fraction == 0:
        return list(rows), []
    parts: tuple[list[AnyRow], list[AnyRow]] = ([], [])
    for row in rows:
        key = row.content() if row.prompt is None else json.dumps(row.prompt, ensure_ascii=False)
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        parts[number < fraction * 2**64].append(row)
    return parts if parts[0] else (list(rows), [])


def digest(rows: Sequence[Kept]) -> str:
    """SHA-256 of the rows' content, in order, in hexadecimal."""
    total = hashlib.sha256()
    for row in rows:
        total.update(row.content().encode() + b"\n")
    return total.hexdigest()
