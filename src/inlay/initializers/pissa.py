"""PiSSA: train the principal part of the weight, the rest stays frozen.

    W = U diag(s) V^T,   B0 = U_r diag(sqrt(s_r / scaling)),   A0 = diag(sqrt(s_r / scaling)) V_r^T

so that scaling B0 A0 is the best approximation of W of rank r.

Source: PiSSA (Meng et al. 2024, arXiv 2404.02948), equations 2 to 4; the division by the scaling is what `peft` does, so that
it holds for every lora_alpha. The paper's QPiSSA quantises W - scaling B0 A0 in the place of W, another base for every adapter:
not offered, the base is shared. LoftQ is what a quantised base has here.

When not to use it: with LoRA's learning rate, for A0 and B0 are large and every step moves W by more; where W must stay as it
is in its main directions, for these are what it trains; on a quantised base.
"""

import torch
from torch import Tensor

from inlay.core import lowrank
from inlay.initializers.contract import Initializer


class Pissa(Initializer):
    """scaling B0 A0 = the r largest singular values of W and their directions"""

    source = "weight"
    is_taken_off = True
    makes_up = (0.5, 0.5)
    rate = 0.3

    @staticmethod
    def factors(found: Tensor, r: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return lowrank.balanced(found / scaling, r, generator)
