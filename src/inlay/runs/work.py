"""What a run sends through the model: its micro-batches, as a step or an evaluation divides its rows."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from inlay.base.base import Base
from inlay.tasks.causal_lm import num_computed, unpacked_because

MOST_STEPS = 1000
"""As many steps are divided to know what the others are like."""


class Part(NamedTuple):
    """Rows that go through the model together."""

    rows: Sequence[Any]
    tokens: int
    """With what they are filled up with, where they are; what they begin with alike counts once, where it is computed once."""
    squares: int
    """The sum over the rows of their tokens squared: what attention works on."""
    targets: int


@dataclasses.dataclass(frozen=True)
class Work:
    """What goes through the model in a run."""

    parts: Sequence[Part]
    """Those of some steps."""
    part_of_run: float
    """These steps, as part of all."""
    evaluated: Sequence[Part]
    """Those of an evaluation."""
    num_evaluations: int
    num_steps: int

    @property
    def longest(self) -> Part:
        """The one with the most tokens."""
        return max(self.parts, key=lambda part: part.tokens)

    @property
    def num_lengths(self) -> int:
        """How many numbers of tokens its micro-batches have."""
        return len({part.tokens for part in (*self.parts, *self.evaluated)})

    def total(self, value: str) -> float:
        """The sum of a number of `Part` over the steps of the run."""
        return sum(getattr(part, value) for part in self.parts) / self.part_of_run

    def evaluations(self, value: str) -> float:
        """The sum of a number of `Part` over its evaluations."""
        return self.num_evaluations * sum(getattr(part, value) for part in self.evaluated)


def is_packed(base: Base) -> bool:
    """Rows are not filled up, and only targets reach the head."""
    return base.spec.continues and unpacked_because(base) is None


def part_of(base: Base, rows: Sequence[Any]) -> Part:
    """Rows that go through the model together, and what they are to it."""
    task, lengths, packed = base.spec, [base.spec.num_tokens([row]) for row in rows], is_packed(base)
    if not packed:
        lengths = [max(lengths)] * len(rows)
    tokens = num_computed(base, rows) if packed else sum(lengths)
    return Part(rows, tokens, sum(length**2 for length in lengths), task.num_targets(rows))


def work(
    base: Base,
    examples: Sequence[Any],
    order: Iterable[Sequence[int]],
    num_steps: int,
    max_tokens: int | None,
    *,
    evaluated: Sequence[Any] = (),
    num_evaluations: int = 0,
) -> Work:
    """What a run sends through the model.

    **Arguments:**

    - `order`: the numbers of the rows of every step.
    - `max_tokens`: how many tokens go through the model together; None: as many as suit it.
    - `evaluated`: the rows of an evaluation.
    """
    parts: list[Part] = []
    num = 0
    for num, numbers in enumerate(order, 1):
        rows = [examples[i] for i in numbers]
        parts += [part_of(base, part) for part in base.spec.step_parts(base, rows, max_tokens)]
        if num == MOST_STEPS:
            break
    held = [part_of(base, part) for part in base.spec.parts(base, evaluated, max_tokens)] if evaluated else []
    return Work(parts, num / num_steps, held, num_evaluations, num_steps)
