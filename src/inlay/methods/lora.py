"""LoRA: a low-rank change of a frozen linear map.

    y = W x + b + scaling B A x,   scaling = lora_alpha / r   (use_rslora: lora_alpha / sqrt(r))

A (r, in) starts uniform, B (out, r) at zero, so that training starts from the base itself; r (in + out) weights are
trained where W has in x out. Merged, W + scaling B A takes no more time than W.

Sources: LoRA (Hu et al. 2021, arXiv 2106.09685), section 4.1; rank-stabilised scaling (Kalajdzievski 2023, arXiv
2312.03732). All linear layers by default, because adapting attention alone is worse even at equal size (LoRA Without
Regret, Thinking Machines 2025); rank 16 and lora_alpha 32 are in the range in which the best learning rate hardly depends
on the rank, the same source.

When not to use it: where new knowledge of many more bits than 2 per trained weight is to be learned, raise r or train the
whole model.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from inlay import fields
from inlay.core import lowrank
from inlay.core.routed import Factors
from inlay.methods._contract import LinearBase, LinearMethod, Params, matches_end, require

REFERENCE_ALPHA = 32
"""The lora_alpha, with scaling lora_alpha / r, that learning-rate rules are stated for: at it the best rate hardly depends
on the rank. Source: LoRA Without Regret (Thinking Machines 2025)."""


def _is(*values: object) -> Callable[[Any], bool]:
    return lambda value: value in values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora(LinearMethod):
    """y = W x + b + (lora_alpha / r) B A x"""

    r: int = 16
    """Rank of the change, at most the smaller side of each adapted layer."""

    lora_alpha: float = 32
    """Numerator of the scaling lora_alpha / r."""

    lora_dropout: float = 0.0
    """Part of the adapter's input that is zeroed while training, 0 <= p < 1."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead; the default learning rate assumes lora_alpha / r."""

    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Another r for some modules: a name or regular expression, matched against the end of the path, and its r."""

    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Another lora_alpha for some modules, likewise."""

    peft_type: ClassVar[str] = "LORA"
    peft_tensors: ClassVar[Mapping[str, str]] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    peft_defaults: ClassVar[Mapping[str, Any]] = {"r": 8, "lora_alpha": 8}
    peft_accepts: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        "alora_invocation_tokens": _is(None),
        "arrow_config": _is(None),
        "bias": _is("none"),
        "corda_config": _is(None),
        "enable_lora": _is(None),
        "ensure_weight_tying": _is(False),
        "eva_config": lambda value: True,  # how A was started; the forward pass is LoRA's
        "fan_in_fan_out": lambda value: True,  # how the base stores its weight: read from the base itself
        "init_lora_weights": _is(True, False, "gaussian", "eva", "orthogonal", "mica"),  # the others change the base
        "kasa_config": _is(None),
        "layer_replication": _is(None, []),
        "loftq_config": _is(None, {}),
        "lora_bias": _is(False),
        "lora_ga_config": _is(None),
        "megatron_config": _is(None),
        "megatron_core": lambda value: True,  # read only with megatron_config
        "merge_weights": _is(False),
        "modules_to_save": _is(None, []),
        "monteclora_config": _is(None),
        "qalora_group_size": lambda value: True,  # read only with use_qalora
        "runtime_config": lambda value: True,  # where to compute, not what
        "target_parameters": _is(None, []),
        "trainable_token_indices": _is(None, []),
        "use_bdlora": _is(None, False),
        "use_dora": _is(False),
        "use_qalora": _is(False),
        "velora_config": _is(None),
    }

    def __post_init__(self) -> None:
        fields.settle_(self)
        for r in (self.r, *self.rank_pattern.values()):
            require(r >= 1, "the rank r is at least 1", f"r={r}", "--r 16")
        smallest, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            wrong = "lora_alpha is above 0 and a number of float32"
            require(smallest <= alpha <= largest, wrong, f"lora_alpha={alpha}", "--lora-alpha 32")
        for field in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, field):
                wrong = f"a key of {field} is not a regular expression"
                require(_compiles(key), wrong, f"{key!r}", "a module's name, or an expression with all brackets closed")
        require(
            0 <= self.lora_dropout < 1,
            "lora_dropout is a probability below 1",
            f"lora_dropout={self.lora_dropout}",
            "--lora-dropout 0.05",
        )

    @property
    def scaling(self) -> float:
        """What multiplies B A."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        return {"lora_A": (self.r, base.in_features), "lora_B": (base.out_features, self.r)}

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        require(
            self.r <= min(base.in_features, base.out_features),
            "the rank r is at most the smaller side of the layer",
            f"r={self.r} for a layer of {base.in_features} inputs and {base.out_features} outputs",
            f"--r {min(base.in_features, base.out_features)}, or a rank_pattern for this layer",
        )
        A = lowrank.kaiming_uniform(self.r, base.in_features, generator)
        return {"lora_A": A, "lora_B": torch.zeros(base.out_features, self.r)}

    def delta(
        self,
        params: Params,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        base: LinearBase,
    ) -> Float[Tensor, "tokens out"]:
        A, B = params["lora_A"].to(x.dtype), params["lora_B"].to(x.dtype)
        return self.scaling * ((x @ A.T) @ B.T)

    def merge(
        self, params: Params, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        return lowrank.merged(weight, params["lora_A"], params["lora_B"], self.scaling), bias

    def rows(self, params: Params, start: int, stop: int) -> Params:
        return {"lora_A": params["lora_A"], "lora_B": params["lora_B"][start:stop]}

    def factors(self, params: Params) -> Factors:
        return Factors(params["lora_A"], params["lora_B"], self.scaling)

    def for_module(self, path: str) -> "Lora":
        if not self.patterns:
            return self
        r = _first_match(self.rank_pattern, path, self.r)
        return dataclasses.replace(
            self,
            r=r,
            lora_alpha=_first_match(self.alpha_pattern, path, self.lora_alpha),
            rank_pattern={},
            alpha_pattern={},
        )

    @property
    def patterns(self) -> Sequence[str]:
        return (*self.rank_pattern, *self.alpha_pattern)

    def describe(self) -> str:
        dropout = f" lora_dropout={self.lora_dropout:g}" if self.lora_dropout else ""
        return f"r={self.r} lora_alpha={self.lora_alpha:g} (scaling {self.scaling:g}){dropout}"

    @property
    def learning_rate_scale(self) -> float:
        return (REFERENCE_ALPHA / self.r) / self.scaling

    @property
    def input_dropout(self) -> float:
        return self.lora_dropout


def _first_match(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first key that names `path`, as the exchange format matches them."""
    return next((value for key, value in pattern.items() if matches_end(key, path)), default)


def _compiles(key: str) -> bool:
    try:
        re.compile(rf"^(.*\.)?({key})$")
    except re.error:
        return False
    return True
