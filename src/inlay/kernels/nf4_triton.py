"""NF4 weights read, written and multiplied on NVIDIA devices: `inlay.kernels.nf4` in Triton.

    W[i] = codebook[c[i]] absmax[i / block],   absmax[b] = map[q[b]] nested[b / 256] + offset
    c[i] = how many midpoints of the codebook are strictly below w[i] / absmax[b]
    y = x W^T

A byte holds two codes, that of the even column in its upper half. A program takes some runs of bytes, each inside one block,
so that a run has one constant; a run of n bytes fills 2n consecutive weights. `product` gives a program some runs of some rows
of W: it makes their weights in registers, and multiplies the even columns of x with the upper halves and the odd ones with the
lower. Weights are rounded to the dtype of x, as they would be in memory; sums are float32. Where there are too few rows to
keep a device busy, several programs share them, and torch adds their sums: not as they end, so that a product is the same each
time.

`dequantize` and `quantize` give the bits of `inlay.core.blocks`:

- No product and sum become one instruction: kernels are compiled without contraction (`_OPTIONS`), or map[q] nested + offset
  would be rounded once and not twice.
- 1 / absmax is divided in float64 and then rounded, which is the rounded quotient, since 53 bits are more than 2 * 24 + 1. In
  float32 the language's plain division is approximate, off by up to two units in the last digit; and its `div_rn` flushes
  subnormal numbers to zero before Triton 3.6, one of which is what a block of zeros is divided by.
- That number would be taken for a float64, as it is too small for a normal float32, so its dtype is said.

What was not done: a product in plain arithmetic for one token, of which matrix units are a sixteenth full; loads of `product`
made ahead by Triton's pipeline, which would take the look-up in the codebook for one and send it through shared memory; sizes
found by trial on the device. A float32 product uses no matrix units, since their narrower format would round x.

What no device has confirmed: anything. The arithmetic is tested under Triton's interpreter, and the code compiled for devices
is read for the instructions named above; so `available` compares the kernels with the plain way on the device itself before it
offers them. Speeds are unknown. The compiled `product` has some ten instructions a weight, which may take the largest devices
longer than to read its half byte.
"""

import contextlib
import functools
import warnings
from typing import Any, no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]  # comes with torch for NVIDIA devices, and only there
import triton.language as tl  # pyright: ignore[reportMissingImports]  # likewise
from jaxtyping import Float, UInt8
from torch import Tensor

from inlay.core import blocks

OLDEST = (8, 0)
"""The compute capability that has bfloat16, and that Triton supports from."""

MOST_TOKENS = 16
"""Rows of x that one product takes: the least that matrix units multiply."""

SMALLEST_BLOCK = 32
"""The block from which on a run is as long as matrix units need: 16 bytes."""

_BYTES = 1024
"""What a program of `dequantize` reads, and one of `quantize` writes, where a block is not larger."""

_RUN = 64
"""The longest run of `product`, in bytes."""

_ROWS = 64
"""Rows of W that a program of `product` has."""

_PROGRAMS = 1024
"""How many programs of `product` there are to be: eight for each multiprocessor of the largest devices."""

_FEWEST_RUNS = 4
"""The fewest runs that a program of `product` is started for."""

_OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "num_warps": 4, "num_stages": 1}
"""How every kernel is compiled; values are of several types."""


@functools.cache
def available(device: torch.device) -> bool:
    """These kernels compile for this device, and give there what the plain way gives.

    Tried once in a process, on a weight of 16 KiB; compiling takes seconds where Triton has no copy from an earlier one.
    """
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < OLDEST:
        return False
    try:
        if _agrees(device):
            return True
        why = "they do not give the same bits as the plain way"
    except Exception as error:  # no C compiler, another driver, no room for its cache: Triton has no family of errors
        why = f"{type(error).__name__}: {error}"
    warnings.warn(f"the Triton kernels of NF4 are not used on {device}, which is slower: {why}", stacklevel=2)
    return False


def _agrees(device: torch.device) -> bool:
    """All three functions give the bits of the plain way for one weight on this device.

    Rows are compared in float32, where a constant rounded once would show; rounding to bfloat16, by a product with ones.
    """
    block_size, width = 64, 256
    weight = torch.linspace(-3, 3, 32 * width).tan().bfloat16().view(-1, block_size)
    weight[7] = 0
    codebook = blocks.nf4_codebook()
    wide, absmax = blocks.quantize(weight, codebook)
    packed = blocks.pack(wide)
    q, nested, offset = blocks.quantize_constants(absmax)
    constants = blocks.Constants(q, nested, blocks.constants_map(), offset.item())
    codes = packed.view(-1, width // 2)
    expected = blocks.dequantize(wide, constants.read(0, len(absmax)), codebook).view(-1, width)
    there = blocks.Constants(q.to(device), nested.to(device), blocks.constants_map().to(device), offset.item())
    found = torch.empty_like(expected, device=device)
    dequantize(codes.to(device), there, 0, block_size, found)
    columns = torch.arange(MOST_TOKENS) * 15  # even ones and odd ones
    one_hot = torch.nn.functional.one_hot(columns, width).to(device, weight.dtype)
    chosen = product(one_hot, codes.to(device), there, block_size)
    packed_found, absmax_found = quantize(weight.to(device))
    picked = expected[:, columns].T.to(weight.dtype)
    pairs = ((packed, packed_found), (absmax, absmax_found), (expected, found), (picked, chosen))
    return all(b is not None and torch.equal(a, b.cpu()) for a, b in pairs)


def quantize(
    weight: Float[Tensor, "blocks block"],
) -> tuple[UInt8[Tensor, "bytes 1"], Float[Tensor, " blocks"]]:
    """The packed codes of all weights in NF4, and the constant of each block in float32.

    A block is held in the registers of one program: a power of two, at most a few thousand.
    """
    weight = weight.contiguous()
    num_blocks, block_size = weight.shape
    codes = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(num_blocks, dtype=torch.float32, device=weight.device)
    num_together = max(1, 2 * _BYTES // block_size)
    operands = (weight, _midpoints(weight.device), codes, absmax, num_blocks)
    sizes = {"BLOCK": block_size, "BLOCKS": num_together, "MIDPOINTS": len(blocks.NF4) - 1}
    _launch(_quantize_kernel, (-(-num_blocks // num_together),), *operands, **sizes, SMALLEST=blocks.SMALLEST)
    return codes, absmax


def dequantize(
    codes: UInt8[Tensor, "rows half"],
    constants: blocks.Constants,
    first: int,
    block_size: int,
    out: Float[Tensor, "rows in"],
) -> None:
    """Fill `out`, which is contiguous, with the weights of some rows, whose first block is number `first` of the weight."""
    run = min(block_size // 2, _BYTES)
    num_runs = codes.numel() // run
    num_together = _BYTES // run
    operands = (codes.contiguous(), *_operands(constants), _codebook(out.device), out, first, num_runs)
    sizes = {"RUN": run, "RUNS": num_together, "PER_BLOCK": block_size // 2 // run}
    _launch(_dequantize_kernel, (-(-num_runs // num_together),), *operands, **sizes, PER_NESTED=_nested(constants))


def product(
    x: Float[Tensor, "tokens in"], codes: UInt8[Tensor, "out half"], constants: blocks.Constants, block_size: int
) -> Float[Tensor, "tokens out"] | None:
    """x W^T for few tokens, W read once and never written; None where rows are better made first."""
    if not 0 < len(x) <= MOST_TOKENS or block_size < SMALLEST_BLOCK or x.dtype == torch.float64:
        return None
    run = min(block_size // 2, _RUN)
    num_rows, num_runs = len(codes), codes.shape[1] // run
    row_programs = -(-num_rows // _ROWS)
    most_parts = max(1, num_runs // _FEWEST_RUNS)
    runs_each = -(-num_runs // min(most_parts, -(-_PROGRAMS // row_programs)))
    num_parts = -(-num_runs // runs_each)
    parts = x.new_empty(num_parts, len(x), num_rows, dtype=x.dtype if num_parts == 1 else torch.float32)
    counts = (len(x), num_rows, num_runs, runs_each)
    operands = (x.contiguous(), codes.contiguous(), *_operands(constants), _codebook(x.device), parts, *counts)
    sizes = {"RUN": run, "ROWS": _ROWS, "TOKENS": MOST_TOKENS, "PER_BLOCK": block_size // 2 // run}
    _launch(_product_kernel, (row_programs, num_parts), *operands, **sizes, PER_NESTED=_nested(constants))
    return parts[0] if num_parts == 1 else parts.sum(0).to(x.dtype)


def _launch(kernel: Any, grid: tuple[int, ...], *operands: Tensor | float, **sizes: float) -> None:
    """Start a kernel on the device of its operands: Triton by itself takes the current one.

    `kernel` is what Triton's decorator makes, which has no type where Triton is not installed.
    """
    device = next(operand.device for operand in operands if isinstance(operand, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*operands, **sizes, **_OPTIONS)


def _operands(constants: blocks.Constants) -> tuple[Tensor, Tensor, Tensor, float]:
    """The first operands of `_constant`; what is not there is never read."""
    absmax, nested, map, offset = constants
    return absmax, absmax if nested is None else nested, absmax if map is None else map, offset


def _nested(constants: blocks.Constants) -> int:
    """How many constants have one of their own; 0 where they are not quantised."""
    return 0 if constants.nested is None or constants.map is None else blocks.CONSTANTS_BLOCK


@functools.cache
def _codebook(device: torch.device) -> Float[Tensor, "16"]:
    return blocks.nf4_codebook().to(device)


@functools.cache
def _midpoints(device: torch.device) -> Float[Tensor, "15"]:
    codebook = blocks.nf4_codebook()
    return ((codebook[:-1] + codebook[1:]) / 2).to(device)


# The kernels. Triton reads their text, so that nothing may be wrapped around them: no_type_check keeps the tests' hook off.
# Capitals are known when a kernel is compiled. Offsets in a whole weight are int64: it may have more than 2^31 elements.


@triton.jit
@no_type_check
def _constant(absmax, nested, map, offset, block, inside, PER_NESTED: tl.constexpr):
    """The constants of some blocks, in float32."""
    value = tl.load(absmax + block, mask=inside, other=0)
    if PER_NESTED:
        shared = tl.load(nested + block // PER_NESTED, mask=inside, other=0)
        value = tl.load(map + value.to(tl.int32)) * shared + offset
    return value


@triton.jit(do_not_specialize=["first", "num_runs"])
@no_type_check
def _dequantize_kernel(
    codes, absmax, nested, map, offset, codebook, out, first, num_runs,
    RUN: tl.constexpr, RUNS: tl.constexpr, PER_BLOCK: tl.constexpr, PER_NESTED: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * RUNS
    run = tl.arange(0, RUNS)
    inside = start + run < num_runs
    constant = _constant(absmax, nested, map, offset, first + (start + run) // PER_BLOCK, inside, PER_NESTED)
    byte = run[:, None] * RUN + tl.arange(0, RUN)[None, :]  # (RUNS, RUN)
    packed = tl.load(codes + start * RUN + byte, mask=inside[:, None], other=0).to(tl.int32)
    upper = tl.load(codebook + (packed >> 4)) * constant[:, None]
    lower = tl.load(codebook + (packed & 15)) * constant[:, None]
    weight = tl.reshape(tl.join(upper, lower), (RUNS, 2 * RUN))
    element = run[:, None] * (2 * RUN) + tl.arange(0, 2 * RUN)[None, :]
    tl.store(out + start * (2 * RUN) + element, weight.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["num_blocks"])
@no_type_check
def _quantize_kernel(
    weight, midpoints, codes, absmax, num_blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, SMALLEST: tl.constexpr, MIDPOINTS: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = start + block < num_blocks
    element = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]  # (BLOCKS, BLOCK)
    wide = tl.load(weight + start * BLOCK + element, mask=inside[:, None], other=0).to(tl.float32)
    largest = tl.max(tl.abs(wide), axis=1)
    divisor = tl.maximum(largest, tl.full((BLOCKS,), SMALLEST, tl.float32))
    scaled = wide * (1.0 / divisor.to(tl.float64)).to(tl.float32)[:, None]
    found = tl.zeros((BLOCKS, BLOCK), tl.int32)
    for i in tl.static_range(MIDPOINTS):
        found += (scaled > tl.load(midpoints + i)).to(tl.int32)
    upper, lower = tl.split(tl.reshape(found, (BLOCKS, BLOCK // 2, 2)))
    byte = block[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    tl.store(codes + start * (BLOCK // 2) + byte, (upper * 16 + lower).to(tl.uint8), mask=inside[:, None])
    tl.store(absmax + start + block, largest, mask=inside)


@triton.jit(do_not_specialize=["num_tokens", "num_rows", "num_runs", "runs_each"])
@no_type_check
def _product_kernel(
    x, codes, absmax, nested, map, offset, codebook, parts, num_tokens, num_rows, num_runs, runs_each,
    RUN: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, PER_BLOCK: tl.constexpr, PER_NESTED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    inside = row < num_rows
    present = (token < num_tokens)[:, None]
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    start = tl.program_id(1) * runs_each
    for i in range(start, tl.minimum(start + runs_each, num_runs)):
        run = row * num_runs + i
        constant = _constant(absmax, nested, map, offset, run // PER_BLOCK, inside, PER_NESTED)
        byte = run[:, None] * RUN + tl.arange(0, RUN)[None, :]  # (ROWS, RUN)
        packed = tl.load(codes + byte, mask=inside[:, None], other=0).to(tl.int32)
        upper = (tl.load(codebook + (packed >> 4)) * constant[:, None]).to(x.dtype.element_ty)
        lower = (tl.load(codebook + (packed & 15)) * constant[:, None]).to(x.dtype.element_ty)
        column = (token * num_runs + i)[:, None] * (2 * RUN) + tl.arange(0, 2 * RUN)[None, :]
        both = tl.load(x + column, mask=present, other=0)  # (TOKENS, 2 RUN)
        even, odd = tl.split(tl.reshape(both, (TOKENS, RUN, 2)))
        sums = tl.dot(even, tl.trans(upper), sums, input_precision="ieee")
        sums = tl.dot(odd, tl.trans(lower), sums, input_precision="ieee")
    at = (tl.program_id(1) * num_tokens + token)[:, None] * num_rows.to(tl.int64) + row[None, :]
    tl.store(parts + at, sums.to(parts.dtype.element_ty), mask=present & inside[None, :])
