"""DoRA: LoRA on the direction of each row of the weight, and its length trained apart.

    y = m / |W + scaling B A| (W + scaling B A) x + b,   |.| by rows, m starts as |W|

The norm comes from the low-rank terms (`inlay.core.lowrank.square_norms`), so that W + scaling B A is never formed: beside
LoRA's products there is one of the base with the r rows of A. Its gradient is exact; the authors' code takes the norm for a
constant in the backward pass, to save the memory that forming the sum costs there.

Source: DoRA (Liu et al. 2024, arXiv 2402.09353), equations 5 and 6.

When not to use it: as a first choice. It takes longer than LoRA, and in PEFT's own comparison it is no better (MetaMathQA,
46.9 % against 47.8 %); it may help at very small ranks. It can't be written as a plain LoRA, so that few servers load it:
merge it for them.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from inlay.core import lowrank
from inlay.methods._low_rank import LowRank
from inlay.methods.contract import LinearBase, Params, PeftForm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dora(LowRank):
    """y = m / |W + scaling B A| (W + scaling B A) x + b"""

    learning_rate_scale: ClassVar[float] = 1.0
    kinds: ClassVar[tuple[str, ...]] = ("linear", "embedding", "conv2d")
    peft: ClassVar[PeftForm] = dataclasses.replace(
        LowRank.peft,
        tensors={**LowRank.peft.tensors, "lora_magnitude_vector": "lora_magnitude_vector"},
        accepts={**LowRank.peft.accepts, "use_dora": (True,)},
        writes={"use_dora": True},
    )

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        return self._pair_shapes(base) | {"lora_magnitude_vector": (base.out_features,)}

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        return self._pair(base, generator) | {"lora_magnitude_vector": base.square_norms.sqrt().float().cpu()}

    def delta(
        self,
        params: Params,
        x: Shaped[Tensor, "tokens *in"],
        y: Float[Tensor, "tokens out"],
        base: LinearBase,
    ) -> Float[Tensor, "tokens out"]:
        A, B = params["lora_A"], params["lora_B"]
        wide = base.square_norms.dtype
        projected = base.product(A.to(wide)).T  # (out, r)
        squares = lowrank.square_norms(base.square_norms, projected, A.to(wide), B.to(wide), self.scaling)
        gain = (params["lora_magnitude_vector"].to(wide) * squares.rsqrt()).to(y.dtype)
        plain = y if base.bias is None else y - base.bias.to(y.dtype)
        hidden = lowrank.project(x, A).to(y.dtype)
        turned = torch.addmm(plain, hidden, B.to(y.dtype).T, alpha=self.scaling)  # (W + scaling B A) x, kept once
        return gain * turned - plain

    def merge(
        self, params: Params, weight: Float[Tensor, "rows in"], bias: Float[Tensor, " rows"] | None, start: int = 0
    ) -> tuple[Float[Tensor, "rows in"], Float[Tensor, " rows"] | None]:
        rows = slice(start, start + len(weight))
        wide = torch.promote_types(weight.dtype, torch.float32)
        direction = lowrank.merged(weight.to(wide), params["lora_A"], params["lora_B"][rows], self.scaling)
        gain = params["lora_magnitude_vector"][rows].to(wide) / torch.linalg.vector_norm(direction, dim=1)
        return (gain[:, None] * direction).to(weight.dtype), bias

    def describe(self) -> str:
        return self._settings()

    @property
    def rates(self) -> Mapping[str, tuple[float, float]]:
        return {"lora_B": (1.0, self._makes_up)}
