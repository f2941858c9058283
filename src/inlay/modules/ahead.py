"""Reading a mapped base ahead, in the order in which its weights are used: down the layers, and up again for the gradients.

A base that does not fit into memory is also let go of, those weights first that were used longest ago. Left to itself, the
system keeps pages that a process has touched and drops those that it has only just read ahead: three times as much was read.
"""

from collections.abc import Sequence

from inlay.io.mapped import Pages
from inlay.kernels import native

AHEAD_BYTES = 256 << 20
"""How much of what comes next the system is asked for, while the present weight is multiplied."""

HELD = 0.6
"""Part of the free memory that a base which does not fit into it holds; what is read ahead, and all else, have the rest."""


class ReadAhead:
    """The pages of every weight, in the order of use, and where in that order the work is.

    **Arguments:**

    - `weights`: the pages of each.
    - `free_bytes`: memory that is free for them.
    """

    def __init__(self, weights: Sequence[Sequence[Pages]], free_bytes: int):
        self._weights = weights
        self._bytes = [sum(pages.stop - pages.start for pages in weight) for weight in weights]
        self._most = None if sum(self._bytes) <= HELD * free_bytes else int(HELD * free_bytes)
        self._held: dict[int, None] = {}  # in the order of their last use
        self._at = -1
        self._asked = range(0)  # those that were asked for and have not been passed

    def use(self, number: int) -> None:
        """Weight `number` is used now: ask for those that follow in the direction of the last two."""
        down = number >= self._at
        self._at = number
        step = 1 if down else -1
        left, other = AHEAD_BYTES, number + step
        while 0 <= other < len(self._weights) and left > 0:
            if other not in self._asked:
                for pages in self._weights[other]:
                    pages.prefetch()
            left -= self._bytes[other]
            other += step
        self._asked = range(number + 1, other) if down else range(other + 1, number)
        if self._most is not None:
            native.not_again()  # what is read ahead and let go of depends on each use
            self._hold(number, self._most)

    def _hold(self, number: int, most: int) -> None:
        """Count weight `number` among those that are held, and let go of what that makes too much."""
        self._held.pop(number, None)
        self._held[number] = None
        total = sum(self._bytes[held] for held in self._held)
        for oldest in list(self._held):
            if total <= most:
                break
            for pages in self._weights[oldest]:
                pages.release()
            total -= self._bytes[oldest]
            del self._held[oldest]
