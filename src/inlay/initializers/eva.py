"""EVA: A sees the directions in which the inputs of the map vary most.

    X = U diag(s) V^T,   A0 = V_r^T,   B0 = 0

for the inputs X (tokens, in) of the map on rows of the data; their mean is not taken off.

With rho above 1 the ranks are shared out: of all maps' explained variances s_i^2 / |X|^2, i <= rho r, as many are kept as the
maps have ranks together, each as a rank of its map (one at least); the scaling of every map stays.

Source: EVA (Paischer et al. 2024, arXiv 2410.07170), section 3.1, and `peft`, whose rho is 2; here it is 1 unless asked for, so
that the number of weights is known beforehand.

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
