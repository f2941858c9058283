"""LoKr: the Kronecker product of a small matrix and a larger one, which may be low-rank.

    y = W x + b + scaling (w1 (x) w2) x,   scaling = alpha / r
    w1 (out1, in1), w2 (out2, in2) = w2_a w2_b,   out = out1 out2, in = in1 in2

The factors of out and in are those nearest to their square roots, or to decompose_factor. x is read as an (in1, in2) matrix X:
the change is w1 X w2^T, so that no matrix of W's size is formed.

Source: LyCORIS (Yeh et al. 2023, arXiv 2309.14859), section 3; KronA (Edalati et al. 2022, arXiv 2212.10650).

When not to use it: for language models, where LoRA is better known at the same size; or where in and out are prime.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from inlay.core import lowrank
from inlay.methods.contract import LinearBase, LinearMethod, Params, PeftForm, require
from inlay.methods.hooks import Rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lokr(LinearMethod, Rates):
    """y = W x + b + (alpha / r) (w1 (x) w2) x"""

    r: int = 8
    """Rank of the larger factor; from half of its side on it is trained whole."""

    alpha: float = 8
    """Numerator of the scaling alpha / r."""

    decompose_both: bool = False
    """Let the smaller factor be low-rank too, where r is below half of its side."""

    decompose_factor: int = -1
    """The smaller factor of out and in, where it divides them, or the most that it may be; -1: near their square roots."""

    learning_rate_scale: ClassVar[float] = 3.0  # measured: benchmarks/method_rates.py
    peft: ClassVar[PeftForm] = PeftForm(
        type="LOKR",
        ignores=("init_weights", "module_dropout", "rank_dropout", "rank_dropout_scale"),  # read only in training
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.r >= 1, "r must be at least 1", f"r={self.r}", "--r 8")
        require(self.alpha > 0, "alpha must be above 0", f"alpha={self.alpha}", "--alpha 8")
        factor = self.decompose_factor
        ok = factor == -1 or factor >= 1
        require(ok, "decompose_factor must be -1 or at least 1", f"decompose_factor={factor}", "--decompose-factor -1")

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        out1, out2 = factorization(base.out_features, self.decompose_factor)
        in1, in2 = factorization(base.in_features, self.decompose_factor)
        small = self._parts("lokr_w1", out1, in1) if self.decompose_both else {"lokr_w1": (out1, in1)}
        return small | self._parts("lokr_w2", out2, in2)

    def _parts(self, name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        """One factor: whole, or as a product of rank r."""
        if self.r < max(rows, columns) / 2:
            return {f"{name}_a": (rows, self.r), f"{name}_b": (self.r, columns)}
        return {name: (rows, columns)}

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        drawn = {
            name: lowrank.kaiming_uniform(shape[0], shape[1], generator) for name, shape in self.shapes(base).items()
        }
        zero = next(name for name in ("lokr_w1", "lokr_w1_a") if name in drawn)
        return drawn | {zero: torch.zeros_like(drawn[zero])}

    def delta(
        self,
        params: Params,
        x: Shaped[Tensor, "tokens *in"],
        y: Float[Tensor, "tokens out"],
        base: LinearBase,
    ) -> Float[Tensor, "tokens out"]:
        w1, w2 = (_factor(params, name).to(x.dtype) for name in ("lokr_w1", "lokr_w2"))
        X = x.view(len(x), w1.shape[1], w2.shape[1])
        return self.alpha / self.r * (w1 @ (X @ w2.T)).flatten(1)

    def merge(
        self, params: Params, weight: Float[Tensor, "rows in"], bias: Float[Tensor, " rows"] | None, start: int = 0
    ) -> tuple[Float[Tensor, "rows in"], Float[Tensor, " rows"] | None]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        change = torch.kron(*(_factor(params, name).to(wide) for name in ("lokr_w1", "lokr_w2")))
        rows = change[start : start + len(weight)]
        return torch.add(weight.to(wide), rows, alpha=self.alpha / self.r).to(weight.dtype), bias

    def describe(self) -> str:
        return f"r={self.r} alpha={self.alpha:g}"

    @property
    def rates(self) -> Mapping[str, tuple[float, float]]:
        return dict.fromkeys(("lokr_w1", "lokr_w1_a"), (1.0, 8 / self.alpha))


def factorization(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `size`, the first as large as it may be: at most the root, and at most `factor`."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = min(int(size**0.5), factor if factor > 0 else size)
    first = next(number for number in range(most, 0, -1) if size % number == 0)
    return first, size // first


def _factor(params: Params, name: str) -> Tensor:
    return params[name] if name in params else params[f"{name}_a"] @ params[f"{name}_b"]
