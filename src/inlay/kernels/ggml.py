"""Weights in ggml's types read and multiplied: each time by the fastest way that is there.

The rows of a weight are packed blocks, one row after the other; those that are wanted may be named by number, in any order.
On a processor that is `ggml.c`, where it was built and knows the type (`native`); else torch, by the equations of
`inlay.core.ggml`. Both give the same weights, to the bit. `product` has no way in torch: rows are made first.
"""

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from inlay.core import ggml


def dequantize(
    kind: str, data: UInt8[Tensor, "rows bytes"], numbers: Int[Tensor, " n"] | None, out: Float[Tensor, "n in"]
) -> None:
    """Fill `out` with rows of a weight of type `kind`: those of these numbers, or all of `data`, in their order."""
    packed = data if numbers is None else data[numbers.long()]
    out.copy_(ggml.unpack(kind, packed.reshape(-1, ggml.BLOCKS[kind][1])).view(out.shape))
