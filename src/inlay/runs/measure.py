"""What some micro-batches of a run take on this machine: the median one and the longest, forward and backward.

Nothing of the run changes: gradients are dropped, and what dropout draws from is put back. The adapter does not move, so the
run's first step is what it would have been.

    seconds(tokens) = a + b tokens         through both; an evaluation goes forward alone
    memory(tokens) = c + d tokens          beside what the process holds between two of them

Freed blocks stay with the process (`inlay.process`) unless it hands them back: that is done before each micro-batch whose
memory is measured, and what the process holds after it is then the most that it has held.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from inlay import process
from inlay.base.base import Base
from inlay.core.recompute import recomputing
from inlay.runs import needs
from inlay.runs.work import Part, Work, part_of

MARGIN = 1.2
"""So many times what rows alone say of a micro-batch has to be there before it is tried: a system kills what takes more."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What micro-batches took."""

    fixed_seconds: float
    seconds_per_token: float
    forward_seconds_per_token: float
    floor_bytes: int
    """What the process holds between micro-batches."""
    peak_bytes: int
    """The most that it has held."""
    fixed_bytes: float
    bytes_per_token: float
    """Of a micro-batch, beside the floor."""
    num_lengths: int = 1
    bytes_per_length: float = 0.0
    """Of so many numbers of tokens that were met, what is kept of the products of each."""
    most_kept_bytes: float = 0.0
    """As much of them is kept at most."""
    device_bytes: int = 0

    def more_lengths_bytes(self, work: Work) -> float:
        """What the products of the numbers of tokens that are yet to come will keep, beside the floor."""
        kept = [min(self.most_kept_bytes, n * self.bytes_per_length) for n in (self.num_lengths, work.num_lengths)]
        return max(0.0, kept[1] - kept[0])

    def seconds(self, work: Work) -> tuple[float, float]:
        """How long the steps and the evaluations of a run take."""
        steps = self.fixed_seconds * len(work.parts) / work.part_of_run + self.seconds_per_token * work.total("tokens")
        return steps, self.forward_seconds_per_token * work.evaluations("tokens")


def measure(
    base: Base,
    name: str,
    generator: torch.Generator,
    work: Work,
    left: Callable[[], int],
    foreseen: Callable[[Part], float],
    *,
    recompute: bool,
) -> Measured:
    """Measure the median and the longest micro-batch of `work` with the attached adapter of this name.

    **Arguments:**

    - `recompute`: as `inlay.Settings` has it.
    - `left`: how much more the process may hold now. Micro-batches that would hold more, by what a short row and a long one
      took, are not tried: the longest that would not is in their place.
    - `foreseen`: what a micro-batch takes by its shapes.
    """
    process.keep_freed_blocks()
    device = base.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    tried = _Tried(base, name, generator, recompute)
    median, longest, most = _fitting(tried, work, left, foreseen)
    fixed_seconds, each_second = _time(tried, median, longest)
    forward = tried.forward(median)
    asked = max(work.evaluated, key=lambda part: part.tokens, default=median)
    if longest.tokens < asked.tokens <= most:
        tried.forward(asked)  # for the memory that it takes
    peak = process.rss_bytes()
    process.release_freed_blocks()
    fixed, each = tried.line()
    num_lengths, bytes_per_length = tried.kept()
    return Measured(
        fixed_seconds=fixed_seconds,
        seconds_per_token=each_second,
        forward_seconds_per_token=forward / median.tokens,
        floor_bytes=process.rss_bytes(),
        peak_bytes=peak,
        fixed_bytes=fixed,
        bytes_per_token=each,
        num_lengths=num_lengths,
        bytes_per_length=bytes_per_length,
        most_kept_bytes=needs.most_kept_bytes(base),
        device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    )


def _fitting(
    tried: "_Tried", work: Work, left: Callable[[], int], foreseen: Callable[[Part], float]
) -> tuple[Part, Part, float]:
    """(The median micro-batch of those that may be tried, the longest, how many tokens such a one may have)."""
    by_tokens = sorted(work.parts, key=lambda part: part.tokens)
    rows = sorted((part_of(tried.base, [row]) for row in by_tokens[-1].rows), key=lambda part: part.tokens)
    tried.both(rows[0])  # reads the base, too, which is not the row's
    tried.alone(rows[-1])
    process.release_freed_blocks()
    most = left() / (MARGIN * max(tried.each(), foreseen(rows[-1]) / rows[-1].tokens))
    fitting = [part for part in by_tokens if part.tokens <= most] or [rows[-1]]
    return fitting[len(fitting) // 2], fitting[-1], most


def _time(tried: "_Tried", median: Part, longest: Part) -> tuple[float, float]:
    """(The seconds of any micro-batch, those of a token beside), forward and backward, by these two."""
    tried.alone(median)
    long = tried.alone(longest)
    short = tried.both(median)
    more = longest.tokens - median.tokens
    if more:
        long = min(long, tried.both(longest))  # once more, over blocks that are there
    slope = max(0.0, long - short) / more if more > median.tokens // 4 else short / median.tokens
    slope = min(slope, long / longest.tokens) or long / longest.tokens
    return max(0.0, short - slope * median.tokens), slope


class _Tried:
    """Micro-batches of an adapter whose time and memory is known."""

    def __init__(self, base: Base, name: str, generator: torch.Generator, recompute: bool):
        self.base, self._name, self._generator, self._recompute = base, name, generator, recompute
        self._first = process.rss_bytes()
        self._taken: dict[int, int] = {}
        self._lengths: set[int] = set()
        self._floors: list[tuple[int, int]] = []

    def alone(self, part: Part) -> float:
        """The seconds of a micro-batch that finds no freed blocks."""
        before = process.rss_bytes() if process.release_freed_blocks() else self._first
        self._floors.append((len(self._lengths), before))
        seconds = self.both(part)
        self._taken[part.tokens] = max(process.rss_bytes() - before, self._taken.get(part.tokens, 0))
        return seconds

    def both(self, part: Part) -> float:
        """The seconds of a micro-batch of a step, forward and backward, which leaves no trace."""
        base, generator, before = self.base, self._generator, self._generator.get_state()
        self._lengths.add(part.tokens)
        start = time.perf_counter()
        try:
            with torch.random.fork_rng(devices=[]), base.using(self._name, generator=generator):
                with recomputing(self._recompute):
                    loss = base.spec.loss_of(base, part.rows)
                loss.backward()
                _ = loss.item()
        finally:
            generator.set_state(before)
            for tensor in base.adapters[self._name].tensors():
                tensor.grad = None
        return time.perf_counter() - start

    @torch.no_grad()
    def forward(self, part: Part) -> float:
        """The seconds of a micro-batch of an evaluation."""
        start = time.perf_counter()
        with self.base.using(self._name):
            value: Any = self.base.spec.loss_of(self.base, part.rows)
            _ = value.item()
        return time.perf_counter() - start

    def each(self) -> float:
        """The most that a token has taken."""
        return max(taken / tokens for tokens, taken in self._taken.items())

    def line(self) -> tuple[float, float]:
        """(What any takes, what a token takes beside that), by the shortest and the longest."""
        few, many = min(self._taken), max(self._taken)
        each = self._taken[many] / many
        if many - few > few // 4:
            each = min(each, max(0, self._taken[many] - self._taken[few]) / (many - few))
        return max(0.0, self._taken[many] - each * many), each

    def kept(self) -> tuple[int, float]:
        """(How many lengths were met, what is kept for each), by what is held between micro-batches."""
        (few, least), (many, most) = self._floors[0], (len(self._lengths), process.rss_bytes())
        return many, max(0, most - least) / (many - few) if many > few else 0.0
