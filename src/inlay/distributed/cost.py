"""What many processes take for a step, from one step that was measured on one of them.

    bytes   = 4 W                                        gradients of W trained weights, in float32
    ring    = 2 (n - 1) / n  bytes / bandwidth + 2 (n - 1) latency       all-reduce of n processes
    gather  = 2 (n - 1) / n  base  / bandwidth + 2 L (n - 1) latency     a sharded base of L weights, forward and back
    step(n) = (step(1) - fixed) ceil(rows / n) / rows + fixed + ring + gather
    efficiency = step(1) / (n step(n))

A step of n processes waits for the one with most rows, hence the ceiling: rows are taken to be of like length. Nothing is
computed while gradients travel; a gather is taken not to hide behind the products, as here it does not.

Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", section 4.
"""

import dataclasses
import math

from inlay.errors import ConfigError, explain

GRADIENT_BYTES = 4
"""Of a trained weight's gradient as it travels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """What joins one process to the next, each way."""

    bytes_per_second: float
    latency_seconds: float

    def __post_init__(self) -> None:
        if not (self.bytes_per_second > 0 and self.latency_seconds >= 0):
            found = f"{self.bytes_per_second:g} bytes per second, {self.latency_seconds:g} s"
            what = "a link has a bandwidth above 0 and a latency of at least 0"
            raise ConfigError(explain(what, found=found, do="1.25e9 bytes per second for 10 Gbit/s"))


@dataclasses.dataclass(frozen=True)
class Cost:
    """A step of several processes."""

    processes: int
    step_seconds: float
    gradient_bytes: int
    """What all-reduce adds up: each process sends, and gets, up to twice as much."""
    reduce_seconds: float
    gather_seconds: float
    """What a sharded base takes to be gathered, forward and back; 0 where every process has it."""
    efficiency: float
    """How much of n times the work of one is done in the time of one, 0 to 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A step as one process takes it."""

    seconds: float
    fixed_seconds: float = 0.0
    """The part of it that each process does in whole: the optimiser."""
    rows: int
    num_weights: int
    """Trained ones."""
    sharded_bytes: int = 0
    """Of a base that no process holds whole."""
    sharded_weights: int = 0
    """In how many pieces these bytes travel."""

    def __post_init__(self) -> None:
        if not 0 <= self.fixed_seconds <= self.seconds:
            found = f"{self.fixed_seconds:g} s of {self.seconds:g} s"
            raise ConfigError(explain("a part of a step is longer than the step", found=found))

    def gather_seconds(self, processes: int, link: Link) -> float:
        """What its base takes to be gathered, forward and back."""
        if not self.sharded_bytes:
            return 0.0
        more = 2 * (self.sharded_weights - 1) * (processes - 1) * link.latency_seconds
        return ring_seconds(self.sharded_bytes, processes, link) + more

    def shared(self, processes: int, link: Link) -> Cost:
        """What it takes where `processes` share it.

        **Raises:**

        - `ConfigError`: there are more of them than rows.
        """
        if not 1 <= processes <= self.rows:
            what, found = "a step has at least one row for each process", f"{self.rows} rows, {processes} processes"
            raise ConfigError(explain(what, found=found, do=f"--batch-size {processes}"))
        gradient_bytes = GRADIENT_BYTES * self.num_weights
        reduce, gather = ring_seconds(gradient_bytes, processes, link), self.gather_seconds(processes, link)
        own = (self.seconds - self.fixed_seconds) * math.ceil(self.rows / processes) / self.rows
        seconds = own + self.fixed_seconds + reduce + gather
        return Cost(processes, seconds, gradient_bytes, reduce, gather, self.seconds / (processes * seconds))


def ring_seconds(num_bytes: int, processes: int, link: Link) -> float:
    """What an all-reduce takes: a reduce-scatter and an all-gather, each of n - 1 turns of 1 / n of the bytes."""
    turns = 2 * (processes - 1)
    return turns * (num_bytes / processes / link.bytes_per_second + link.latency_seconds)
