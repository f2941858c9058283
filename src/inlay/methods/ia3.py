"""(IA)^3: a factor for every output of some linear maps, or for every input of others.

    y = l * (W x + b)      keys and values
    y = W (l * x) + b      the maps of feedforward_modules, whose inputs are the inner activations of the MLP

l starts at one. It is the smallest of the methods: out or in weights per map. Factors of inputs cost a second product with
the base where the method is not merged.

Source: Few-Shot Parameter-Efficient Fine-Tuning (Liu et al. 2022, arXiv 2205.05638), section 3.3.

When not to use it: where there is data for more than a few hundred examples; it has too few weights to go far from the base.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from inlay.methods.contract import LinearBase, LinearMethod, Params, PeftForm
from inlay.methods.hooks import ByModule
from inlay.names import Names, selects

KEYS_AND_VALUES = "k_proj|v_proj|qkv_proj|key|value|c_attn|query_key_value|k|v|key_proj|value_proj|k_lin|v_lin"
LAST_OF_MLP = "down_proj|mlp.c_proj|dense_4h_to_h|wo|fc2|lin2|w2|w_down|[0-9]+.output.dense"

EVERY = ".*"
"""Every path: what `Ia3.for_module` says of a map whose inputs are scaled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ia3(LinearMethod, ByModule):
    """y = l * (W x + b), or W (l * x) + b"""

    target_modules: Names = rf"(.*\.)?({KEYS_AND_VALUES}|{LAST_OF_MLP})"
    """Which layers: keys, values and the last of each MLP, as the paper has it; names with commas, or a regular expression."""

    feedforward_modules: Names = rf"(.*\.)?({LAST_OF_MLP})"
    """Those of them whose inputs are scaled, not their outputs, in the same forms."""

    # the paper's rate, 3e-3, is ten times what LoRA takes at its models' width
    learning_rate_scale: ClassVar[float] = 10.0
    peft: ClassVar[PeftForm] = PeftForm(
        type="IA3",
        selections=("feedforward_modules",),
        defaults={"feedforward_modules": ()},
        ignores=(
            "fan_in_fan_out",  # how the base stores its weight: read from the base itself
            "init_ia3_weights",  # how l was started
        ),
    )

    def for_module(self, path: str) -> "Ia3":
        chosen = EVERY if selects(self.feedforward_modules, path) else ()
        return dataclasses.replace(self, feedforward_modules=chosen)

    @property
    def patterns(self) -> Sequence[str]:
        return ()

    @property
    def _is_of_inputs(self) -> bool:
        """This is the method for a map whose inputs are scaled."""
        return self.feedforward_modules == EVERY

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        return {"ia3_l": (1, base.in_features) if self._is_of_inputs else (base.out_features, 1)}

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        return {name: torch.ones(shape) for name, shape in self.shapes(base).items()}

    def delta(
        self,
        params: Params,
        x: Shaped[Tensor, "tokens *in"],
        y: Float[Tensor, "tokens out"],
        base: LinearBase,
    ) -> Float[Tensor, "tokens out"]:
        if self._is_of_inputs:
            return base.product((params["ia3_l"].flatten().to(x.dtype) - 1) * x)
        return (params["ia3_l"].flatten().to(y.dtype) - 1) * y

    def merge(
        self, params: Params, weight: Float[Tensor, "rows in"], bias: Float[Tensor, " rows"] | None, start: int = 0
    ) -> tuple[Float[Tensor, "rows in"], Float[Tensor, " rows"] | None]:
        if self._is_of_inputs:
            return params["ia3_l"].to(weight.dtype) * weight, bias
        factor = params["ia3_l"].flatten()[start : start + len(weight)].to(weight.dtype)
        return factor[:, None] * weight, None if bias is None else factor * bias

    def describe(self) -> str:
        return "one factor per input" if self._is_of_inputs else "one factor per output"
