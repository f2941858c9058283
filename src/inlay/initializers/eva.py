"""EVA: A sees the directions in which the inputs of the map vary most.

    X = U diag(s) V^T,   A0 = V_r^T,   B0 = 0

for the inputs X (tokens, in) of the map on rows of the data; their mean is not taken off.

Source: EVA (Paischer et al. 2024, arXiv 2410.07170), section 3.1. Its second part, ranks that are shared out among the maps by
the variance that each direction explains (rho), is not offered: all maps have rank r, so that the number of weights is known
beforehand.

When not to use it: where the data of training is not at hand beforehand, or is few rows; it takes a pass over some of them.
"""

import torch
from torch import Tensor

from inlay.core import lowrank
from inlay.initializers.contract import Initializer


class Eva(Initializer):
    """X = U diag(s) V^T, A0 = V_r^T, B0 = 0"""

    source = "inputs"
    rate = 0.3

    @staticmethod
    def factors(found: Tensor, r: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, None]:
        return lowrank.top(found, r, generator)[2], None
