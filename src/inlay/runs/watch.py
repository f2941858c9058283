"""Memory watched within a run: a micro-batch that would go beyond the limit is split before it is computed.

    floor + bytes_per_token * tokens <= limit

`floor` is what the process holds beside activations. Freed blocks stay with the process (`inlay.process`), so that what it
holds is what its largest micro-batch so far has needed; where it holds more than that, the floor has risen.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from inlay.errors import CapacityError, explain
from inlay.process import rss_bytes
from inlay.screen import size


class Watch:
    """The memory that a run may hold.

    **Arguments:**

    - `limit_bytes`: as much may the process hold; `why`, in a few words.
    - `floor_bytes`: as much does it hold beside activations, which take `bytes_per_token`.
    - `tokens`: how many tokens some rows are to the model, when they go through it together.
    - `held`: how much the process holds now.

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
        held: Callable[[], int] = rss_bytes,
    ):
        self.limit_bytes, self.why = limit_bytes, why
        self._floor, self._each = floor_bytes, max(1.0, bytes_per_token)
        self._tokens, self._held, self._largest = tokens, held, 0
        self.num_splits = 0

    def most_tokens(self) -> int:
        """As many may go through the model now."""
        self._floor += max(0.0, self._held() - self._floor - self._each * self._largest)
        return int((self.limit_bytes - self._floor) / self._each)

    def within(
        self, parts: Iterable[list[Any]], split: Callable[[list[Any], int], Iterable[list[Any]]]
    ) -> Iterator[list[Any]]:
        """The same rows in micro-batches that fit; `split` divides rows by a number of tokens.

        **Raises:**

        - `CapacityError`: a row alone does not fit.
        """
        for part in parts:
            most = self.most_tokens()
            if self._tokens(part) <= most:
                yield self._noted(part)
                continue
            self.num_splits += 1
            for smaller in split(part, max(1, most)):
                if self._tokens(smaller) > self.most_tokens():
                    raise self._too_long(smaller)
                yield self._noted(smaller)

    def _noted(self, part: list[Any]) -> list[Any]:
        self._largest = max(self._largest, self._tokens(part))
        return part

    def _too_long(self, part: list[Any]) -> CapacityError:
        tokens, most = self._tokens(part), max(0, self.most_tokens())
        needed = self._floor + self._each * tokens
        have = f"{size(self.limit_bytes)} are there ({self.why})"
        found = f"{tokens:,} tokens that go through the model together need {size(needed)}; {have}"
        do = f"--memory {-(-needed // 1e8) / 10:.1f}GB, or --max-length {most} where rows are as long"
        return CapacityError(explain("a row does not fit into the memory that there is", found=found, do=do))
