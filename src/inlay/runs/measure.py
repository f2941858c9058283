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
    device_bytes: int = 0

    def seconds(self, work: Work) -> tuple[float, float]:
        """How long the steps and the evaluations of a run take."""
        steps = self.fixed_seconds * len(work.parts) / work.part_of_run + self.seconds_per_token * work.total("tokens")
        return steps, self.forward_seconds_per_token * work.evaluations("tokens")


def measure(
    base: Base,
    name: str,
    work: Work,
    generator: torch.Generator,
    left: Callable[[], int],
    foreseen: Callable[[Part], float],
) -> Measured:
    """Measure the median and the longest micro-batch of `work` with the attached adapter of this name.

    **Arguments:**

    - `left`: how much more the process may hold now. Micro-batches that would hold more, by what a short row and a long one
      took, are not tried: the longest that would not is in their place.
    - `foreseen`: what a micro-batch takes by its shapes.
    """
    process.keep_freed_blocks()
    device = base.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    tried = _Tried(base, name, generator)
    median, longest, most = _fitting(tried, work, left, foreseen)
    fixed_seconds, each_second = _time(tried, median, longest)
    forward = _forward(base, name, median)
    asked = max(work.evaluated, key=lambda part: part.tokens, default=median)
    if longest.tokens < asked.tokens <= most:
        _forward(base, name, asked)  # for the memory that it takes
    peak = process.rss_bytes()
    process.release_freed_blocks()
    fixed, each = tried.line()
    return Measured(
        fixed_seconds=fixed_seconds,
        seconds_per_token=each_second,
        forward_seconds_per_token=forward / median.tokens,
        floor_bytes=process.rss_bytes(),
        peak_bytes=peak,
        fixed_bytes=fixed,
        bytes_per_token=each,
        device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    )


def _fitting(
    tried: "_Tried", work: Work, left: Callable[[], int], foreseen: Callable[[Part], float]
) -> tuple[Part, Part, float]:
    """(The median micro-batch of those that may be tried, the longest, how many tokens such a one may have)."""
    base, name, generator = tried.how
    by_tokens = sorted(work.parts, key=lambda part: part.tokens)
    rows = sorted((part_of(base, [row]) for row in by_tokens[-1].rows), key=lambda part: part.tokens)
    _pass(base, name, rows[0], generator)  # reads the base, too, which is not the row's
    tried.alone(rows[-1])
    process.release_freed_blocks()
    most = left() / (MARGIN * max(tried.each(), foreseen(rows[-1]) / rows[-1].tokens))
    fitting = [part for part in by_tokens if part.tokens <= most] or [rows[-1]]
    return fitting[len(fitting) // 2], fitting[-1], most


def _time(tried: "_Tried", median: Part, longest: Part) -> tuple[float, float]:
    """(The seconds of any micro-batch, those of a token beside), forward and backward, by these two."""
    base, name, generator = tried.how
    tried.alone(median)
    long = tried.alone(longest)
    short = _pass(base, name, median, generator)
    more = longest.tokens - median.tokens
    if more:
        long = min(long, _pass(base, name, longest, generator))  # once more, over blocks that are there
    slope = max(0.0, long - short) / more if more > median.tokens // 4 else short / median.tokens
    slope = min(slope, long / longest.tokens) or long / longest.tokens
    return max(0.0, short - slope * median.tokens), slope


class _Tried:
    """Micro-batches whose memory is known, by their tokens."""

    def __init__(self, base: Base, name: str, generator: torch.Generator):
        self.how = base, name, generator
        self._first = process.rss_bytes()
        self._taken: dict[int, int] = {}

    def alone(self, part: Part) -> float:
        """The seconds of a micro-batch that finds no freed blocks."""
        base, name, generator = self.how
        before = process.rss_bytes() if process.release_freed_blocks() else self._first
        seconds = _pass(base, name, part, generator)
        self._taken[part.tokens] = max(process.rss_bytes() - before, self._taken.get(part.tokens, 0))
        return seconds

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


def _pass(base: Base, name: str, part: Part, generator: torch.Generator) -> float:
    """The seconds of a micro-batch of a step, which leaves no trace."""
    before, adapter = generator.get_state(), base.adapters[name]
    start = time.perf_counter()
    try:
        with torch.random.fork_rng(devices=[]), base.using(name, generator=generator):
            loss = base.spec.loss_of(base, part.rows)
            loss.backward()
            _ = loss.item()
    finally:
        generator.set_state(before)
        for tensor in adapter.tensors():
            tensor.grad = None
    return time.perf_counter() - start


@torch.no_grad()
def _forward(base: Base, name: str, part: Part) -> float:
    start = time.perf_counter()
    with base.using(name):
        value: Any = base.spec.loss_of(base, part.rows)
        _ = value.item()
    return time.perf_counter() - start
