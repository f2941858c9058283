"""What the methods with factors lora_A (r, in) and lora_B (out, r) have in common: their settings, and how they are checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch

from inlay.core import lowrank
from inlay.methods.contract import TOKEN_ROWS, LinearBase, LinearMethod, Own, Params, PeftForm, require
from inlay.methods.hooks import ByModule, DropsInputs, Rates, TrainsOwn, TrainsTokens
from inlay.names import fault, matches_end

REFERENCE_ALPHA = 32
"""The lora_alpha, with scaling lora_alpha / r, that learning-rate rules are stated for: at it the best rate hardly depends
on the rank. Source: LoRA Without Regret (Thinking Machines 2025)."""


Self = TypeVar("Self", bound="LowRank")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(LinearMethod, TrainsOwn, TrainsTokens, ByModule, DropsInputs, Rates, abstract=True):
    """The settings of LoRA."""

    r: int = 16
    """Rank of the change, at most the smaller side of each adapted layer."""

    lora_alpha: float = 32
    """Numerator of the scaling lora_alpha / r; with the default learning rate, B's makes up for it."""

    lora_dropout: float = 0.0
    """Part of the adapter's input that is zeroed while training, 0 <= p < 1."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead."""

    bias: Literal["none", "lora_only", "all"] = "none"
    """Biases to train too: of the adapted layers alone, or all that the model has."""

    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Another r for some modules: a name or regular expression, matched against the end of the path, and its r."""

    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Another lora_alpha for some modules, likewise."""

    trainable_token_indices: tuple[int, ...] = ()
    """Tokens, by number, whose embeddings are trained too, with their rows of a head that is tied to the embedding."""

    peft: ClassVar[PeftForm] = PeftForm(
        type="LORA",
        tensors={
            "lora_A": "lora_A.weight",
            "lora_B": "lora_B.weight",
            TOKEN_ROWS: "token_adapter.trainable_tokens_delta",
        },
        embedding_tensors={"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"},
        kernels={"lora_A": "kernel", "lora_B": "point", "lora_magnitude_vector": "channel"},
        defaults={"r": 8, "lora_alpha": 8},
        accepts={
            **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "corda_config", "enable_lora"), (None,)),
            **dict.fromkeys(("kasa_config", "lora_ga_config", "megatron_config", "monteclora_config"), (None,)),
            **dict.fromkeys(("ensure_weight_tying", "lora_bias", "merge_weights", "use_dora", "use_qalora"), (False,)),
            "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),  # the others change the base
            "layer_replication": (None, []),
            "loftq_config": (None, {}),
            "use_bdlora": (None, False),
            "velora_config": (None,),
        },
        ignores=(
            "eva_config",  # how A was started; the forward pass is LoRA's
            "fan_in_fan_out",  # how the base stores its weight: read from the base itself
            "megatron_core",  # read only with megatron_config
            "qalora_group_size",  # read only with use_qalora
            "runtime_config",  # where to compute, not what
            "target_parameters",  # which parameters; resolved where the model is known
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for r in (self.r, *self.rank_pattern.values()):
            require(r >= 1, "r must be at least 1", f"r={r}", "--r 16")
        smallest, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            wrong = "lora_alpha must be above 0 and a number of float32"
            require(smallest <= alpha <= largest, wrong, f"lora_alpha={alpha}", "--lora-alpha 32")
        for field in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, field):
                wrong = f"a key of {field} is not a regular expression"
                require(
                    not fault(key), wrong, f"{key[:80]!r}", "a module's name, or an expression with all brackets closed"
                )
        require(
            0 <= self.lora_dropout < 1,
            "lora_dropout must be a probability below 1",
            f"lora_dropout={self.lora_dropout}",
            "--lora-dropout 0.05",
        )

    @property
    def token_ids(self) -> Sequence[int]:
        return self.trainable_token_indices

    @property
    def scaling(self) -> float:
        """What multiplies B A."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    def _pair_shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        """The shapes of the factors."""
        return {"lora_A": (self.r, base.in_features), "lora_B": (base.out_features, self.r)}

    def _pair(self, base: LinearBase, generator: torch.Generator) -> Params:
        """New factors: A uniform, B zero."""
        smaller = min(base.in_features, base.out_features)
        require(
            self.r <= smaller,
            "r is larger than the smaller side of this layer",
            f"r={self.r} for a layer of {base.in_features} inputs and {base.out_features} outputs",
            f"--r {smaller}, or a rank_pattern for this layer",
        )
        A = lowrank.kaiming_uniform(self.r, base.in_features, generator)
        return {"lora_A": A, "lora_B": torch.zeros(base.out_features, self.r)}

    def trains(self, own: Own) -> bool:
        return own.name == "bias" and (self.bias == "all" or (self.bias == "lora_only" and own.is_adapted))

    def for_module(self: Self, path: str) -> Self:
        if not self.patterns:
            return self
        changed: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
        for field, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            found = (value for key, value in getattr(self, pattern).items() if matches_end(key, path))
            changed[field] = next(found, getattr(self, field))  # the first that fits, as the exchange format has it
        return dataclasses.replace(self, **changed)

    @property
    def patterns(self) -> Sequence[str]:
        return (*self.rank_pattern, *self.alpha_pattern)

    def _settings(self) -> str:
        """Those that matter most, in one line."""
        dropout = f" lora_dropout={self.lora_dropout:g}" if self.lora_dropout else ""
        bias = "" if self.bias == "none" else f" bias={self.bias}"
        return f"r={self.r} lora_alpha={self.lora_alpha:g} (scaling {self.scaling:g}){dropout}{bias}"

    @property
    def _makes_up(self) -> float:
        """How much faster B learns, so that scaling B moves as it does with the lora_alpha that the rate is stated for."""
        return (REFERENCE_ALPHA / self.r) / self.scaling

    @property
    def input_dropout(self) -> float:
        return self.lora_dropout
