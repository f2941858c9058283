"""LoftQ: a quantised base starts nearer to the weight that it was made from.

    W - Q = U diag(s) V^T,   B0 = U_r diag(sqrt(s_r / scaling)),   A0 = diag(sqrt(s_r / scaling)) V_r^T

so that Q + scaling B0 A0 is the best approximation of W that Q and rank r allow. Here the change at the start is the point of
it: it stays.

Source: LoftQ (Li et al. 2023, arXiv 2310.08659), algorithm 1 with one step of alternation (T = 1), which leaves Q as it is: so
one quantised base serves every adapter. More steps would quantise W - scaling B0 A0 again.

When not to use it: where the base is not quantised, for W - Q is zero then; with 8 bits, whose error is small already; where
other programs load the adapter beside the plain weights, to which it would add W - Q once more. Inlay refuses that; it may
be merged into the quantised base. It needs the weights that the base was quantised from, once.
"""

import torch
from torch import Tensor

from inlay.core import lowrank
from inlay.initializers.contract import Initializer


class Loftq(Initializer):
    """scaling B0 A0 = the r largest singular values of W - Q and their directions"""

    source = "residual"
    changes_at_start = True
    makes_up = (0.5, 0.5)

    @staticmethod
    def factors(found: Tensor, r: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return lowrank.balanced(found / scaling, r, generator)
