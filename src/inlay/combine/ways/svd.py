"""The weighted sum, as near as a rank allows.

    B A = the best approximation of sum_i w_i delta W_i of rank r

By the core of the sum, which is never formed: `inlay.combine.core_space`. Of one adapter it is that adapter at a lower rank.

When not to use it: where adapters of unlike tasks share no directions, a rank that is less than the sum of theirs cuts off what
counts; the energy that was kept says how much. `cat` keeps all.
"""

import dataclasses
from collections.abc import Sequence

import torch

from inlay.combine import core_space
from inlay.combine.contract import Made, Truncated, Weighted
from inlay.combine.ways.cat import Cat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Svd(Truncated):
    """The best approximation of sum_i w_i delta W_i of rank r"""

    def merge(self, changes: Sequence[Weighted], generator: torch.Generator) -> Made:
        exact = Cat().merge(changes, generator)
        return core_space.truncated(exact.B, exact.A, self.rank(changes))
