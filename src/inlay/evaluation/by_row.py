"""The loss of each of some rows before and after: which an adapter made better, and which worse."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from inlay.base.base import Base
from inlay.data.split import spread

MOST_ROWS = 64
"""As many are looked at, spread over all: enough for a picture, and little beside a run."""

TOKENS = 512
"""As many go through the model at a time, or one row: training takes no fewer of any model."""


class Compared(NamedTuple):
    """A row, and its loss per target in nats under the base and under the adapter."""

    source: str
    before: float
    after: float


@torch.no_grad()
def compared(base: Base, adapter: str, examples: Sequence[Any]) -> list[Compared]:
    """Some of the rows, in their order; none where the task says only the loss of rows together, and no row whose loss is not
    finite."""
    rows = spread(examples, MOST_ROWS)
    if base.spec.losses_of is None:
        return []
    both = zip(rows, _losses(base, None, rows), _losses(base, adapter, rows), strict=True)
    found = [Compared(row.source, before, after) for row, before, after in both]
    return [row for row in found if math.isfinite(row.before) and math.isfinite(row.after)]


def _losses(base: Base, adapter: str | None, rows: Sequence[Any]) -> list[float]:
    task, found = base.spec, list[float]()
    assert task.losses_of is not None
    with base.using(adapter):
        for group in _groups(rows, task.num_tokens):
            losses = task.losses_of(base, [[row] for row in group])
            found += [loss.item() / task.num_targets([row]) for row, loss in zip(group, losses, strict=True)]
    return found


def _groups(rows: Sequence[Any], num_tokens: Callable[[Sequence[Any]], int]) -> Iterator[list[Any]]:
    """Neighbours that go through the model together. What rows begin with alike counts for each, as they share nothing here."""
    group: list[Any] = []
    for row in rows:
        if group and num_tokens([*group, row]) > TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
