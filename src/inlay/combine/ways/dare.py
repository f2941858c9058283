"""DARE: the weighted sum of changes of which most entries were dropped at random, and the rest made larger to make up for it.

    B A = sum_i w_i M_i * m_i / (1 - drop),   m_i 0 with probability `drop`, else 1

Its mean over all draws is the weighted sum; what is drawn depends on the seed and the module alone.

Source: Super Mario / DARE (Yu et al. 2024, arXiv 2311.03099), equations 1 to 3. PEFT drops entries of the factors A and B,
whose product then is no mean of the sum; here those of the change are: `inlay.combine.entries`.

When not to use it: with a small rank. What is drawn is noise that no rank holds, and in the small core each entry counts: then
`svd` is what this would be without the noise.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.combine.entries import ByEntry
from inlay.methods.contract import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dare(ByEntry):
    """The weighted sum of changes of which entries are dropped at random"""

    drop: float = 0.5
    """Part of each change's entries that is dropped, 0 <= drop < 1."""

    seed: int = 0
    """Of what is drawn, for each module anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.drop < 1, "drop must be a probability below 1", f"drop={self.drop}", "--drop 0.5")

    def known(self, matrix: Float[Tensor, "out in"]) -> float:
        return 1.0 - self.drop

    def drawn(self, part: Float[Tensor, "rows in"], generator: torch.Generator) -> Float[Tensor, "rows in"]:
        return part * (torch.rand(part.shape, generator=generator) >= self.drop)

    def joined(
        self, parts: Sequence[Float[Tensor, "rows in"]], weights: Sequence[float], known: Sequence[float]
    ) -> Float[Tensor, "rows in"]:
        kept = (w / part_kept * part for part, w, part_kept in zip(parts, weights, known, strict=True))
        return sum(kept, torch.zeros(()))
