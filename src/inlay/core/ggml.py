"""The weights in blocks of ggml's types: what llama.cpp makes of the bytes of a GGUF file, to the bit, in float32.

    Q8_0   d q                            32 weights: d float16, q int8
    Q4_0   d (q - 8)                      32: d float16, q in 4 bits
    Q4_1   d q + m                        32: d, m float16, q in 4 bits
    Q4_K   (d s) q - (dmin m)             256 in 8 groups of 32: d, dmin float16; s, m of a group in 6 bits, q in 4
    Q5_K   the same, q in 4 + 1 bits
    Q6_K   (d s) (q - 32)                 256 in 16 groups of 16: q in 4 + 2 bits, s int8, d float16

Each product and sum is rounded by itself. Four bits of two weights lie in a byte, the earlier in the lower half: of i and
i + 16 in Q4_0 and Q4_1, of i and i + 32 of each 64 in Q4_K and Q5_K, of i and i + 64 of each 128 in Q6_K.

Source: `ggml-common.h` and `ggml-quants.c` of llama.cpp; the tests compare with `gguf.quants`, bit for bit.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

SUPER = 256
"""Weights in a block of the K types."""

BLOCKS = {
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""The types, each with the weights in a block and the bytes that they take."""


def unpack(kind: str, data: UInt8[Tensor, "blocks bytes"]) -> Float[Tensor, "blocks weights"]:
    """The weights of blocks of the type `kind`, in float32."""
    return _UNPACK[kind](data)


def _half(data: UInt8[Tensor, "blocks 2"]) -> Float[Tensor, "blocks 1"]:
    """Two bytes as a float16, in float32."""
    return data.contiguous().view(torch.float16).float()


def _nibbles(data: UInt8[Tensor, "blocks bytes"], run: int) -> UInt8[Tensor, "blocks weights"]:
    """The halves of bytes: of each `run` the lower ones first, then the upper."""
    runs = data.unflatten(1, (-1, 1, run))
    return torch.cat([runs & 15, runs >> 4], 2).flatten(1)


def _q8_0(data: Tensor) -> Tensor:
    return data[:, 2:].contiguous().view(torch.int8).float() * _half(data[:, :2])


def _q4_0(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * (_nibbles(data[:, 2:], 16).float() - 8)


def _q4_1(data: Tensor) -> Tensor:
    return _half(data[:, :2]) * _nibbles(data[:, 4:], 16).float() + _half(data[:, 2:4])


def _q4_k(data: Tensor) -> Tensor:
    return _scaled(data, _nibbles(data[:, 16:], 32))


def _q5_k(data: Tensor) -> Tensor:
    fifth = _bits(data[:, 16:48], 1)
    return _scaled(data, _nibbles(data[:, 48:], 32) | fifth << 4)


def _q6_k(data: Tensor) -> Tensor:
    low, high = _nibbles(data[:, :128], 64), data[:, 128:192].unflatten(1, (2, 32))
    upper = torch.cat([_bits(half, 2) for half in high.unbind(1)], 1)
    scales = data[:, 192:208].contiguous().view(torch.int8).float() * _half(data[:, 208:])
    q = (low | upper << 4).float() - 32
    return (scales[:, :, None] * q.unflatten(1, (16, 16))).flatten(1)


def _bits(data: UInt8[Tensor, "blocks 32"], width: int) -> UInt8[Tensor, "blocks weights"]:
    """The first `width` bits of all 32 bytes, then the next ones, and so on."""
    return torch.cat([data >> shift & (1 << width) - 1 for shift in range(0, 8, width)], 1)


def _scaled(data: Tensor, q: UInt8[Tensor, "blocks 256"]) -> Float[Tensor, "blocks 256"]:
    """What q of Q4_K or Q5_K are by the scales and minima of their groups."""
    scales, minima = _six_bits(data[:, 4:16])
    d = _half(data[:, :2]) * scales.float()
    least = _half(data[:, 2:4]) * minima.float()
    return (d[:, :, None] * q.float().unflatten(1, (8, 32)) - least[:, :, None]).flatten(1)


def _six_bits(data: UInt8[Tensor, "blocks 12"]) -> tuple[UInt8[Tensor, "blocks 8"], UInt8[Tensor, "blocks 8"]]:
    """The scales and minima of eight groups: the first four as they are, the upper bits of the others above them."""
    first, second, rest = data.unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat([first & 63, rest & 15 | first >> 2 & 48], 1)
    return scales, torch.cat([second & 63, rest >> 4 | second >> 2 & 48], 1)


_UNPACK: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
