"""Which rows each step of a run has, and its learning rate.

    step < warm-up:  lr (step + 1) / warm-up;    then linearly from lr to 0 at the end

Linear decay, and 3 % of the steps but at least 5 as warm-up: what the QLoRA paper (arXiv 2305.14314, 3 %) and Tinker's
training recipes (linear decay) use.
"""

from collections.abc import Iterator, Sequence

import torch

from inlay.runs import mixing
from inlay.runs.mixing import Part

WARMUP_FRACTION = 0.03
MIN_WARMUP_STEPS = 5


def warmup_steps(num_steps: int) -> int:
    """How many steps the rate rises for; at most a tenth of a short run."""
    return min(max(MIN_WARMUP_STEPS, round(WARMUP_FRACTION * num_steps)), max(1, num_steps // 10))


def factor(step: int, num_steps: int) -> float:
    """What the learning rate is multiplied by at `step` (from 0) of `num_steps`."""
    warmup = warmup_steps(num_steps)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (num_steps - step) / max(1, num_steps - warmup))


def order(
    num_rows: int, batch_size: int, num_steps: int, seed: int, start: int = 0, *, parts: Sequence[Part] = ()
) -> Iterator[list[int]]:
    """Row numbers of every step from `start` on: each pass over the data in a new order drawn from `seed`, steps running across
    passes. Of a mixture, whose `parts` have all the rows, see `inlay.runs.mixing.passes`."""
    generator = torch.Generator().manual_seed(seed)
    passes = mixing.passes(num_rows, parts, generator) if parts else _whole(num_rows, generator)
    waiting: list[int] = []
    used = 0
    for step in range(num_steps):
        while len(waiting) - used < batch_size:
            waiting, used = waiting[used:] + next(passes), 0
        if step >= start:
            yield waiting[used : used + batch_size]
        used += batch_size


def _whole(num_rows: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Passes over all rows."""
    while True:
        yield torch.randperm(num_rows, generator=generator).tolist()
