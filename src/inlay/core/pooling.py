"""The states of a row's tokens as one vector.

mean        sum of the states of the real tokens / their number
cls         the state of the first token
lasttoken   the state of the last real token
max         the largest number of each component
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

MEAN = "mean"
"""What is done where nobody says otherwise."""

MODES = (MEAN, "cls", "lasttoken", "max")
"""The ways that are computed here."""


def pooled(
    hidden: Float[Tensor, "rows t width"], mask: Shaped[Tensor, "rows t"], mode: str
) -> Float[Tensor, "rows width"]:
    """One vector for each row, of the states where `mask` is not 0, in their dtype."""
    if mode == "cls":
        return hidden[torch.arange(len(hidden)), mask.argmax(1)]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden)), mask.shape[1] - 1 - mask.flip(1).argmax(1)]
    real = mask[..., None]
    if mode == "max":
        return hidden.masked_fill(real == 0, -torch.inf).amax(1)
    real = real.to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1)
