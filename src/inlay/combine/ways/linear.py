"""The sum of the factors: a sum of the changes where these share one of them, and an approximation of it elsewhere.

    B A = (sum_i w_i scaling_i B_i) (sum_i w_i A_i) / sum_i w_i

Exact where all A_i are one (LoRA-FA, adapters trained from one frozen A), and for an adapter with itself; else products of one
adapter's B with another's A stand in it. It takes nothing but sums: the rank stays. PEFT's way of this name multiplies each
factor by sqrt(w_i), so that an adapter with itself at the weights 0.5 and 0.5 comes out twice as strong; this one does not.

When not to use it: for adapters that were trained apart. `svd` costs hardly more and is the best that the rank allows.
"""

import dataclasses
from collections.abc import Sequence

import torch

from inlay.combine.contract import Made, Way, Weighted
from inlay.combine.core_space import inner
from inlay.methods.contract import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Way):
    """(sum_i w_i scaling_i B_i) (sum_i w_i A_i) / sum_i w_i"""

    def merge(self, changes: Sequence[Weighted], generator: torch.Generator) -> Made:
        changes = [change for change in changes if len(change.factors.A)]
        ranks, total = sorted({len(change.factors.A) for change in changes}), sum(change.weight for change in changes)
        require(len(ranks) == 1, "linear adds factors, whose ranks have to be equal", f"ranks {ranks}", "--how svd")
        require(total != 0, "linear divides by the sum of the weights", "a sum of 0", "--how svd")
        B = sum((change.scaled for change in changes), torch.zeros(()))
        A = sum((change.factors.A.double() * (change.weight / total) for change in changes), torch.zeros(()))
        parts = [(change.scaled, change.factors.A.double()) for change in changes]
        wanted = sum(inner(one, other) for one in parts for other in parts)
        left = [*parts, (-B, A)]
        error = sum(inner(one, other) for one in left for other in left)
        return Made(A, B, max(wanted, 0.0), max(error, 0.0))
