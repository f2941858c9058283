"""Weights in ggml's types read and multiplied: each time by the fastest way that is there.

The rows of a weight are packed blocks, one row after the other; those that are wanted may be named by number, in any order.
On a processor that is `ggml.c`, where it was built (`native`); else torch, by the equations of `inlay.core.ggml`. Both give the
same weights, to the bit. `product` has no way in torch: rows are made first.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from inlay.core import ggml
from inlay.core.product import FEW_TOKENS
from inlay.kernels import native

LARGE_BYTES = 32 << 20
"""From here on memory comes from the system each time, in pages that `native.huge_pages` makes larger."""

_DEQUANTIZE, _PRODUCT = range(2)
"""The functions of `ggml.c`."""

_KINDS = tuple(ggml.BLOCKS)
"""The types, by their numbers in `ggml.c`."""

_DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes that it knows, by their numbers there."""


def dequantize(
    kind: str, data: UInt8[Tensor, "rows bytes"], numbers: Int[Tensor, " n"] | None, out: Float[Tensor, "n in"]
) -> None:
    """Fill `out` with rows of a weight of type `kind`: those of these numbers, or all of `data`, in their order."""
    if not _suits(data, numbers, out):
        packed = data if numbers is None else data[numbers.long()]
        out.copy_(ggml.unpack(kind, packed.reshape(-1, ggml.BLOCKS[kind][1])).view(out.shape))
        return
    if out.nbytes >= LARGE_BYTES:
        native.huge_pages(out)
    tensors = {"data": data, "numbers": numbers, "values": out}
    _run(_DEQUANTIZE, kind, tensors, len(out), out.dtype)


def product(
    x: Float[Tensor, "tokens in"], kind: str, data: UInt8[Tensor, "out bytes"], numbers: Int[Tensor, " out"] | None
) -> Float[Tensor, "tokens out"] | None:
    """x W^T for few tokens, W read once and never written; None where rows are better made first."""
    if not 0 < len(x) <= FEW_TOKENS or not _suits(data, numbers, x):
        return None
    y = torch.empty(len(x), len(data), dtype=x.dtype)
    tensors = {"data": data, "numbers": numbers, "x": x.contiguous(), "y": y}
    _run(_PRODUCT, kind, tensors, len(data), x.dtype, tokens=len(x))
    return y


def _suits(data: Tensor, numbers: Tensor | None, floats: Tensor) -> bool:
    """`ggml.c` is there and takes these tensors."""
    others = (data,) if numbers is None else (data, numbers)
    is_known = native.variant() != native.TORCH and floats.dtype in _DTYPES and floats.is_cpu
    is_known = is_known and all(tensor.is_cpu and tensor.is_contiguous() for tensor in others)
    return is_known and (numbers is None or numbers.dtype == torch.int32)


def _run(
    function: int, kind: str, tensors: dict[str, Tensor | None], rows: int, dtype: torch.dtype, *, tokens: int = 0
) -> None:
    """Do a job of so many rows."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    weights, num_bytes = ggml.BLOCKS[kind]
    row_bytes = given["data"].shape[1]
    width = row_bytes // num_bytes * weights
    fields = {"row_bytes": row_bytes, "in": width, "tokens": tokens, "rows": rows}
    fields |= {"kind": _KINDS.index(kind), "dtype": _DTYPES.index(dtype)}
    native.run("ggml", function, given, fields, rows, rows * width)
