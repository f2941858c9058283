"""The processes that share a run, in one value: what a step asks of them, and what each of them has to agree on.

    own rows    of the rows of a step each process takes some, about as many tokens as any other
    gradient    G = sum over processes p of the gradient of  (sum of the losses of p's rows) / N

where N counts the supervised tokens of the whole step, so that G is the gradient of one process with the same rows, but for the
order in which floats are added. Every process has the whole adapter and its optimiser, and makes the same step with the same G:
only gradients of adapters travel. `Alone` is a run in one process: it asks nobody, and changes no bit.

Source: data parallelism as in PyTorch Distributed (Li et al. 2020, arXiv 2006.15704), section 3; without its buckets and
hooks, since the gradients of an adapter are small and are sent once.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


Kept = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""A state of a run as it is kept: tensors by name, and what JSON holds."""


class World(abc.ABC):
    """The processes that share a run.

    **Attributes:**

    - `rank`: the number of this process, from 0.
    - `size`: how many there are.
    - `restarted`: they take the place of processes that were lost: the run goes on from its last state.
    - `holds_base`: they hold the weights of the base together (`inlay.modules.sharded`), and pass through it together.
    """

    rank: int
    size: int
    restarted: bool
    holds_base = False

    @property
    def is_first(self) -> bool:
        """This process writes: the output, the state, the record, the screen."""
        return self.rank == 0

    def shard(self, items: Sequence[Item], cost: Callable[[Item], int]) -> list[Item]:
        """Those of the items that this process takes, in their order; each is taken by one process.

        The most costly first, each to the process that has least to do: no process has more to do than the mean and the most
        costly item together (Graham 1969, "Bounds on multiprocessing timing anomalies"). It has some, where there are as many.
        """
        loads = [0] * self.size
        own: list[int] = []
        costs = [max(1, cost(item)) for item in items] if self.size > 1 else []
        for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
            taker = loads.index(min(loads))
            loads[taker] += costs[number]
            own += [number] if taker == self.rank else []
        return [items[number] for number in sorted(own)] if self.size > 1 else list(items)

    def rounds(self, own: Iterable[Item], every: Sequence[Item] = ()) -> Iterator[tuple[Item, float]]:
        """The items that this process takes, each with what it counts: 1.

        Where the processes pass through the base together, those with fewer take one of them again, or of `every`,
        as often as is lacking, and let it count 0.
        """
        if not self.holds_base:
            yield from ((item, 1.0) for item in own)
            return
        own = list(own)
        lacking = self.most(len(own)) - len(own)
        yield from ((item, 1.0) for item in own)
        yield from (((own or every)[0], 0.0) for _ in range(lacking))

    @abc.abstractmethod
    def draw_(self, generator: torch.Generator, seed: int, step: int) -> None:
        """Let the generator of dropout draw what this process draws in a step.

        Several processes can't draw from one sequence: each has one of its own for every step, from (`seed`, `step`, rank). So
        a run with dropout is the same each time with as many processes; with another number it draws other masks, as it does
        with another seed.
        """

    @abc.abstractmethod
    def sum_(self, tensors: Sequence[Tensor], number: float) -> float:
        """Make the gradients of the tensors those of all processes, added up in float32; the sum of the numbers.

        A tensor without a gradient in every process stays so: an optimiser leaves it alone.
        """

    @abc.abstractmethod
    def total(self, number: float) -> float:
        """The sum of the numbers of all processes."""

    @abc.abstractmethod
    def most(self, number: int) -> int:
        """The largest of the numbers of all processes."""

    @abc.abstractmethod
    def gather_(self, whole: Tensor, own: Tensor) -> None:
        """Fill `whole` with the parts that the processes hold, one after the other, all of one size."""

    @abc.abstractmethod
    def any(self, flag: bool) -> bool:
        """One of the processes says so."""

    @abc.abstractmethod
    def same(self, values: Mapping[str, Any]) -> None:
        """Refuse a run in which the processes differ in one of these values, which JSON can hold.

        **Raises:**

        - `CompatibilityError`, in every process: it names those that have something else than the first.
        """

    @abc.abstractmethod
    def from_first(self, work: Callable[[], Kept | None]) -> Kept | None:
        """What `work` answers in the first process, which alone does it; what it raises there is raised in all."""


class Alone(World):
    """A run in one process."""

    def __init__(self, restarted: bool = False):
        self.rank, self.size, self.restarted = 0, 1, restarted

    def draw_(self, generator: torch.Generator, seed: int, step: int) -> None:
        return

    def sum_(self, tensors: Sequence[Tensor], number: float) -> float:
        return number

    def total(self, number: float) -> float:
        return number

    def most(self, number: int) -> int:
        return number

    def gather_(self, whole: Tensor, own: Tensor) -> None:
        whole.copy_(own)

    def any(self, flag: bool) -> bool:
        return flag

    def same(self, values: Mapping[str, Any]) -> None:
        return

    def from_first(self, work: Callable[[], Kept | None]) -> Kept | None:
        return work()


ALONE = Alone()
