"""The weights of a GGUF file as matrices: the mapped bytes, read where a product needs them.

    ""        the rows as the file has them: packed blocks as bytes (out, bytes of a row), or numbers (out, in)
    .order    int32 (out): which row of the file is each row of the weight, where llama.cpp put them in another order

A block lies along a row, so that rows in another order are the same numbers. `inlay.gguf.names` says where that is.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inlay.core import ggml
from inlay.core.product import FEW_TOKENS
from inlay.errors import FormatError, ShapeError, explain
from inlay.kernels import ggml as kernels
from inlay.kernels import product
from inlay.quant.contract import Matrix, Packed, Table

ORDER = ".order"
"""The tensor that says in which order rows stand in the file."""

NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types whose rows are numbers."""

READ = (*ggml.BLOCKS, *NUMBERS)
"""The types that are read as weights, by their names in `inlay.gguf.types`."""


def open_matrix(kind: str, packed: Packed) -> Table:
    """The matrix of these tensors, of the type `kind`, one of `READ`.

    **Raises:**

    - `FormatError`: they are not what such a weight is made of.
    """
    data, order = packed[""], packed.get(ORDER)
    is_whole = data.dim() == 2 and data.dtype == NUMBERS.get(kind, torch.uint8)
    is_whole = is_whole and (kind in NUMBERS or data.shape[1] % ggml.BLOCKS[kind][1] == 0)
    if order is not None and is_whole:
        is_whole = order.dtype == torch.int32 and torch.equal(order.long().sort()[0], torch.arange(len(data)))
    if not is_whole:
        found = f"{kind}: {tuple(data.shape)} of {data.dtype}" + ("" if order is None else ", rows in an order")
        raise FormatError(explain("these are not the rows of a weight in a GGUF file", found=found))
    return NumbersMatrix(kind, packed) if kind in NUMBERS else BlocksMatrix(kind, packed)


class BlocksMatrix(Table):
    """A weight in blocks. The file does not say the weight's own dtype; it is taken for the one of most models."""

    def __init__(self, kind: str, packed: Packed):
        rows, row_bytes = packed[""].shape
        weights, num_bytes = ggml.BLOCKS[kind]
        super().__init__((rows, row_bytes // num_bytes * weights), torch.bfloat16, packed)
        self.kind = kind

    def _read(self, start: int, out: Float[Tensor, "rows in"]) -> None:
        data, order = _rows(self.packed, start, len(out))
        kernels.dequantize(self.kind, data, order, out)

    def take(self, ids: Int[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n in"]:
        self.before_use()
        if (
            len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.shape[0]
        ):  # nobody else looks before it is read
            found = f"rows {int(ids.min())} to {int(ids.max())} of {self.shape[0]}"
            raise ShapeError(explain("this table has no such rows", found=found))
        out = torch.empty(len(ids), self.shape[1], dtype=dtype, device=self.device)
        kernels.dequantize(self.kind, self.packed[""], _numbers(self.packed, ids), out)
        return out

    def _product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"] | None:
        return kernels.product(x, self.kind, self.packed[""], self.packed.get(ORDER))

    def over(self, packed: Packed) -> Matrix:
        return BlocksMatrix(self.kind, packed)


class NumbersMatrix(Table):
    """A weight in numbers, which may stand in another order of rows."""

    def __init__(self, kind: str, packed: Packed):
        rows, columns = packed[""].shape
        super().__init__((rows, columns), NUMBERS[kind], packed)
        self.kind = kind

    def _read(self, start: int, out: Float[Tensor, "rows in"]) -> None:
        data, order = _rows(self.packed, start, len(out))
        out.copy_(data if order is None else data[order.long()])

    def take(self, ids: Int[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, "n in"]:
        self.before_use()
        return self.packed[""][_numbers(self.packed, ids).long()].to(dtype)

    def _product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"] | None:
        if len(x) > FEW_TOKENS or not x.is_cpu:
            return None
        y = product.linear(x, self.packed[""], None)
        return y[:, self.packed[ORDER].long()] if ORDER in self.packed else y

    def over(self, packed: Packed) -> Matrix:
        return NumbersMatrix(self.kind, packed)


def _rows(packed: Packed, start: int, count: int) -> tuple[Tensor, Int[Tensor, " n"] | None]:
    """The rows of a weight from `start` on: rows that follow each other in the file, or all of it and their numbers there."""
    if ORDER in packed:
        return packed[""], packed[ORDER][start : start + count]
    return packed[""][start : start + count], None


def _numbers(packed: Packed, ids: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Which rows of the file are these rows of the weight."""
    return packed[ORDER][ids] if ORDER in packed else ids.int()
