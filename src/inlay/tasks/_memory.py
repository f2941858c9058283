"""The memory of a training step: how much is asked for at a time.

A layer's activations wait for the backward pass, and grow with the tokens that go through the model together. A wide
model's step is about as fast with 512 of them at a time as with more (benchmarks/micro_batch.py), so it takes no more than
that; a small one, whose products are short beside what lies between them, takes as many as fit.
"""

import torch

from inlay.layout import targets
from inlay.tasks.contract import Loaded

FEWEST_TOKENS, MOST_TOKENS = 512, 2048
"""How many tokens go through a model at a time, unless a row alone is longer."""

ACTIVATION_BYTES = 384 << 20
"""What their activations may take between these bounds."""

RECOMPUTE_BYTES = ACTIVATION_BYTES
"""From here on, where a model is wide or a row is long, cheap activations are recomputed in the backward pass: it costs 3 %
of a step."""


def activation_bytes(base: Loaded, num_tokens: int) -> int:
    """About what the activations of a training step take: the outputs of all linear maps but the head."""
    numbers = sum(linear.out_features for path, linear in base.linears.items() if path != base.head)
    return base.dtype.itemsize * num_tokens * numbers


def micro_batch_tokens(base: Loaded) -> int:
    """How many tokens go through this model at a time.

    A GPU waits for its host where they are few: it takes as many as fill an eighth of its memory, at least `MOST_TOKENS`.
    All of its memory counts, free or not: what is free changes from step to step, and the sums would with it.
    """
    device = targets.device_of(base.model)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return max(MOST_TOKENS, total // 8 // activation_bytes(base, 1))
    return min(MOST_TOKENS, max(FEWEST_TOKENS, ACTIVATION_BYTES // activation_bytes(base, 1)))
