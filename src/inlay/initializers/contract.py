"""What an initialiser is: the A0 and B0 that a low-rank change starts from, found in one matrix of the map.

Where B0 is not zero, the base with scaling B0 A0 added is another model. The papers take scaling B0 A0 off the base's weight
beforehand; here the base stays as it is, and what is learned is the change of both factors:

    y = W x + scaling ((B0 + dB)(A0 + dA) - B0 A0) x
      = W x + scaling (dB (A0 + dA) + B0 dA) x

the same function with the same gradients, zero at the start to the bit, and a plain LoRA of rank 2r once training is over:
its A is [A0 + dA; dA], its B is [dB, B0].
"""

import abc
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.plugins import Contract

Source = Literal["weight", "residual", "inputs", "gradient"]
"""The matrix that factors are found in.

    weight      W (out, in)
    residual    W - Q (out, in), where the base holds Q instead of W
    inputs      M (k, in), whose M^T M is that of the inputs x of some rows, but for their smallest singular values
    gradient    d loss / d W (out, in) of some rows, but for its smallest singular values
"""


class Initializer(Contract, abstract=True):
    """What every initialiser says. The docstring of the file has its equation, its source, and when not to use it."""

    source: ClassVar[Source]
    is_taken_off: ClassVar[bool] = False
    """The base is to say the same at the start, though B0 A0 is not zero."""

    changes_at_start: ClassVar[bool] = False
    """The base is to say something else at the start: B0 A0 is not zero, and stays."""

    makes_up: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """With a scaling c times as small the same is learned where A's and B's rates are c to these powers times as high."""

    rate: ClassVar[float] = 1.0
    """What the learning rate that suits LoRA's own start is multiplied by: measured with benchmarks/method_rates.py."""

    @staticmethod
    @abc.abstractmethod
    def factors(
        found: Float[Tensor, "rows in"], r: int, scaling: float, generator: torch.Generator
    ) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"] | None]:
        """A0, and B0 where it is not zero: float32, where `found` is.

        **Arguments:**

        - `found`: the matrix that `source` names, float32.
        - `scaling`: what multiplies B A.
        - `generator`: for whatever is drawn.
        """
