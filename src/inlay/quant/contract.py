"""What a scheme is: a way to turn a weight into a few small tensors, and back into rows.

A quantised weight is a dict of tensors (`Packed`) under the names that the exchange format gives them: `""` for the codes,
which have the weight's own; `.absmax` and others that begin with a dot, which follow it (`proj.weight.absmax`); `SCB` and
others without one, which replace `weight` (`proj.SCB`). So writing one is writing tensors, and mapping a file is
enough to have it. `Scheme.open` checks them and returns the matrix (`Matrix`), whose rows are made where and when a product
needs them (`inlay.core.product`).

A scheme never learns what a method does to a weight, or what a model is.
"""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inlay.plugins import Contract

Packed = dict[str, Tensor]
"""The tensors of one quantised weight, by the end of their names in a checkpoint."""


class Matrix(abc.ABC):
    """A frozen weight W (out, in) that is held quantised.

    **Attributes:**

    - `shape`: (out, in).
    - `dtype`: that of the weight before it was quantised.
    - `packed`: what it is made of; never changed.
    - `before_use`: called when a product begins to make the rows; for whoever reads the next weight's file ahead.
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, packed: Packed):
        self.shape = shape
        self.dtype = dtype
        self.packed = packed
        self.before_use: Callable[[], None] = _nothing

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.packed[""].device

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        return sum(tensor.nbytes for tensor in self.packed.values())

    def read(self, start: int, out: Float[Tensor, "rows in"]) -> None:
        """Fill `out` with the rows from number `start` on, in the dtype of `out`, which is contiguous."""
        if start == 0:
            self.before_use()
        self._read(start, out)

    @abc.abstractmethod
    def _read(self, start: int, out: Float[Tensor, "rows in"]) -> None:
        """What `read` does."""

    def product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"] | None:
        """x W^T in the dtype of x by a way that suits few tokens, or None where there is none for these."""
        self.before_use()
        return self._product(x)

    @abc.abstractmethod
    def _product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"] | None:
        """What `product` does."""

    @abc.abstractmethod
    def over(self, packed: Packed) -> "Matrix":
        """The same weight in other tensors like its own, whose content is not looked at before it is used."""

    def dequantize(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """The whole weight."""
        out = torch.empty(self.shape, dtype=dtype, device=self.device)
        self.read(0, out)
        return out


class Table(Matrix, abc.ABC):
    """A matrix whose rows can be taken one by one, as an embedding does."""

    @abc.abstractmethod
    def take(self, ids: Int[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n in"]:
        """The rows of these numbers, a new tensor."""


def _nothing() -> None:
    pass


class Scheme(Contract, abstract=True):
    """A way to quantise weights; one instance has no state."""

    marks: ClassVar[tuple[str, ...]]
    """Ends of names that only this scheme's tensors have in a checkpoint."""

    config: ClassVar[Mapping[str, Any]]
    """What a checkpoint's configuration says of it, beside the method bitsandbytes; one from another package names a
    `quant_method` of its own, by which others see that they can't read it."""

    @abc.abstractmethod
    def problem(self, shape: tuple[int, ...]) -> str | None:
        """Why a weight of this shape can't be quantised; None where it can."""

    @abc.abstractmethod
    def layout(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The dtype and shape of every tensor that `quantize` returns, in its order."""

    @abc.abstractmethod
    def quantize(self, weight: Float[Tensor, "out in"]) -> Packed:
        """The tensors of a finite weight; it is not changed."""

    @abc.abstractmethod
    def refine(self, weight: Float[Tensor, "out in"]) -> Packed:
        """`quantize` nearer to the weight, where more work can find it: for a change that quantising must not erase."""

    @abc.abstractmethod
    def open(self, packed: Packed) -> Matrix:
        """The matrix of these tensors.

        **Raises:**

        - `FormatError`: they are not what this scheme writes, or of a form that it does not know.
        """

    @abc.abstractmethod
    def worst_error(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The most that each weight may be off after `quantize` and `open`, in float32."""

    def num_bytes(self, shape: tuple[int, int], dtype: torch.dtype) -> int:
        """What the tensors of a weight take: the storage formula."""
        return sum(math.prod(size) * kind.itemsize for kind, size in self.layout(shape, dtype).values())
