"""Frozen modules over mapped weights: a weight stays as the file has it, whatever dtype the model computes in.

    FrozenLinear       y = W x + b, products in the dtype that the processor is fast in (`inlay.core.product`)
    QuantizedLinear    the same over a quantised weight, of which a tile of rows at a time is made
    FrozenEmbedding    rows of the table, widened as they are read
    QuantizedEmbedding the same of a quantised table
    Placeholder        what stands for a quantised one until its weight is there

`freeze_` replaces a model's own linear layers and embeddings by them, so that a bfloat16 checkpoint that is computed
with in float32 needs no converted copy. They answer to `.weight` and `.bias`, which some models read.
"""

import sys

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inlay.core.product import Rows
from inlay.core.routed import routed
from inlay.kernels import product
from inlay.quant.contract import Matrix, Table


class FrozenLinear(nn.Module):
    """Replaces an `nn.Linear` or, `transposed`, a `Conv1D`; it is never trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None, transposed: bool):
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.transposed = transposed
        out_first = tuple(weight.shape[::-1] if transposed else weight.shape)
        self.out_features, self.in_features = out_first

    def extra_repr(self) -> str:
        return f"{self.in_features} to {self.out_features}, {str(self.weight.dtype).removeprefix('torch.')}"

    @property
    def matrix(self) -> Float[Tensor, "out in"]:
        """W; a view."""
        return self.weight.T if self.transposed else self.weight

    def over(self, matrix: Matrix) -> "QuantizedLinear":
        """The same layer, its weight held in another way."""
        return QuantizedLinear(matrix, self.bias, self.transposed)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return _linear(x, self.matrix, self.bias)


class Quantized(nn.Module):
    """A module whose weight is quantised; it is never trained."""

    matrix: Matrix
    in_features: int
    out_features: int


class QuantizedLinear(Quantized):
    """Replaces an `nn.Linear` or, `transposed`, a `Conv1D`."""

    def __init__(self, matrix: Matrix, bias: Tensor | None, transposed: bool):
        super().__init__()
        self.matrix = matrix
        self.bias = bias
        self.transposed = transposed
        self.out_features, self.in_features = matrix.shape

    @property
    def weight(self) -> Float[Tensor, "rows columns"]:
        """The weight as it was stored before, made anew each time it is read: for models that ask their linear maps for it."""
        weight = self.matrix.dequantize(self.matrix.dtype)
        return weight.T if self.transposed else weight

    def extra_repr(self) -> str:
        return f"{self.in_features} to {self.out_features}, quantised"

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return _linear(x, self.matrix, self.bias)


class QuantizedEmbedding(Quantized):
    """Replaces an `nn.Embedding`: rows of its table are made as they are read, in `dtype`."""

    def __init__(self, matrix: Table, dtype: torch.dtype):
        super().__init__()
        self.matrix = self.table = matrix
        self.dtype = dtype
        self.in_features, self.out_features = matrix.shape

    @property
    def weight(self) -> Float[Tensor, "rows width"]:
        """The whole table, made anew each time it is read."""
        return self.matrix.dequantize(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, quantised"

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        return self.table.take(ids.reshape(-1), self.dtype).view(*ids.shape, self.out_features)


class Placeholder(nn.Module):
    """Replaces a linear layer or an embedding whose weight is read from the quantised file; `shape` is that of W, (out, in)."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.is_table = isinstance(module, nn.Embedding)
        self.transposed = is_transposed(module)
        rows, columns = module.get_parameter("weight").shape
        self.shape = (columns, rows) if self.transposed else (rows, columns)
        self.bias = module._parameters.get("bias")
        self.weight = torch.empty(0, device="meta")  # some models fill it with first values, before what is loaded

    def filled(self, matrix: Matrix, dtype: torch.dtype) -> QuantizedLinear | QuantizedEmbedding:
        """The module with its weight; an embedding answers in `dtype`."""
        if self.is_table:
            assert isinstance(matrix, Table), "tables are quantised by GGUF alone"
            return QuantizedEmbedding(matrix, dtype)
        return QuantizedLinear(matrix, self.bias, self.transposed)


class FrozenEmbedding(nn.Module):
    """Replaces an `nn.Embedding`: its rows are read from the mapped file."""

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        super().__init__()
        self.weight = weight
        self.dtype = dtype

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        return nn.functional.embedding(ids, self.weight).to(self.dtype)


def _linear(
    x: Float[Tensor, "*batch in"], matrix: Float[Tensor, "out in"] | Rows, bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*batch out"]:
    """W x + b, with a gradient for x alone."""
    dtype = product.product_dtype(x)
    if not torch.is_grad_enabled():  # to enter autograd costs as much as a product of a few tokens
        if dtype == x.dtype:
            return product.linear(x, matrix, bias)
        return product.linear(x.to(dtype), matrix, bias).to(x.dtype)
    y = routed(x.reshape(-1, x.shape[-1]), matrix, bias, (), (), dtype=dtype)
    return y.view(*x.shape[:-1], y.shape[-1])


def is_embedding(module: nn.Module) -> bool:
    """A table whose rows are read, and nothing else."""
    return isinstance(module, FrozenEmbedding | QuantizedEmbedding) or type(module) is nn.Embedding


def table_size(table: nn.Module) -> tuple[int, int]:
    """How many rows an embedding has, and how many numbers each."""
    if isinstance(table, QuantizedEmbedding):
        return table.matrix.shape
    weight: Tensor = table.weight  # type: ignore[assignment]  # attributes have no types
    return weight.shape[0], weight.shape[1]


def table_rows(table: nn.Module, ids: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
    """Rows of an embedding as its table has them, in the memory of the processor."""
    if isinstance(table, QuantizedEmbedding):
        return table.table.take(ids.to(table.table.device), table.dtype).cpu()
    weight: Tensor = table.weight  # type: ignore[assignment]
    return weight.detach()[ids.to(weight.device)].cpu()


def is_linear_layer(module: nn.Module) -> bool:
    """A layer as models of `transformers` have them: an `nn.Linear`, or one of its subclasses, or a `Conv1D`."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """A `Conv1D` of transformers, which stores its weight as (in, out)."""
    transformers = sys.modules.get("transformers.pytorch_utils")  # a Conv1D exists only where it was imported
    return transformers is not None and type(module) is transformers.Conv1D


def num_weights(model: nn.Module) -> int:
    """How many weights a model has, tied ones once, quantised ones as they were before."""
    matrices = {module.matrix for module in model.modules() if isinstance(module, Quantized)}
    quantized = sum(rows * columns for rows, columns in (matrix.shape for matrix in matrices))
    return quantized + sum(parameter.numel() for parameter in model.parameters())


def freeze_(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the linear layers and embeddings of `model` by frozen ones; it then computes in `dtype`.

    Subclasses compute in ways of their own, so they stay, and are converted with the rest: norms, buffers, small things. What
    `transformers` keeps in float32 beside 16 bits stays so: gates that route, decays of states.
    """
    kept = (dtype, torch.float32)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear or is_transposed(child):
                frozen = FrozenLinear(child.get_parameter("weight"), child._parameters["bias"], is_transposed(child))
                setattr(module, name, frozen)
            elif type(child) is nn.Embedding and child.weight.dtype != dtype:
                setattr(module, name, FrozenEmbedding(child.get_parameter("weight"), dtype))
    for module in model.modules():
        for parameter in () if isinstance(module, FrozenLinear | FrozenEmbedding) else module._parameters.values():
            if parameter is not None and parameter.is_floating_point() and parameter.dtype not in kept:
                parameter.data = parameter.data.to(dtype)
