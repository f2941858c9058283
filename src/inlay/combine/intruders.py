"""Intruder dimensions: new singular vectors that an adapter puts in front of those of the base's weight.

    W + delta W = sum_i s_i u_i v_i^T, s_1 >= s_2 ...;   u_i, i <= 10, is an intruder where max_j |<u_i, u_j of W>| < 0.5

Fine-tuning of the whole model has hardly any; LoRA has more the higher its learning rate, and what was forgotten sits
in them: made smaller, less of it is lost, at little cost to what was learned. Vectors of the shorter side are compared.

Source: LoRA vs Full Fine-tuning: An Illusion of Equivalence (Shuttleworth et al. 2024, arXiv 2410.21228), algorithm 1; its
figures hold the first 10 vectors against 0.5 too.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core import lowrank
from inlay.core.routed import Factors

TOP, NEAR = 10, 0.5
"""So many singular vectors are looked at; the cosine from which on one is known in the base."""


def intruders(weight: Float[Tensor, "out in"], factors: Factors) -> Factors:
    """The part of W + delta W in its intruder dimensions, sum_i s_i u_i v_i^T, as factors; their rank is their number."""
    wide = weight.double()
    if wide.shape[0] > wide.shape[1]:
        turned = intruders(weight.T, Factors(factors.B.T, factors.A.T, factors.scaling))
        return Factors(turned.B.T, turned.A.T, 1.0)
    known = torch.linalg.eigh(wide @ wide.T)[1]  # the left singular vectors of W
    changed = wide + factors.scaling * (factors.B.double() @ factors.A.double())
    U, s, Vt = lowrank.top(changed.float(), TOP, torch.Generator().manual_seed(0))
    new = (known.T @ U.double()).abs().amax(0) < NEAR
    return Factors((s[:, None] * Vt)[new], U[:, new], 1.0)
