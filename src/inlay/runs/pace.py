"""How often something is done that takes time of its own, as keeping a state or writing a page."""

import contextlib
import time
from collections.abc import Iterator

PART = 0.01
"""At most this part of the time goes into it."""


class Pace:
    """It is due after `fewest_seconds`, and after as many as make what it took the last time no more than `PART` of them."""

    def __init__(self, fewest_seconds: float):
        self._fewest, self._took = fewest_seconds, 0.0
        self.begin()

    def begin(self) -> None:
        """The time until it is due begins now."""
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """It is time."""
        return time.monotonic() - self._last >= max(self._fewest, self._took / PART)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Within the block it is done."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.begin()
            self._took = self._last - start
