"""LayerNorm tuning: the weights, and biases, of the model's norms are trained, and nothing else.

    y = norm(x) * w' + b',   w' and b' start as w and b

Source: Tuning LayerNorm in Attention (Zhao et al. 2023, arXiv 2312.11420), section 3.

When not to use it: where more than style or format is to be learned; a norm has as many weights as the model is wide.
"""

import dataclasses
from typing import ClassVar

from inlay.methods.contract import Method, Own, PeftForm
from inlay.methods.hooks import TrainsOwn
from inlay.names import Names, selects


@dataclasses.dataclass(frozen=True, kw_only=True)
class LnTuning(Method, TrainsOwn):
    """y = norm(x) * w' + b'"""

    target_modules: Names = ()
    """Which norms: names with commas between, or a regular expression; none given: all of them."""

    learning_rate_scale: ClassVar[float] = 5.0  # measured: docs/evidence/family.md
    peft: ClassVar[PeftForm] = PeftForm(
        type="LN_TUNING", tensors={"weight": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"}
    )

    def trains(self, own: Own) -> bool:
        return own.kind == "norm" and (not self.target_modules or selects(self.target_modules, own.path))

    def describe(self) -> str:
        return "every norm"
