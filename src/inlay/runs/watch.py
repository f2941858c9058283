"""Memory watched within a run: a micro-batch that would go beyond the limit is split before it is computed.

    floor + fixed + bytes_per_token * tokens <= limit

`floor` is what the process holds between two micro-batches. Freed blocks stay with the process (`inlay.process`), so that it
may hold more than that: where a micro-batch might then not fit, or where the run has come to hold more than was foreseen, it
hands them back first, and `floor` is what is left. Far below its limit a run never does, and takes no longer for being watched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from inlay.errors import CapacityError, explain
from inlay.process import release_freed_blocks, rss_bytes
from inlay.screen import size

GROWN = 0.25
"""As much of what the largest micro-batch takes is asked for at most by what comes between two of them."""

HOLES = 0.3
"""As much of the freed blocks that a micro-batch finds, or of itself where it is smaller, ends up in holes between blocks."""


class Watch:
    """The memory that a run may hold.

    **Arguments:**

    - `limit_bytes`: as much may the process hold; `why`, in a few words.
    - `floor_bytes`: as much does it hold beside a micro-batch, which takes `fixed_bytes`, and `bytes_per_token`.
    - `tokens`: how many tokens some rows are to the model, when they go through it together.
    - `expected_bytes`: what the run was foreseen to hold.
    - `held`: how much the process holds now; `release`: hands freed blocks back, and says whether it can.

    **Attributes:**

    - `num_splits`: how many micro-batches were split.
    """

    def __init__(
        self,
        limit_bytes: int,
        why: str,
        floor_bytes: float,
        bytes_per_token: float,
        tokens: Callable[[Sequence[Any]], int],
        *,
        fixed_bytes: float = 0.0,
        expected_bytes: float | None = None,
        held: Callable[[], int] = rss_bytes,
        release: Callable[[], bool] = release_freed_blocks,
    ):
        self.limit_bytes, self.why = limit_bytes, why
        self._floor, self._fixed, self._each = floor_bytes, fixed_bytes, max(1.0, bytes_per_token)
        self._expected = limit_bytes if expected_bytes is None else min(expected_bytes, limit_bytes)
        self._tokens, self._held, self._release, self._largest = tokens, held, release, 0
        self.num_splits = 0

    def make_room(self, tokens: int | None = None) -> None:
        """Hand freed blocks back where so many tokens, or the most so far, might not fit beside them."""
        held, needed = self._held(), self._needed(self._largest if tokens is None else tokens)
        freed = max(0.0, held - self._floor)
        reached = self._floor + max(freed, needed) + HOLES * min(freed, needed)
        if tokens is None:
            reached = held + GROWN * needed
        if held + needed <= self.limit_bytes and reached <= self._expected:
            return
        if self._release():
            self._floor = self._held()
        else:  # what is held is what the largest micro-batch so far has needed, or the floor has risen
            self._floor += max(0.0, held - self._floor - self._needed(self._largest))

    def most_tokens(self, tokens: int = 0) -> int:
        """As many may go through the model now, where so many are to."""
        self.make_room(max(tokens, self._largest))
        return int((self.limit_bytes - self._floor - self._fixed) / self._each)

    def within(
        self, parts: Iterable[list[Any]], split: Callable[[list[Any], int], Iterable[list[Any]]]
    ) -> Iterator[list[Any]]:
        """The same rows in micro-batches that fit; `split` divides rows by a number of tokens.

        **Raises:**

        - `CapacityError`: a row alone does not fit.
        """
        for part in parts:
            before = self.num_splits
            yield from self._fitting(part, split)
            self.num_splits = min(self.num_splits, before + 1)

    def _fitting(self, part: list[Any], split: Callable[[list[Any], int], Iterable[list[Any]]]) -> Iterator[list[Any]]:
        tokens = self._tokens(part)
        most = self.most_tokens(tokens)
        if tokens <= most:
            self._largest = max(self._largest, tokens)
            yield part
            return
        smaller = list(split(part, max(1, most)))
        if len(smaller) == 1:
            raise self._too_long(part)
        self.num_splits += 1
        for some in smaller:
            yield from self._fitting(some, split)

    def _needed(self, tokens: int) -> float:
        return self._fixed + self._each * tokens if tokens else 0.0

    def _too_long(self, part: list[Any]) -> CapacityError:
        tokens = self._tokens(part)
        most = max(0, int((self.limit_bytes - self._floor - self._fixed) / self._each))
        needed = self._floor + self._needed(tokens)
        have = f"{size(self.limit_bytes)} are there ({self.why})"
        found = f"{tokens:,} tokens that go through the model together need {size(needed)}; {have}"
        do = f"--memory {-(-needed // 1e8) / 10:.1f}GB, or --max-length {most} where rows are as long"
        return CapacityError(explain("a row does not fit into the memory that there is", found=found, do=do))
