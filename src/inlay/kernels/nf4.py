"""NF4 weights read and written: the plain way of `inlay.core.blocks`, to which every faster one is equal bit for bit."""

from typing import NamedTuple

from jaxtyping import Float, UInt8
from torch import Tensor

from inlay.core import blocks


class Constants(NamedTuple):
    """The constants of a weight's blocks, in the order of its rows; quantised themselves where `nested` is there."""

    absmax: Tensor
    """(blocks,): float32, or uint8 places in `map`."""
    nested: Tensor | None
    map: Tensor | None
    offset: float

    def read(self, start: int, stop: int) -> Float[Tensor, " blocks"]:
        """Constants start <= b < stop in float32."""
        if self.nested is None or self.map is None:
            return self.absmax[start:stop]
        first = start // blocks.CONSTANTS_BLOCK * blocks.CONSTANTS_BLOCK  # begin where one of `nested` does
        nested = self.nested[first // blocks.CONSTANTS_BLOCK : -(-stop // blocks.CONSTANTS_BLOCK)]
        return blocks.dequantize_constants(self.absmax[first:stop], nested, self.map, self.offset)[start - first :]


def quantize(
    weight: Float[Tensor, "blocks block"],
) -> tuple[UInt8[Tensor, "bytes 1"], Float[Tensor, " blocks"]]:
    """The packed places of all weights in NF4, and the constant of each block in float32."""
    places, absmax = blocks.quantize(weight, blocks.nf4_code().to(weight.device))
    return blocks.pack(places), absmax


def dequantize(
    codes: UInt8[Tensor, "rows half"], constants: Constants, first: int, block_size: int, out: Float[Tensor, "rows in"]
) -> None:
    """Fill `out` with the weights of some rows, whose first block is number `first` of the weight."""
    absmax = constants.read(first, first + out.numel() // block_size)
    wide = blocks.dequantize(blocks.unpack(codes, block_size), absmax, blocks.nf4_code().to(codes.device))
    out.copy_(wide.view(out.shape))


def product(
    x: Float[Tensor, "tokens in"], codes: UInt8[Tensor, "out half"], constants: Constants, block_size: int
) -> Float[Tensor, "tokens out"] | None:
    """x W^T for few tokens, W read once and never written; None where rows are better made first."""
    return None
