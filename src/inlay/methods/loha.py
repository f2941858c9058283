"""LoHa: the elementwise product of two low-rank changes, of rank up to r^2.

    y = W x + b + scaling ((A1 B1) * (A2 B2)) x,   scaling = alpha / r

The product of sums is a sum of products: its rank-r^2 factors are the products of all pairs of columns, and of all pairs of
rows. So it goes the way of LoRA, and no matrix of W's size is formed.

Source: FedPara (Hyeon-Woo et al. 2021, arXiv 2108.06098), section 2.2, as LyCORIS (Yeh et al. 2023, arXiv 2309.14859) uses it.

When not to use it: for language models, where LoRA of rank 2 r has as many weights and costs less; it comes from image models.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch

from inlay.core import lowrank
from inlay.core.routed import Factors
from inlay.methods.contract import LinearBase, LowRankMethod, Params, PeftForm, require
from inlay.methods.hooks import Rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loha(LowRankMethod, Rates):
    """y = W x + b + (alpha / r) ((A1 B1) * (A2 B2)) x"""

    r: int = 8
    """Rank of each of the two products; that of the change is up to its square."""

    alpha: float = 8
    """Numerator of the scaling alpha / r."""

    learning_rate_scale: ClassVar[float] = 3.0  # measured: benchmarks/method_rates.py
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv2d")
    peft: ClassVar[PeftForm] = PeftForm(
        type="LOHA",
        ignores=("init_weights", "module_dropout", "rank_dropout"),  # read only in training
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.r >= 1, "r must be at least 1", f"r={self.r}", "--r 8")
        require(self.alpha > 0, "alpha must be above 0", f"alpha={self.alpha}", "--alpha 8")

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        left, right = (base.out_features, self.r), (self.r, base.in_features)
        return {"hada_w1_a": left, "hada_w1_b": right, "hada_w2_a": left, "hada_w2_b": right}

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        drawn = {
            name: lowrank.kaiming_uniform(shape[0], shape[1], generator)
            for name, shape in self.shapes(base).items()
            if name != "hada_w2_b"
        }
        return drawn | {"hada_w2_b": torch.zeros(self.r, base.in_features)}

    def factors(self, params: Params) -> Factors:
        left = params["hada_w1_a"][:, :, None] * params["hada_w2_a"][:, None, :]  # (out, r, r)
        right = params["hada_w1_b"][:, None, :] * params["hada_w2_b"][None, :, :]  # (r, r, in)
        return Factors(right.flatten(0, 1), left.flatten(1), self.alpha / self.r)

    def describe(self) -> str:
        return f"r={self.r} alpha={self.alpha:g}"

    @property
    def rates(self) -> Mapping[str, tuple[float, float]]:
        return {"hada_w2_b": (1.0, 8 / self.alpha)}
