"""The weighted sum, exact: the factors beside each other.

    B A = sum_i w_i delta W_i,   B = [w_1 scaling_1 B_1, ..., w_n scaling_n B_n],   A = [A_1; ...; A_n]

When not to use it: the rank is the sum of the ranks, and so are file and time; `svd` has one to choose.
"""

import dataclasses
from collections.abc import Sequence

import torch

from inlay.combine.contract import Made, Way, Weighted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cat(Way):
    """sum_i w_i delta W_i, with the sum of the ranks"""

    def merge(self, changes: Sequence[Weighted], generator: torch.Generator) -> Made:
        A = torch.cat([change.factors.A.double() for change in changes])
        return Made(A, torch.cat([change.scaled for change in changes], 1))
