"""What some micro-batches of a run take on this machine: the median one and the longest, forward and backward.

Nothing of the run changes: gradients are dropped, and what dropout draws from is put back. The adapter does not move, so the
run's first step is what it would have been.

    seconds(tokens) = a + b tokens         through both; an evaluation goes forward alone
    memory = held after the longest + two moments of each trained weight

Freed blocks stay with the process (`inlay.process`), so that what it holds afterwards is the most that it has held.
"""

import dataclasses
import time
from typing import Any

import torch

from inlay import process
from inlay.base.base import Base
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
    """What the process held before the first."""
    peak_bytes: int
    """What it held after the longest."""
    bytes_per_token: float
    device_bytes: int = 0

    def seconds(self, work: Work) -> tuple[float, float]:
        """How long the steps and the evaluations of a run take."""
        steps = self.fixed_seconds * len(work.parts) / work.part_of_run + self.seconds_per_token * work.total("tokens")
        return steps, self.forward_seconds_per_token * work.evaluations("tokens")


def measure(base: Base, name: str, work: Work, generator: torch.Generator, limit_bytes: int) -> Measured:
    """Measure the median and the longest micro-batch of `work` with the attached adapter of this name.

    **Arguments:**

    - `limit_bytes`: micro-batches that would hold more, by what a short row and a long one took, are not tried: the longest
      that would not is in their place.
    """
    process.keep_freed_blocks()
    device = base.model.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    floor = process.rss_bytes()
    by_tokens = sorted(work.parts, key=lambda part: part.tokens)
    rows = sorted((part_of(base, [row]) for row in by_tokens[-1].rows), key=lambda part: part.tokens)
    each, held = _each(base, name, rows[0], rows[-1], generator)
    fits = lambda part: held + MARGIN * each * (part.tokens - rows[-1].tokens) <= limit_bytes  # noqa: E731
    fitting = [*filter(fits, by_tokens)] or by_tokens[:1]
    median, longest = fitting[len(fitting) // 2], fitting[-1]
    _pass(base, name, median, generator)  # the heap grows to its size
    ready = process.rss_bytes()
    long = _pass(base, name, longest, generator)
    reached = process.rss_bytes()
    short = _pass(base, name, median, generator)
    if longest.tokens > median.tokens:
        long = min(long, _pass(base, name, longest, generator))  # once more: rows of two lengths share the heap by now
    forward = _forward(base, name, median)
    asked = max(work.evaluated, key=lambda part: part.tokens, default=median)
    if asked.tokens > longest.tokens and fits(asked):
        _forward(base, name, asked)  # for the memory that it takes
    more, peak = longest.tokens - median.tokens, process.rss_bytes()
    slope = max(0.0, long - short) / more if more > median.tokens // 4 else short / median.tokens
    slope = min(slope, long / longest.tokens) or long / longest.tokens
    return Measured(
        fixed_seconds=max(0.0, short - slope * median.tokens),
        seconds_per_token=slope,
        forward_seconds_per_token=forward / median.tokens,
        floor_bytes=floor,
        peak_bytes=peak,
        bytes_per_token=max(0, reached - ready) / more
        if more > median.tokens // 4
        else (reached - floor) / longest.tokens,
        device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    )


def _each(base: Base, name: str, short: Part, long: Part, generator: torch.Generator) -> tuple[float, int]:
    """(The bytes that a token takes, by two rows that go through the model alone; what the process holds after them)."""
    _pass(base, name, short, generator)  # reads the base too, which is not the row's
    before = process.rss_bytes()
    _pass(base, name, long, generator)
    held, more = process.rss_bytes(), long.tokens - short.tokens
    foreseen = needs.activation_bytes(base, long.tokens) / long.tokens
    return max(foreseen, (held - before) / more if more > short.tokens // 4 else 0.0), held


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
