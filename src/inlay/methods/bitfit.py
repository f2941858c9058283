"""BitFit: the biases that the model has are trained, and nothing else.

    y = W x + b',   b' starts as b

Source: BitFit (Ben-Zaken et al. 2021, arXiv 2106.10199), section 3.

When not to use it: on the Llama family and its likes, whose layers have no biases: there is then nothing to train, and Inlay
says so. Use (IA)^3 or LoRA there.
"""

import dataclasses
from typing import ClassVar

from inlay.methods.contract import Method, Own
from inlay.methods.hooks import TrainsOwn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bitfit(Method, TrainsOwn):
    """y = W x + b', the biases of linear maps and norms alike"""

    # the paper's rates are 1e-4 to 9e-4 where full fine-tuning takes 1e-5 to 5e-5
    learning_rate_scale: ClassVar[float] = 3.0

    def trains(self, own: Own) -> bool:
        return own.name == "bias"

    def describe(self) -> str:
        return "every bias"
