"""Quantisation in blocks: every block of consecutive weights keeps its largest magnitude, and each weight a code.

    absmax_b = max |w| over the block b,   c_i = the index of w_i / absmax_b in the codebook,   w_i ~ codebook[c_i] absmax_b

NF4 is a codebook of 16 values: those of a standard normal distribution at even probabilities, with an exact zero, the
largest scaled to 1. Double quantisation gives the constants codes themselves, 256 of them to a block, after their mean is
taken away:

    absmax_b ~ map[q_b] nested_(b / 256) + offset,   offset = mean absmax

Source: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), section 3. Every step here rounds as bitsandbytes 0.50.2 does on x86-64,
so that the same weights give the same bytes. Two of its habits are kept for that: constants are rounded to a grid of 65,536
values before the nearest of the map is taken, and a block of zeros gets code 0, not that of zero.
"""

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022833234,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 4-bit NormalFloat codebook. Source: bitsandbytes, whose derivation tests/equations repeats."""

CONSTANTS_BLOCK = 256
"""How many constants share one of their own."""

SMALLEST = 1e-38
"""What a block of zeros is divided by."""

_GRID = 65535
"""Steps from -1 to 1 on the grid of the constants."""


@functools.cache
def nf4_codebook() -> Float[Tensor, "16"]:
    """`NF4` as a float32 tensor; not to be changed."""
    return torch.tensor(NF4)


@functools.cache
def constants_map() -> Float[Tensor, "256"]:
    """The signed dynamic map: seven decades, each with twice the fractions of the one below, zero and one; ascending.

    Source: 8-Bit Approximations for Parallelism in Deep Learning (Dettmers 2015, arXiv 1511.04561), in float32 as
    bitsandbytes rounds it. Not to be changed.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        values += (10 ** (i - 6) * middles).tolist() + (-(10 ** (i - 6)) * middles).tolist()
    return torch.tensor(sorted(values))


def quantize(
    weight: Float[Tensor, "blocks block"], codebook: Float[Tensor, " size"]
) -> tuple[UInt8[Tensor, "blocks block"], Float[Tensor, " blocks"]]:
    """The code of every weight in an ascending `codebook` from -1 to 1, and the constant of each block, in float32."""
    wide = weight.float().contiguous()
    absmax = wide.abs().amax(1)
    scaled = wide * (1 / absmax.clamp(min=SMALLEST))[:, None]
    return torch.bucketize(scaled, (codebook[:-1] + codebook[1:]) / 2, out_int32=True).to(torch.uint8), absmax


def nearest(
    weight: Float[Tensor, "blocks block"], absmax: Float[Tensor, " blocks"], codebook: Float[Tensor, " size"]
) -> UInt8[Tensor, "blocks block"]:
    """The code of every weight where the constants are given."""
    scaled = weight.float().contiguous() / absmax.clamp(min=SMALLEST)[:, None]
    return torch.bucketize(scaled, (codebook[:-1] + codebook[1:]) / 2, out_int32=True).to(torch.uint8)


def fit_constants(
    weight: Float[Tensor, "blocks block"], codebook: Float[Tensor, " size"], rounds: int = 4
) -> Float[Tensor, " blocks"]:
    """Constants that come nearer to the weights than their largest magnitude: least squares, in turn with the codes.

    absmax_b = sum_i codebook[c_i] w_i / sum_i codebook[c_i]^2
    """
    wide = weight.float()
    codes, absmax = quantize(weight, codebook)
    for _ in range(rounds):
        values = codebook[codes.int()]
        fitted = (values * wide).sum(1) / values.square().sum(1)
        absmax = torch.where(fitted > 0, fitted, absmax)  # a block of zeros keeps its constant
        codes = nearest(weight, absmax, codebook)
    return absmax


def dequantize(
    codes: UInt8[Tensor, "blocks block"], absmax: Float[Tensor, " blocks"], codebook: Float[Tensor, " size"]
) -> Float[Tensor, "blocks block"]:
    """codebook[c] absmax, in float32."""
    return codebook[codes.int()] * absmax[:, None]


def pack(codes: UInt8[Tensor, "blocks block"]) -> UInt8[Tensor, "bytes 1"]:
    """Two codes of four bits to a byte, the first in the upper half."""
    flat = codes.reshape(-1)
    return ((flat[::2] << 4) | flat[1::2])[:, None]


def unpack(packed: UInt8[Tensor, "*bytes"], block_size: int) -> UInt8[Tensor, "blocks {block_size}"]:
    """What `pack` was given."""
    flat = packed.reshape(-1)
    return torch.stack((flat >> 4, flat & 15), 1).view(-1, block_size)


def quantize_constants(
    absmax: Float[Tensor, " blocks"],
) -> tuple[UInt8[Tensor, " blocks"], Float[Tensor, " nested"], Float[Tensor, ""]]:
    """The codes of the constants in `constants_map`, the constant of each 256 of them, and their mean.

    The mean is torch's, whose last bit depends on how many threads it uses, as that of bitsandbytes does.
    """
    offset = absmax.mean()
    missing = -len(absmax) % CONSTANTS_BLOCK
    blocks = torch.nn.functional.pad(absmax - offset, (0, missing)).view(-1, CONSTANTS_BLOCK)
    nested = blocks.abs().amax(1)
    half = ((blocks * (1 / nested)[:, None]).clamp(-1, 1) + 1) * 0.5
    grid = (half.double() * _GRID + 0.5).float()  # rounded once, as a fused multiply and add
    codes = _codes_on_grid()[grid.nan_to_num(0).to(torch.int64).clamp(0, _GRID)]
    codes[nested == 0] = 0
    return codes.view(-1)[: len(absmax)].contiguous(), nested, offset


def dequantize_constants(
    codes: UInt8[Tensor, " blocks"], nested: Float[Tensor, " nested"], codebook: Float[Tensor, "256"], offset: float
) -> Float[Tensor, " blocks"]:
    """map[q] nested + offset, in float32, each step rounded."""
    return codebook[codes.int()] * nested.repeat_interleave(CONSTANTS_BLOCK)[: len(codes)] + offset


class Constants(NamedTuple):
    """The constants of a weight's blocks, in the order of its rows; quantised themselves where `nested` is there."""

    absmax: Tensor
    """(blocks,): float32, or uint8 codes in `map`."""
    nested: Tensor | None
    map: Tensor | None
    offset: float

    def read(self, start: int, stop: int) -> Float[Tensor, " blocks"]:
        """Constants start <= b < stop in float32."""
        if self.nested is None or self.map is None:
            return self.absmax[start:stop]
        first = start // CONSTANTS_BLOCK * CONSTANTS_BLOCK  # begin where one of `nested` does
        nested = self.nested[first // CONSTANTS_BLOCK : -(-stop // CONSTANTS_BLOCK)]
        return dequantize_constants(self.absmax[first:stop], nested, self.map, self.offset)[start - first :]


@functools.cache
def _codes_on_grid() -> UInt8[Tensor, "65536"]:
    """The code in `constants_map` that is nearest to each value of the grid."""
    values = 2 * torch.arange(_GRID + 1, dtype=torch.float32) / _GRID - 1
    codebook = constants_map()
    return torch.bucketize(values, (codebook[:-1] + codebook[1:]) / 2, out_int32=True).to(torch.uint8)
