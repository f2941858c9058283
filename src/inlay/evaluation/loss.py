"""The loss of some rows with some adapters."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from inlay.base.base import Base
from inlay.distributed.world import ALONE, World
from inlay.errors import DivergedError, explain
from inlay.model.batch import Rows


@torch.no_grad()
def evaluate(
    base: Base,
    rows: Rows,
    examples: Sequence[Any],
    max_tokens: int | None = None,
    listener: Callable[[int], None] = lambda done: None,
    *,
    world: World = ALONE,
) -> float:
    """The loss per supervised token of some rows, in nats, with these adapters; `listener` hears how many rows are done.

    The processes of `world` share the parts; each of them gets the loss of all.

    **Raises:**

    - `DivergedError`: it is not finite.
    """
    task = base.spec
    total, done = 0.0, 0
    for name, some in _by_adapter(rows, examples):
        with base.using(name):
            parts = [*task.parts(base, some, max_tokens)]
            for part, counts in world.rounds(world.shard(parts, task.num_tokens), parts):
                listener(done)
                total, done = total + task.loss_of(base, part).item() * counts, done + len(part)
    total = world.total(total)
    base.check_unchanged()
    if not math.isfinite(total):
        raise DivergedError(
            explain(
                "the loss is not finite",
                found=f"{total} over {len(examples)} rows with {rows or 'the plain base'}",
                do="fetch base and adapter again: their weights may hold NaN; or --dtype float32",
            )
        )
    return total / task.num_targets(examples)


def _by_adapter(rows: Rows, examples: Sequence[Any]) -> list[tuple[str | None, list[Any]]]:
    """The rows of each adapter: they go through the model by length, not in the order in which they name one."""
    names = [rows] * len(examples) if isinstance(rows, str | None) else rows
    found: dict[str | None, list[Any]] = {}
    for name, example in zip(names, examples, strict=True):
        found.setdefault(name, []).append(example)
    return list(found.items())
