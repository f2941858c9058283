"""One face for the linear maps that models are made of: what a method sees of its base.

    linear      y = W x + b       torch.nn.Linear stores W as (out, in), the Conv1D of GPT-2 as (in, out); or it is quantised
    embedding   y = W onehot(x)   the table is W^T (vocabulary, width)
    conv2d      y = W patch + b   a patch is what the kernel lies on; W is the kernel, flattened

Methods are written once, for W (out, in) and one row of inputs per token.
"""

import abc
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from inlay.core.routed import routed
from inlay.kernels import product
from inlay.methods.contract import Params
from inlay.modules.frozen import FrozenLinear, Quantized, QuantizedLinear, is_embedding, is_transposed
from inlay.quant.contract import Matrix

Product = Callable[[str, int, Tensor, Tensor], Tensor]
"""(parameter, number of a map in it, inputs, number of each one's token) -> what that map makes of them."""

Known = Callable[[str], str | None]
"""The name under which a checkpoint has a tensor of the model; None where it has none."""


class Part(NamedTuple):
    """The rows of one map's weight from `start` on."""

    number: int
    """Which map it is, of those that a parameter holds."""
    start: int


class Linear(abc.ABC):
    """The `LinearBase` of a module: see `inlay.methods.contract`.

    A parameter may hold several, `count` of them, one after the other: an adapter's tensors then have them in front.
    """

    kind: ClassVar[str] = "linear"
    is_layer: ClassVar[bool] = True
    """It is one of all linear layers."""
    not_found: ClassVar[str] = "the checkpoint has no tensor of that name"
    """What is wrong where a checkpoint does not have the weight."""
    name: str = ""
    """The parameter that holds several; empty where the module is the map."""
    count: int | None = None
    """How many that holds."""

    def __init__(self, module: nn.Module, transposed: bool = False):
        self.module = module
        self.transposed = transposed
        """Its weight is stored as (in, out)."""
        self.is_plain = type(module) in (nn.Linear, FrozenLinear, QuantizedLinear) or is_transposed(module)
        """The module computes W x + b with it, and nothing else."""
        if isinstance(module, Quantized):
            self.in_features, self.out_features = module.in_features, module.out_features
        else:
            shape = tuple(self.stored.shape)
            self.in_features, self.out_features = shape if transposed else (shape[1], shape[0])

    @property
    def each(self) -> Sequence["Linear"]:
        """The map, or those that a parameter holds."""
        return (self,)

    @property
    def one(self) -> "Linear":
        """The first of them: what tensors of an adapter are shaped by."""
        return self.each[0]

    @property
    def front(self) -> tuple[int, ...]:
        """The dimensions that an adapter's tensors have in front."""
        return () if self.count is None else (self.count,)

    def parts(self, params: Params) -> Sequence[Params]:
        """The tensors of each map, from those that an adapter has of all."""
        if self.count is None:
            return (params,)
        unbound = {name: tensor.unbind() for name, tensor in params.items()}
        return [dict(zip(unbound, tensors, strict=True)) for tensors in zip(*unbound.values(), strict=True)]

    def joined(self, each: Sequence[Params]) -> Params:
        """The tensors that an adapter has of all maps, from those of each."""
        if self.count is None:
            return each[0]
        return {name: torch.stack([params[name] for params in each]) for name in each[0]}

    def holder(self, path: str) -> str:
        """The path of the module that holds the map at `path`."""
        return path[: -len(self.name) - 1] if self.name else path

    def stored_as(self, path: str, known: Known) -> dict[str, Part | None]:
        """Where a checkpoint has the weight of the map at `path`, by tensor name: all of it (None), or a part; empty where it
        does not have it."""
        name = known(f"{path}.weight")
        return {} if name is None else {name: None}

    @property
    def stored(self) -> Tensor:
        """The weight as the module answers for it; that of a quantised one is made anew."""
        weight = self.module._parameters.get("weight")  # quicker than the attribute, which is looked up here last
        return self.module.weight if weight is None else weight  # type: ignore[return-value]  # attributes have no types

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        return self.module._parameters.get("bias")

    @property
    def square_norms(self) -> Float[Tensor, " out"]:
        """|W|^2 by rows, in float32 or wider; found once."""
        return self._square_norms

    @cached_property
    def _square_norms(self) -> Tensor:
        with torch.no_grad():
            return self.weight(torch.promote_types(self._dtype, torch.float32)).square().sum(1)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float32 if isinstance(self.module, Quantized) else self.stored.dtype

    def product_dtype(self, x: Tensor) -> torch.dtype:
        """What the module multiplies an input like `x` in."""
        return product.product_dtype(x) if isinstance(self.module, FrozenLinear | QuantizedLinear) else x.dtype

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        matrix = self.matrix
        return matrix.dequantize(dtype) if isinstance(matrix, Matrix) else matrix.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """What the module answers."""
        call: Callable[[Tensor], Tensor] = self.module
        return call(x)

    def wide(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(W x + b, a new tensor, and x) in the dtype of the product, without gradients; in that of x as the module answers."""
        if dtype == x.dtype:
            return self(x), x
        wide = x.to(dtype)
        return product.linear(wide, self.matrix, self.bias), wide

    @property
    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """The dimensions of the weight by name, in the order in which the module stores them: out, in, ..."""

    @abc.abstractmethod
    def as_map(self, stored: Tensor) -> Float[Tensor, "out in"]:
        """A tensor that is stored as the module stores its weight, or rows of one, as the equation has it: a view."""

    @abc.abstractmethod
    def as_stored(self, weight: Float[Tensor, "out in"]) -> Tensor:
        """A weight as the equation has it, or rows of one, as the module stores it: a view."""

    @property
    @abc.abstractmethod
    def matrix(self) -> Float[Tensor, "out in"] | Matrix:
        """The weight as the equation has it, as it is stored: a view, or a quantised matrix."""

    @abc.abstractmethod
    def product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        """W x, with a gradient for x alone."""

    @abc.abstractmethod
    def replaced(self, x: Shaped[Tensor, "tokens *in"], own: Params) -> Float[Tensor, "tokens out"]:
        """The outputs with another weight, and another bias where there is one, stored as the module stores its own."""

    @abc.abstractmethod
    def add_rows_(
        self, y: Float[Tensor, "tokens out"], x: Tensor, ids: Int[Tensor, " n"], change: Float[Tensor, "n width"]
    ) -> None:
        """Let the vectors of these tokens, which a head multiplies with and an embedding answers, be others by `change`."""

    @abc.abstractmethod
    def merge_rows_(
        self, weight: Float[Tensor, "rows in"], ids: Int[Tensor, " n"], change: Float[Tensor, "n width"], start: int
    ) -> None:
        """The same in the weight, of which there are rows from `start` on."""

    @abc.abstractmethod
    def batch_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of the inputs without the numbers of each token: rows first."""

    @abc.abstractmethod
    def tokens(self, x: Tensor) -> Shaped[Tensor, "tokens *in"]:
        """The inputs as the equation has them, one row per token."""

    @abc.abstractmethod
    def flat(self, y: Tensor) -> Float[Tensor, "tokens out"]:
        """The outputs of the module, one row per token."""

    @abc.abstractmethod
    def shaped(self, flat: Float[Tensor, "tokens out"], like: Tensor) -> Tensor:
        """`flat` in the shape of the module's output `like`."""


class Dense(Linear):
    """Any other linear map."""

    @property
    def sizes(self) -> dict[str, int]:
        out_first = {"out": self.out_features, "in": self.in_features}
        return dict(reversed(out_first.items())) if self.transposed else out_first

    def as_map(self, stored: Tensor) -> Float[Tensor, "out in"]:
        return stored.T if self.transposed else stored

    def as_stored(self, weight: Float[Tensor, "out in"]) -> Tensor:
        return weight.T if self.transposed else weight

    @property
    def matrix(self) -> Float[Tensor, "out in"] | Matrix:
        if isinstance(self.module, QuantizedLinear):
            return self.module.matrix
        return self.stored.T if self.transposed else self.stored

    def product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        if self.is_plain:
            return routed(x, self.matrix, None, (), (), dtype=self.product_dtype(x))
        y = self(x)
        return y if self.bias is None else y - self.bias

    def replaced(self, x: Shaped[Tensor, "tokens *in"], own: Params) -> Float[Tensor, "tokens out"]:
        return _multiplied(x, self.as_map(own["weight"]), own.get("bias", self.bias), self.product_dtype(x))

    def add_rows_(
        self, y: Float[Tensor, "tokens out"], x: Tensor, ids: Int[Tensor, " n"], change: Float[Tensor, "n width"]
    ) -> None:
        y.index_add_(1, ids, (x @ change.to(x.dtype).T).to(y.dtype))

    def merge_rows_(self, weight: Tensor, ids: Tensor, change: Tensor, start: int) -> None:
        here = (ids >= start) & (ids < start + len(weight))
        weight[ids[here] - start] += change[here]

    def batch_shape(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape[:-1])

    def tokens(self, x: Tensor) -> Shaped[Tensor, "tokens *in"]:
        return x.reshape(-1, x.shape[-1])

    def flat(self, y: Tensor) -> Float[Tensor, "tokens out"]:
        return y.reshape(-1, y.shape[-1])

    def shaped(self, flat: Float[Tensor, "tokens out"], like: Tensor) -> Tensor:
        return flat.view(like.shape)


class ParameterMaps(Dense, abc.ABC):
    """The maps that a parameter holds, of a module that computes with them in its own way."""

    @abc.abstractmethod
    def computed(self, product: Product, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the module for these arguments, with `product` in the place of its own."""


class Embedding(Linear):
    """A table whose rows are read."""

    kind = "embedding"
    is_layer = False

    def __init__(self, module: nn.Module):
        super().__init__(module, transposed=True)
        self.is_plain = False

    @property
    def sizes(self) -> dict[str, int]:
        return {"in": self.in_features, "out": self.out_features}

    def as_map(self, stored: Tensor) -> Float[Tensor, "out in"]:
        return stored.T

    def as_stored(self, weight: Float[Tensor, "out in"]) -> Tensor:
        return weight.T

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        return self.stored.T

    def product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        return x @ self.stored.to(x.dtype)

    def replaced(self, x: Shaped[Tensor, "tokens *in"], own: Params) -> Float[Tensor, "tokens out"]:
        return nn.functional.embedding(x, own["weight"])

    def add_rows_(self, y: Tensor, x: Tensor, ids: Tensor, change: Tensor) -> None:
        is_one = x[:, None] == ids
        y[is_one.any(1)] += change[is_one.nonzero()[:, 1]].to(y.dtype)

    def merge_rows_(self, weight: Tensor, ids: Tensor, change: Tensor, start: int) -> None:
        weight[:, ids] += change.T[start : start + len(weight)]

    def batch_shape(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape)

    def tokens(self, x: Tensor) -> Shaped[Tensor, "tokens *in"]:
        return x.reshape(-1)

    def flat(self, y: Tensor) -> Float[Tensor, "tokens out"]:
        return y.reshape(-1, y.shape[-1])

    def shaped(self, flat: Float[Tensor, "tokens out"], like: Tensor) -> Tensor:
        return flat.view(like.shape)


class Convolution(Linear):
    """A convolution over images, (rows, channels, height, width), in one group."""

    kind = "conv2d"
    is_layer = False

    def __init__(self, module: nn.Conv2d):
        self.module: nn.Conv2d = module
        self.transposed = False
        self.is_plain = False
        self.in_features, self.out_features = math.prod(module.weight.shape[1:]), module.weight.shape[0]

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(("out", "in", "height", "width"), self.stored.shape, strict=True))

    def as_map(self, stored: Tensor) -> Float[Tensor, "out in"]:
        return stored.flatten(1)

    def as_stored(self, weight: Float[Tensor, "out in"]) -> Tensor:
        return weight.view(-1, *self.stored.shape[1:])

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        return self.stored.flatten(1)

    def product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]:
        return x @ self.matrix.to(x.dtype).T

    def replaced(self, x: Shaped[Tensor, "tokens *in"], own: Params) -> Float[Tensor, "tokens out"]:
        return _multiplied(x, self.as_map(own["weight"]), own.get("bias", self.bias), self.product_dtype(x))

    def add_rows_(self, y: Tensor, x: Tensor, ids: Tensor, change: Tensor) -> None:
        assert not len(ids), "no token has a vector in a convolution"

    def merge_rows_(self, weight: Tensor, ids: Tensor, change: Tensor, start: int) -> None:
        assert not len(ids), "no token has a vector in a convolution"

    def batch_shape(self, x: Tensor) -> tuple[int, ...]:
        module = self.module
        size = [
            (length + 2 * int(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for length, pad, dilation, kernel, stride in zip(
                x.shape[-2:], module.padding, module.dilation, module.kernel_size, module.stride, strict=True
            )
        ]
        return (x.shape[0], *size)

    def tokens(self, x: Tensor) -> Shaped[Tensor, "tokens *in"]:
        module = self.module
        padding = tuple(int(pad) for pad in module.padding)
        patches = nn.functional.unfold(x, module.kernel_size, module.dilation, padding, module.stride)
        return patches.transpose(1, 2).flatten(0, 1)

    def flat(self, y: Tensor) -> Float[Tensor, "tokens out"]:
        return y.flatten(2).transpose(1, 2).flatten(0, 1)

    def shaped(self, flat: Float[Tensor, "tokens out"], like: Tensor) -> Tensor:
        rows, channels, height, width = like.shape
        return flat.view(rows, height * width, channels).transpose(1, 2).reshape(like.shape)


def _multiplied(
    x: Float[Tensor, "tokens in"], weight: Float[Tensor, "out in"], bias: Tensor | None, dtype: torch.dtype
) -> Float[Tensor, "tokens out"]:
    """W x + b in `dtype`, as x has it."""
    made = nn.functional.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    return made.to(x.dtype)


def as_linear(module: nn.Module) -> Linear | None:
    """`module` as a linear map, or None where it is not one that computes by being called."""
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None  # torch's MultiheadAttention reads its weight and never calls it: a change would be passed by
    if isinstance(module, nn.Linear) and "Router" in type(module).__name__:
        return None  # it is a linear map in what it holds; what it answers is where tokens go
    if isinstance(module, nn.Linear):
        return Dense(module)
    if isinstance(module, FrozenLinear | QuantizedLinear):
        return Dense(module, transposed=module.transposed)
    if is_embedding(module):
        return Embedding(module)
    if type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
        return None if isinstance(module.padding, str) else Convolution(module)
    return Dense(module, transposed=True) if is_transposed(module) else None
