"""Intruder dimensions: new singular vectors that an adapter puts in front of those of the base's weight.

    W + delta W = sum_i s_i u_i v_i^T, s_1 >= s_2 ...;   u_i, i <= 10, is an intruder where max_j |<u_i, u_j of W>| < 0.5

Fine-tuning of the whole model has hardly any; LoRA has more the higher its learning rate, and what was forgotten sits
in them: made smaller, less of it is lost, at little cost to what was learned. Vectors of the shorter side are compared.

Source: LoRA vs Full Fine-tuning: An Illusion of Equivalence (Shuttleworth et al. 2024, arXiv 2410.21228), algorithm 1; its
figures hold the first 10 vectors against 0.5 too.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.combine.contract import Made
from inlay.core.routed import Factors
from inlay.methods.contract import require

TOP, NEAR = 10, 0.5
"""So many singular vectors are looked at; the cosine from which on one is known in the base."""

Weight = Callable[[str], Tensor]
"""Module path -> the base's weight there, (out, in)."""


def intruders(weight: Float[Tensor, "out in"], *changes: Factors) -> list[Factors]:
    """Of each delta W the part of W + delta W in its intruder dimensions, sum_i s_i u_i v_i^T; its rank is their number."""
    if weight.shape[0] > weight.shape[1]:
        turned = intruders(weight.T, *(Factors(of.B.T, of.A.T, of.scaling) for of in changes))
        return [Factors(part.B.T, part.A.T, 1.0) for part in turned]
    wide, found = weight.double(), []
    known = _directions(wide)
    for of in changes:
        changed = wide + of.scaling * (of.B.double() @ of.A.double())
        U = _directions(changed)[:, -TOP:]
        new = U[:, (known.T @ U).abs().amax(0) < NEAR]
        found.append(Factors((new.T @ changed).float(), new.float(), 1.0))  # s_i v_i^T = u_i^T (W + delta W)
    return found


def _directions(weight: Float[Tensor, "out in"]) -> Float[Tensor, "out out"]:
    """Its left singular vectors, that of the largest value last."""
    return torch.linalg.eigh(weight @ weight.T)[1]


class Shrinking:
    """Makes the intruder dimensions of changes smaller, module by module, and counts them in `found`.

        B A   becomes   B A - (1 - scale) sum_i s_i u_i v_i^T,   over the intruders of W + B A

    Exact, with a rank that grows by their number. What they hold of W itself becomes smaller with them.

    **Arguments:**

    - `scale`: how large they are afterwards, as part of what they were; 0 <= scale < 1.

    **Raises:**

    - `ConfigError`: it is outside its range.
    """

    def __init__(self, weight: Weight, scale: float):
        ok, do = 0 <= scale < 1, "--shrink-intruders 0.5"
        require(ok, "intruders become smaller by a factor of at least 0 and below 1", f"{scale:g}", do)
        self.weight, self.scale = weight, scale
        self.found: dict[str, int] = {}
        """Module path -> how many intruders its changed weight had."""

    def __call__(self, path: str, made: Made) -> Made:
        """The change of the module at `path` with smaller intruders; its size and error stay those of before."""
        (new,) = intruders(self.weight(path), Factors(made.A, made.B, 1.0))
        self.found[path] = len(new.A)
        A, B = torch.cat([made.A, new.A]), torch.cat([made.B, (self.scale - 1) * new.B], 1)
        return Made(A, B, made.square_norm, made.square_error)
