"""The loss of a language model over the tokens that are trained on.

    loss_sum = sum over t with a label of  -log softmax(logits[t])[label[t]],   in float32 or wider

A sum, not a mean: whoever steps divides by the number of supervised tokens of the whole step, so that the result does not
depend on how its rows were split into batches.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100
"""The label of a token that is not trained on, as torch's `cross_entropy` and the field use it."""


def cross_entropy_sum(logits: Float[Tensor, "*batch t vocab"], labels: Int[Tensor, "*batch t"]) -> Float[Tensor, ""]:
    """The summed loss of the labelled positions in nats; zero where there is none.

    **Arguments:**

    - `logits`: what the model says at each position about the next token.
    - `labels`: the next token of each position (already shifted), or `IGNORE`.
    """
    chosen = labels != IGNORE
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.nn.functional.cross_entropy(logits[chosen].to(wide), labels[chosen], reduction="sum")
