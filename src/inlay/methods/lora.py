"""LoRA: a low-rank change of a frozen linear map.

    y = W x + b + scaling B A x,   scaling = lora_alpha / r   (use_rslora: lora_alpha / sqrt(r))

A (r, in) starts uniform, B (out, r) at zero, so that training starts from the base itself; an initialiser may find them
elsewhere (`inlay.initializers`). r (in + out) weights are trained where W has in x out. Merged, W + scaling B A takes no more
time than W. LoRA+ gives B a higher learning rate than A; LoRA-FA leaves A as it was drawn, which needs fewer activations for
the backward pass.

Sources: LoRA (Hu et al. 2021, arXiv 2106.09685), section 4.1; rank-stabilised scaling (Kalajdzievski 2023, arXiv
2312.03732); LoRA+ (Hayou et al. 2024, arXiv 2402.12354); LoRA-FA (Zhang et al. 2023, arXiv 2308.03303). All linear layers by
default, because adapting attention alone is worse even at equal size (LoRA Without Regret, Thinking Machines 2025); rank 16
and lora_alpha 32 are in the range in which the best learning rate hardly depends on the rank, the same source.

When not to use it: where new knowledge of many more bits than 2 per trained weight is to be learned, raise r or train the
whole model. LoRA-FA, where memory is not what limits: it learns less (40.4 % against 47.8 % on MetaMathQA in PEFT's own table).
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from inlay import initializers
from inlay.core.routed import Factors
from inlay.methods._low_rank import LowRank
from inlay.methods.contract import KINDS, LinearBase, LowRankMethod, Params, PeftForm, require
from inlay.methods.hooks import Finishes, Starts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora(LowRank, LowRankMethod, Starts, Finishes):
    """y = W x + b + (lora_alpha / r) B A x"""

    loraplus_lr_ratio: float = 1.0
    """LoRA+: the learning rate of B is this many times that of A; its authors advise 16, with a lower --learning-rate."""

    freeze_a: bool = False
    """LoRA-FA: train B alone."""

    initializer: str = initializers.UNIFORM
    """Where A and B start: uniform and zero, or as an initialiser finds them."""

    learning_rate_scale: ClassVar[float] = 1.0
    kinds: ClassVar[tuple[str, ...]] = KINDS
    peft: ClassVar[PeftForm] = dataclasses.replace(LowRank.peft, omits=("loraplus_lr_ratio", "freeze_a", "initializer"))

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = self.loraplus_lr_ratio
        require(ratio > 0, "loraplus_lr_ratio must be above 0", f"loraplus_lr_ratio={ratio}", "--loraplus-lr-ratio 16")
        initializers.find(self.initializer)

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        return self._pair_shapes(base)

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        return self._pair(base, generator)

    @property
    def source(self) -> initializers.Source | None:
        chosen = initializers.find(self.initializer)
        return chosen and chosen.source

    @property
    def num_found(self) -> int:
        return 2 * max(self.r, *self.rank_pattern.values(), 0)

    @property
    def start_changes(self) -> bool:
        chosen = initializers.find(self.initializer)
        return chosen is not None and chosen.changes_at_start

    @property
    def _start(self) -> type[initializers.Initializer]:
        return initializers.find(self.initializer) or initializers.Initializer

    def describe(self) -> str:
        start = "" if self.initializer == initializers.UNIFORM else f" initializer={self.initializer}"
        return self._settings() + start

    def start(self, params: Params, found: Tensor, generator: torch.Generator) -> Params:
        chosen = initializers.find(self.initializer)
        assert chosen is not None, "its source says that there is something to find"
        A, B = chosen.factors(found, self.r, self.scaling, generator)
        require(
            len(A) == self.r,
            f"{self.initializer} needs at least as many inputs as the rank",
            f"{len(found)} inputs for r={self.r}",
            "more rows, or --initializer uniform",
        )
        B = params["lora_B"] if B is None else B
        if not chosen.is_taken_off:
            return {"lora_A": A, "lora_B": B}
        return {"lora_A": torch.zeros_like(A), "lora_B": torch.zeros_like(B), "start_A": A, "start_B": B}

    def factors(self, params: Params) -> Factors:
        pair = _whole(params)
        return Factors(pair["lora_A"], pair["lora_B"], self.scaling)

    @property
    def rates(self) -> Mapping[str, tuple[float, float]]:
        A, B = 0.0 if self.freeze_a else 1.0, self.loraplus_lr_ratio
        first, second = (self._start.rate * self._makes_up**power for power in self._start.makes_up)
        return {"lora_A": (A, A * first), "lora_B": (B, B * second), "start_A": (0.0, 0.0), "start_B": (0.0, 0.0)}

    def finish(self, params: Mapping[str, Params]) -> dict[str, Params]:
        return {path: {key: tensor.detach() for key, tensor in _whole(p).items()} for path, p in params.items()}

    def finished(self) -> "Lora":
        chosen = initializers.find(self.initializer)
        if chosen is None or not chosen.is_taken_off:
            return dataclasses.replace(self, initializer=initializers.UNIFORM)
        more = 2**0.5 if self.use_rslora else 2.0  # so that the scaling stays
        return dataclasses.replace(
            self,
            initializer=initializers.UNIFORM,
            r=2 * self.r,
            lora_alpha=more * self.lora_alpha,
            rank_pattern={key: 2 * r for key, r in self.rank_pattern.items()},
            alpha_pattern={key: more * alpha for key, alpha in self.alpha_pattern.items()},
        )


def _whole(params: Params) -> Params:
    """One module's tensors with its start in the factors, where it has one; see `inlay.initializers`."""
    if "start_A" not in params:
        return params
    A, B = params["lora_A"], params["lora_B"]
    kept = {key: tensor for key, tensor in params.items() if not key.startswith("start_")}
    return kept | {"lora_A": torch.cat([params["start_A"] + A, A], -2), "lora_B": torch.cat([B, params["start_B"]], -1)}
