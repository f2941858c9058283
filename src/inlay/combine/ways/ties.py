"""TIES: of each change the largest entries, of these the sign that outweighs the other, and the mean of those that have it.

    1  trim       M_i keeps the part `density` of its entries that are largest in size, the rest becomes 0
    2  elect      sign = sign(sum_i w_i M_i), entry by entry
    3  mean       the sum of the w_i M_i of that sign, over how many there are

So entries on which the adapters disagree do not cancel, and an entry that only one of them has is not thinned out by others.
The mean is over counts, as in the paper: the weights come to what one adapter counts, 1 each.

Source: TIES-Merging (Yadav et al. 2023, arXiv 2306.01708), algorithm 1; per layer, as in its followers. In the core or on the
whole change: `inlay.combine.entries`.

When not to use it: for adapters of one task, whose changes agree; a weighted sum with weights that come to 1 does as well.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.combine.entries import ByEntry
from inlay.methods.contract import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties(ByEntry):
    """The mean of the largest entries that have the sign which outweighs the other"""

    is_sum: ClassVar[bool] = False

    density: float = 0.5
    """Part of each change's entries that is kept, the largest; 0 < density <= 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0 < self.density <= 1
        require(ok, "density must be above 0 and at most 1", f"density={self.density}", "--density 0.5")

    def known(self, matrix: Float[Tensor, "out in"]) -> float:
        """The size of the smallest entry that is kept."""
        dropped = matrix.numel() - max(1, round(self.density * matrix.numel()))
        return float(matrix.abs().flatten().kthvalue(dropped + 1).values)

    def drawn(self, part: Float[Tensor, "rows in"], generator: torch.Generator) -> Float[Tensor, "rows in"]:
        return part

    def joined(
        self, parts: Sequence[Float[Tensor, "rows in"]], weights: Sequence[float], known: Sequence[float]
    ) -> Float[Tensor, "rows in"]:
        kept = [w * part * (part.abs() >= least) for part, w, least in zip(parts, weights, known, strict=True)]
        sign = sum(kept, torch.zeros(())).sign()
        agreeing = [part * (part.sign() == sign) for part in kept]
        count = sum(((part != 0).to(sign.dtype) for part in agreeing), torch.zeros(()))
        return sum(agreeing, torch.zeros(())) / count.clamp(min=1)
