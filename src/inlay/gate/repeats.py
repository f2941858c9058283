"""Rows that say again what others say: duplicates, rows both trained on and evaluated, answers that contradict each other.

Of a row two numbers of 8 bytes are kept, hashes of what it says and of its prompt; sorted at the end, the same lie side by
side.
"""

import json
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from inlay.data.rows import Kept, Row
from inlay.data.split import hash64


class Repeats:
    """The hashes of rows as they come; those to train on first."""

    def __init__(self) -> None:
        self._says, self._asks = array("Q"), array("Q")

    def add(self, rows: Sequence[Kept]) -> None:
        """The next rows."""
        for row in rows:
            self._says.append(hash64(row.content()))
            asked = _asked(row)
            self._asks.append(0 if asked is None else hash64(json.dumps(asked, ensure_ascii=False)))

    def duplicates(self, num_trained: int) -> list[int]:
        """Rows that say what an earlier one says, where both are trained on, or neither."""
        says = self._numbers(self._says)
        is_first = np.zeros(len(says), bool)
        for start, part in ((0, says[:num_trained]), (num_trained, says[num_trained:])):
            is_first[start + np.unique(part, return_index=True)[1]] = True
        return np.flatnonzero(~is_first).tolist()

    def evaluated(self, num_trained: int) -> tuple[list[int], list[int]]:
        """(Rows to train on that are evaluated too, rows that are evaluated and trained on too)."""
        says = self._numbers(self._says)
        train, held = says[:num_trained], says[num_trained:]
        again = num_trained + np.flatnonzero(np.isin(held, train))
        return np.flatnonzero(np.isin(train, held)).tolist(), again.tolist()

    def contradictions(self) -> tuple[list[int], int]:
        """(Rows whose prompt another row answers otherwise, how many such prompts there are)."""
        asks, says = self._numbers(self._asks), self._numbers(self._says)
        pairs = np.unique(np.stack([asks, says], axis=1)[asks != 0], axis=0)
        prompts, answers = np.unique(pairs[:, 0], return_counts=True)
        several = prompts[answers > 1]
        return np.flatnonzero(np.isin(asks, several)).tolist(), len(several)

    @staticmethod
    def _numbers(values: array) -> np.ndarray:
        return np.frombuffer(values, np.uint64) if values else np.empty(0, np.uint64)


def _asked(row: Kept) -> Any:
    """What stands before a row's last answer; None where it asks nothing."""
    if not isinstance(row, Row) or row.messages is None:
        return row.prompt
    last = max((i for i, message in enumerate(row.messages) if message["role"] == "assistant"), default=0)
    return [*row.messages[:last], row.tools] if last else None
