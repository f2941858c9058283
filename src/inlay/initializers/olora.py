"""OLoRA: orthonormal columns in B, from the QR decomposition of the weight.

    W = Q R,   B0 = Q_r,   A0 = R_r

the first r columns of Q and the first r rows of R: B0 A0 is the part of W in the space of its first r columns.

Source: OLoRA (Buyukakyuz 2024, arXiv 2406.01775), algorithm 1, and `peft`, which take scaling B0 A0 off the base.

When not to use it: as PiSSA; the r columns that it trains are the first ones, not those that matter most.
"""

import torch
from torch import Tensor

from inlay.initializers.contract import Initializer


class Olora(Initializer):
    """W = Q R, B0 = Q_r, A0 = R_r"""

    source = "weight"
    is_taken_off = True
    rate = 0.3

    @staticmethod
    def factors(found: Tensor, r: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        Q, _ = torch.linalg.qr(found[:, :r])  # the first r columns of Q come from the first r of W alone
        return Q.T @ found, Q
