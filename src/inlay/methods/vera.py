"""VeRA: two frozen random matrices for all layers, and two trained vectors for each.

    y = W x + b + lambda_b * (B (lambda_d * (A x)))

A (r, in) and B (out, r) are the first columns of one A and the first rows of one B, as large as the largest adapted layer,
drawn from `projection_prng_key`. lambda_b (out) starts at zero, lambda_d (r) at d_initial. Only r + out weights per layer
are trained; the file holds A and B as well, once, so that no generator has to agree.

Source: VeRA (Kopiczko et al. 2023, arXiv 2310.11454), section 3.

When not to use it: where LoRA of rank 1 or 2 is small enough. VeRA's ranks are in the hundreds, and every one costs time.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch

from inlay.core.routed import Factors
from inlay.methods.contract import LinearBase, LowRankMethod, Params, PeftForm, require
from inlay.methods.hooks import DropsInputs, Shares


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vera(LowRankMethod, Shares, DropsInputs):
    """y = W x + b + lambda_b * (B (lambda_d * (A x)))"""

    r: int = 256
    """Rank of the shared matrices: trained are r + out weights per layer."""

    d_initial: float = 0.1
    """What lambda_d starts at; the paper finds 0.1 or less best."""

    projection_prng_key: int = 0
    """Seed of the shared matrices."""

    vera_dropout: float = 0.0
    """Part of the adapter's input that is zeroed while training, 0 <= p < 1."""

    learning_rate_scale: ClassVar[float] = 10.0  # the paper's rates are 4e-3 to 2e-2 where LoRA takes 4e-4
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding")
    peft: ClassVar[PeftForm] = PeftForm(
        type="VERA",
        shared=("vera_A", "vera_B"),
        accepts={"bias": ("none",)},
        ignores=(
            "fan_in_fan_out",  # how the base stores its weight: read from the base itself
            "init_weights",  # how the vectors were started
            "save_projection",  # what the file lacks is drawn again
        ),
        writes={"save_projection": True},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.r >= 1, "r must be at least 1", f"r={self.r}", "--r 256")
        ok = 0 <= self.vera_dropout < 1
        require(
            ok, "vera_dropout must be a probability below 1", f"vera_dropout={self.vera_dropout}", "--vera-dropout 0.05"
        )

    def shared(self, bases: Sequence[LinearBase]) -> Params:
        generator = torch.Generator().manual_seed(self.projection_prng_key)
        widest, tallest = max(base.in_features for base in bases), max(base.out_features for base in bases)
        A, B = (
            torch.empty(shape).uniform_(-((6 / shape[1]) ** 0.5), (6 / shape[1]) ** 0.5, generator=generator)
            for shape in ((self.r, widest), (tallest, self.r))
        )
        return {"vera_A": A, "vera_B": B}

    def share(self, shared: Params, base: LinearBase) -> Params:
        return {"vera_A": shared["vera_A"][:, : base.in_features], "vera_B": shared["vera_B"][: base.out_features]}

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        return {"vera_lambda_d": (self.r,), "vera_lambda_b": (base.out_features,)}

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        return {
            "vera_lambda_d": torch.full((self.r,), float(self.d_initial)),
            "vera_lambda_b": torch.zeros(base.out_features),
        }

    def factors(self, params: Params) -> Factors:
        A = params["vera_lambda_d"][:, None] * params["vera_A"]
        return Factors(A, params["vera_lambda_b"][:, None] * params["vera_B"], 1.0)

    def describe(self) -> str:
        return f"r={self.r}"

    @property
    def input_dropout(self) -> float:
        return self.vera_dropout
