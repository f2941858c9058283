"""NF4 weights read, written and multiplied: each time by the fastest way that is there.

On a processor that is `nf4.c`, where it was built and suits the tensors (`native`); on a CUDA device `nf4_triton`, where Triton
is installed and does on that device what it should; else torch, by the equations of `inlay.core.blocks`. All give the same
bits. `product` has no way in torch: rows are made first.
"""

import functools
import importlib.util
from types import ModuleType

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from inlay.core import blocks
from inlay.core.product import FEW_TOKENS
from inlay.kernels import native

SMALLEST_BLOCK = 32
"""What a block of `nf4.c` is a multiple of."""

SMALLEST_PRODUCT_BLOCK = 64
"""What a block is at least for its product, which takes powers of two."""

CHUNK = 128
"""What the product rounds the width of x up to, for a copy of it in another order."""

LARGE_BYTES = 32 << 20
"""From here on memory comes from the system each time, in pages that `native.huge_pages` makes larger."""

_DEQUANTIZE, _QUANTIZE, _PRODUCT = range(3)
"""The functions of `nf4.c`."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of weights, by their numbers in `nf4.c`."""


def quantize(
    weight: Float[Tensor, "blocks block"],
) -> tuple[UInt8[Tensor, "bytes 1"], Float[Tensor, " blocks"]]:
    """The packed codes of all weights in NF4, and the constant of each block in float32."""
    num_blocks, block_size = weight.shape
    on_device = _on_device(weight.device, block_size)
    if on_device is not None:
        return on_device.quantize(weight)
    if not _suits(block_size, weight):
        codes, absmax = blocks.quantize(weight, blocks.nf4_codebook().to(weight.device))
        return blocks.pack(codes), absmax
    weight = weight.contiguous()
    codes = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8)
    absmax = torch.empty(num_blocks)
    sizes = {"block": block_size, "dtype": _DTYPES.index(weight.dtype)}
    tensors = {"codes": codes, "absmax": absmax, "values": weight}
    _run(_QUANTIZE, num_blocks, weight.numel(), None, tensors, **sizes)
    return codes, absmax


def dequantize(
    codes: UInt8[Tensor, "rows half"],
    constants: blocks.Constants,
    first: int,
    block_size: int,
    out: Float[Tensor, "rows in"],
) -> None:
    """Fill `out` with the weights of some rows, whose first block is number `first` of the weight."""
    num_blocks = out.numel() // block_size
    fits = out.is_contiguous() and codes.numel() * 2 == out.numel() == num_blocks * block_size
    fits = fits and _reaches(constants, first + num_blocks, codes.device)
    on_device = _on_device(out.device, block_size)
    if fits and on_device is not None:
        on_device.dequantize(codes, constants, first, block_size, out)
        return
    if not (fits and _suits(block_size, out, codes)):
        absmax = constants.read(first, first + num_blocks)
        wide = blocks.dequantize(blocks.unpack(codes, block_size), absmax, blocks.nf4_codebook().to(codes.device))
        out.copy_(wide.view(out.shape))
        return
    if out.nbytes >= LARGE_BYTES:
        native.huge_pages(out)
    sizes = {"first": first, "block": block_size, "dtype": _DTYPES.index(out.dtype)}
    _run(_DEQUANTIZE, num_blocks, out.numel(), constants, {"codes": codes.contiguous(), "values": out}, **sizes)


def product(
    x: Float[Tensor, "tokens in"], codes: UInt8[Tensor, "out half"], constants: blocks.Constants, block_size: int
) -> Float[Tensor, "tokens out"] | None:
    """x W^T for few tokens, W read once and never written; None where rows are better made first."""
    (tokens, width), rows = x.shape, len(codes)
    fits = 0 < tokens <= FEW_TOKENS and codes.shape[1] * 2 == width and width % block_size == 0
    fits = fits and _reaches(constants, rows * width // block_size, codes.device)
    on_device = _on_device(x.device, block_size)
    if fits and on_device is not None:
        return on_device.product(x, codes, constants, block_size)
    if not (fits and _is_power_of_two(block_size) and block_size >= SMALLEST_PRODUCT_BLOCK):
        return None
    if not _suits(block_size, x, codes):
        return None
    y = torch.empty(tokens, rows, dtype=x.dtype)
    own = torch.empty(tokens, -(-width // CHUNK) * CHUNK)
    sizes = {"block": block_size, "tokens": tokens, "rows": rows, "in": width, "dtype": _DTYPES.index(x.dtype)}
    tensors = {"codes": codes.contiguous(), "x": x.contiguous(), "own": own, "y": y}
    _run(_PRODUCT, rows, rows * width, constants, tensors, **sizes)
    return y


def _is_power_of_two(size: int) -> bool:
    return size & (size - 1) == 0


def _suits(block_size: int, *tensors: Tensor) -> bool:
    """`nf4.c` is there and takes such blocks and tensors, the first of which holds floats."""
    return (
        native.variant() != native.TORCH
        and block_size % SMALLEST_BLOCK == 0
        and tensors[0].dtype in _DTYPES
        and all(tensor.device.type == "cpu" for tensor in tensors)
    )


@functools.cache
def _on_device(device: torch.device, block_size: int) -> ModuleType | None:
    """`nf4_triton` where Triton is installed, takes such blocks, and does on this device what it should."""
    if device.type != "cuda" or not _is_power_of_two(block_size) or importlib.util.find_spec("triton") is None:
        return None
    from inlay.kernels import nf4_triton  # it imports Triton, which is not everywhere and takes a while

    return nf4_triton if nf4_triton.available(device) else None


def _reaches(constants: blocks.Constants, num_blocks: int, device: torch.device) -> bool:
    """The constants are there for so many blocks, on `device`, in the form that kernels take."""
    absmax, nested, map, _ = constants
    if nested is None or map is None:
        expected = ((absmax, torch.float32, num_blocks),)
    else:
        num_nested = -(-num_blocks // blocks.CONSTANTS_BLOCK)
        expected = ((absmax, torch.uint8, num_blocks), (nested, torch.float32, num_nested), (map, torch.float32, 256))
    return all(
        t.dtype == dtype and t.device == device and len(t) >= size and t.is_contiguous() for t, dtype, size in expected
    )


@functools.cache
def _steps() -> Float[Tensor, "16"]:
    """The midpoint below each code's value; of the first, which has none, anything."""
    codebook = blocks.nf4_codebook()
    return torch.cat([codebook[:1], (codebook[:-1] + codebook[1:]) / 2])


@functools.cache
def _code_bytes() -> UInt8[Tensor, "4 16"]:
    """Byte k of each value of the codebook, the lowest first."""
    bits = blocks.nf4_codebook().view(torch.int32)
    return torch.stack([(bits >> 8 * k & 255).to(torch.uint8) for k in range(4)])


def _run(
    function: int,
    total: int,
    num_weights: int,
    constants: blocks.Constants | None,
    tensors: dict[str, Tensor],
    **sizes: int,
) -> None:
    """Do a job of `total` units; tensors are handed over as the addresses of their data."""
    tensors |= {"code": blocks.nf4_codebook(), "code_bytes": _code_bytes(), "steps": _steps()}
    offset = 0.0 if constants is None else constants.offset
    if constants is not None:
        tensors["absmax"] = constants.absmax
        if constants.nested is not None and constants.map is not None:
            tensors |= {"nested": constants.nested, "map": constants.map}
    shift = blocks.CONSTANTS_BLOCK.bit_length() - 1
    fields = {"offset": offset, "smallest": blocks.SMALLEST, "nested_shift": shift, **sizes}
    native.run("nf4", function, tensors, fields, total, num_weights)
