"""What the low-rank methods share: the initial factors and the change of the weight.

    delta W = scaling B A,   A ~ U(-1/sqrt(in), 1/sqrt(in)),   B = 0

Source: LoRA (Hu et al. 2021, arXiv 2106.09685), section 4.1. The uniform A is what its authors' code and `peft` draw
(Kaiming-uniform with a = sqrt(5)); the paper's text says Gaussian.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def kaiming_uniform(r: int, in_features: int, generator: torch.Generator) -> Float[Tensor, "r in"]:
    """A fresh A: float32 on the CPU, uniform in +-1/sqrt(in_features)."""
    bound = in_features**-0.5
    return torch.empty(r, in_features).uniform_(-bound, bound, generator=generator)


def merged(
    weight: Float[Tensor, "out in"], A: Float[Tensor, "r in"], B: Float[Tensor, "out r"], scaling: float
) -> Float[Tensor, "out in"]:
    """W + scaling B A in the dtype of W, computed in float32 or wider and rounded once."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), B.to(wide), A.to(wide), alpha=scaling).to(weight.dtype)
