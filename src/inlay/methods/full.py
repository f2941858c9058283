"""Full fine-tuning: every weight of the model is trained. The reference that the other methods are compared with.

    y = W' x + b',   W' and b' start as W and b

The adapter is then as large as the model in float32, and its training takes four times that: weights, gradients, and two
moments of the optimiser. The base itself stays as it is; `inlay merge` writes the trained model.

When not to use it: where LoRA is enough, which it is for most fine-tuning data (LoRA Without Regret, Thinking Machines 2025).
It forgets more of what the base knew (LoRA Learns Less and Forgets Less, Biderman et al. 2024, arXiv 2405.09673).
"""

import dataclasses
from typing import ClassVar

from inlay.methods.contract import Method, Own
from inlay.methods.hooks import TrainsOwn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Full(Method, TrainsOwn):
    """y = W' x + b'"""

    # LoRA's best rate is ten times that of full fine-tuning, whatever the task: LoRA Without Regret
    learning_rate_scale: ClassVar[float] = 0.1

    def trains(self, own: Own) -> bool:
        return True

    def describe(self) -> str:
        return "every weight"
