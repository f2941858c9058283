"""One face for the linear maps that models are made of: what a method sees of its base.

`torch.nn.Linear` stores W as (out, in); the `Conv1D` of transformers' GPT-2 family stores it as (in, out). Methods are
written once, for y = W x + b with W (out, in).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inlay.core.product import product_dtype
from inlay.model.frozen import FrozenLinear, QuantizedLinear, is_transposed
from inlay.quant._contract import Matrix


class Linear:
    """The `LinearBase` of a module: see `inlay.methods._contract`."""

    def __init__(self, module: nn.Module, transposed: bool):
        self.module = module
        self.transposed = transposed
        """The module stores its weight as (in, out)."""
        self.is_plain = type(module) in (nn.Linear, FrozenLinear, QuantizedLinear) or is_transposed(module)
        """Being called, the module computes W x + b and nothing else."""
        if isinstance(module, QuantizedLinear):
            self.in_features, self.out_features = module.in_features, module.out_features
        else:
            shape = tuple(self.stored.shape)
            self.in_features, self.out_features = shape if transposed else (shape[1], shape[0])

    @property
    def stored(self) -> Tensor:
        """The weight as the module answers for it; that of a quantised one is made anew."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]  # a module's attributes have no types
        return weight

    @property
    def matrix(self) -> Float[Tensor, "out in"] | Matrix:
        """The weight as the equation has it, as it is stored: a view, or a quantised matrix."""
        if isinstance(self.module, QuantizedLinear):
            return self.module.matrix
        return self.stored.T if self.transposed else self.stored

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        return self.module._parameters.get("bias")

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """What the module multiplies an input like `x` in."""
        return product_dtype(x) if isinstance(self.module, FrozenLinear | QuantizedLinear) else x.dtype

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        matrix = self.matrix
        return matrix.dequantize(dtype) if isinstance(matrix, Matrix) else matrix.to(dtype)

    def __call__(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        call: Callable[[Tensor], Tensor] = self.module
        return call(x)


def as_linear(module: nn.Module) -> Linear | None:
    """`module` as a linear map, or None where it is not one that computes by being called."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # torch's MultiheadAttention reads its weight and never calls it: a change would be passed by
    if isinstance(module, nn.Linear):
        return Linear(module, transposed=False)
    if isinstance(module, FrozenLinear | QuantizedLinear):
        return Linear(module, transposed=module.transposed)
    return Linear(module, transposed=True) if is_transposed(module) else None
