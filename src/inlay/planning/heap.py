"""How far blocks reach in the heap that come and go: more than is in use at once, by the holes between them.

torch asks for blocks at multiples of `ALIGNMENT`. glibc looks for the smallest hole of 96 bytes more, and frees what is left
over before and behind the block. Small blocks come from these ends (its cache for a thread keeps some of every size), and as
long as such a one lives there, the hole that the block leaves is too small for another of the same size.

    reach = the highest address that a block came to, from an empty heap

Here an end is taken for as long as `TAKEN` of the blocks that are noted come and go: so say the runs of `benchmarks.forecast
--fit`, whose heaps were 1.2 to 1.6 times what was in use and are right so to 5 % (root mean square).
"""

import bisect
from collections import deque
from collections.abc import Iterable

ALIGNMENT, UNIT, LEAST = 64, 16, 32
"""Of torch's blocks; of glibc's, whose least has 32 bytes."""

MOST_TAKEN_BYTES = 1040
"""Ends of this size at most are kept for small blocks."""

TAKEN = 300
"""As many blocks come or go before an end is free again."""


def reach(events: Iterable[tuple[int, int | None]]) -> int:
    """The bytes of heap that blocks reach.

    **Arguments:**

    - `events`: (the number of a block, its bytes where it comes and None where it goes), in order.
    """
    heap = _Heap()
    for number, size in events:
        heap.pass_by()
        if size is None:
            heap.free(number)
        else:
            heap.take(number, size)
    return heap.most


class _Heap:
    """Blocks, and the holes between them, as (address, bytes)."""

    def __init__(self) -> None:
        self.top = self.most = 0
        self._blocks: dict[int, tuple[int, int]] = {}
        self._by_size: list[tuple[int, int]] = []
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}
        self._ends: deque[tuple[int, int, int]] = deque()
        self._now = 0

    def pass_by(self) -> None:
        """A block comes or goes: ends that were taken long ago are free again."""
        self._now += 1
        while self._ends and self._ends[0][0] <= self._now:
            self._add(*self._ends.popleft()[1:])

    def take(self, number: int, size: int) -> None:
        needed = max(LEAST, -(-(size + 8) // UNIT) * UNIT)
        start, held = self._hole(needed + ALIGNMENT + LEAST)
        before = -(start + UNIT) % ALIGNMENT
        before += ALIGNMENT if 0 < before < LEAST else 0
        behind = held - before - needed
        if before:
            self._end(start, before)
        if behind > LEAST:
            self._end(start + before + needed, behind)
            held -= behind
        self._blocks[number] = start + before, held - before

    def free(self, number: int) -> None:
        self._add(*self._blocks.pop(number))

    def _hole(self, size: int) -> tuple[int, int]:
        i = bisect.bisect_left(self._by_size, (size, -1))
        if i == len(self._by_size):
            start = self.top
            self.top += size
            self.most = max(self.most, self.top)
            return start, size
        held, start = self._by_size[i]
        self._drop(start, held)
        if held - size < LEAST:
            return start, held
        self._add(start + size, held - size)
        return start, size

    def _end(self, start: int, size: int) -> None:
        if size <= MOST_TAKEN_BYTES:
            self._ends.append((self._now + TAKEN, start, size))
        else:
            self._add(start, size)

    def _add(self, start: int, size: int) -> None:
        """A hole, one with those beside it."""
        if (before := self._by_end.get(start)) is not None:
            self._drop(before, start - before)
            start, size = before, start + size - before
        if (behind := self._by_start.get(start + size)) is not None:
            self._drop(start + size, behind)
            size += behind
        if start + size == self.top:
            self.top = start
            return
        bisect.insort(self._by_size, (size, start))
        self._by_start[start], self._by_end[start + size] = size, start

    def _drop(self, start: int, size: int) -> None:
        self._by_size.pop(bisect.bisect_left(self._by_size, (size, start)))
        del self._by_start[start], self._by_end[start + size]
