"""Reading a mapped base ahead, in the order in which its weights are used: down the layers, and up again for the gradients."""

from collections.abc import Sequence

from inlay.io.mapped import Pages

AHEAD_BYTES = 256 << 20
"""How much of what comes next the system is asked for, while the present weight is multiplied."""


class ReadAhead:
    """The pages of every weight, in the order of use, and where in that order the work is."""

    def __init__(self, weights: Sequence[Sequence[Pages]]):
        self._weights = weights
        self._bytes = [sum(pages.stop - pages.start for pages in weight) for weight in weights]
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
