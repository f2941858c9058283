"""The product with a frozen weight where nothing is trained: by `product.c`, or that of `inlay.core.product`.

torch's products of a few tokens take up to five times as long as the memory needs to bring the weight, and widen a narrower
weight first. Ours reads it once; a token's output does not depend on the tokens beside it, as long as they are few. By tiles
those of many tokens are ours too, since torch turns the whole weight for each.
"""

import ctypes
import functools

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from inlay.core import product as in_torch
from inlay.core.product import Rows
from inlay.kernels import native

MOST_TOKENS = 16
"""With more, torch's own products are as fast, but for tiles."""

_FLOAT32, _WIDENED, _BFLOAT16, _TILES, _MANY, _INT8, _INT8_BFLOAT16 = range(7)
"""The functions of `product.c`."""

_ROWS, _TILE_ROWS, _TILE, _DEPTH = 4, 64, 16, 32
"""Rows of W that a unit of work has; by tiles; that a tile has; and what the width is a multiple of there."""


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that inputs like `x` are multiplied in, as `inlay.core.product` says; but many tokens in float32 on processors
    whose instructions for bfloat16 are slower than that."""
    dtype = in_torch.product_dtype(x)
    is_many = dtype == torch.bfloat16 and x.numel() > MOST_TOKENS * x.shape[-1]
    return torch.float32 if is_many and x.is_cpu and native.widens_bfloat16() else dtype


def linear(
    x: Float[Tensor, "*batch in"], weight: Float[Tensor, "out in"] | Rows, bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*batch out"]:
    """x W^T + b in the dtype of x, without gradients; see `inlay.core.product.linear`."""
    shape = x.shape
    width = shape[-1]
    tokens = x.numel() // width if width else 0
    function = None
    if tokens and isinstance(weight, Tensor) and weight.is_cpu and weight.is_contiguous():
        function = _function(x.dtype, weight.dtype, weight.shape, native.variant())
        if tokens > MOST_TOKENS:
            function = _MANY if function == _TILES else None
    if function is None:
        own = x.reshape(-1, width) if len(shape) != 2 else x
        y = in_torch.linear(own, weight, bias)
        return y if len(shape) == 2 else y.view(*shape[:-1], y.shape[-1])
    assert isinstance(weight, Tensor), "only numbers have a function"
    rows = weight.shape[0]
    own = x if x.is_contiguous() else x.contiguous()
    y = torch.empty(*shape[:-1], rows, dtype=x.dtype)
    job = native.ProductJob(own.data_ptr(), weight.data_ptr(), y.data_ptr(), tokens, rows, width)
    unit = _TILE_ROWS if function in (_TILES, _MANY) else _ROWS
    native.do("product", function, job, -(-rows // unit), rows * width)
    return y if bias is None else y.add_(bias)


def int8(
    x: Float[Tensor, "tokens in"], codes: Int8[Tensor, "out in"], scales: Float[Tensor, " out"]
) -> Float[Tensor, "tokens out"] | None:
    """x W^T for few tokens, W[r, i] = codes[r, i] scales[r] / 127; None where rows of W are better made first."""
    (tokens, width), rows = x.shape, len(codes)
    function = {torch.float32: _INT8, torch.bfloat16: _INT8_BFLOAT16}.get(x.dtype)
    fits = 0 < tokens <= MOST_TOKENS and all(t.is_cpu and t.is_contiguous() for t in (codes, scales))
    if not fits or function is None or not x.is_cpu or native.variant() == native.TORCH:
        return None
    x = x.contiguous()
    y = torch.empty(tokens, rows, dtype=x.dtype)
    addresses = (x.data_ptr(), codes.data_ptr(), y.data_ptr())
    job = native.ProductJob(*addresses, tokens, rows, width, None, scales.data_ptr())
    native.do("product", function, job, -(-rows // _ROWS), rows * width)
    return y


@functools.cache
def _function(x: torch.dtype, weight: torch.dtype, shape: tuple[int, int], variant: str) -> int | None:
    """The function of `product.c` that takes such tensors; None where there is none."""
    if variant in (native.TORCH, "plain"):
        return None
    if x == torch.float32:
        return {torch.float32: _FLOAT32, torch.bfloat16: _WIDENED}.get(weight)
    if x != torch.bfloat16 or weight != torch.bfloat16 or not native.multiplies_bfloat16():
        return None
    by_tiles = native.has_tiles() and shape[1] % _DEPTH == 0 and shape[0] >= _DEPTH // 2
    return _TILES if by_tiles else _BFLOAT16


def with_added(done: native.Done, added: native.Done) -> native.Done | None:
    """A product of few tokens and what `low_rank` adds to it as one job; None where they are no such two."""
    job, more = done.job, added.job
    if not (isinstance(job, native.ProductJob) and isinstance(more, native.LowRankJob)):
        return None
    if done.function == _MANY or job.added or job.y != more.y or job.rows != more.out:
        return None
    if done.function == _TILES and job.rows % _TILE:  # its last tile would be begun earlier, and hold rows twice
        return None
    both = native.ProductJob.from_buffer_copy(job)
    both.added = ctypes.addressof(more)
    return done._replace(job=both, threads=max(done.threads, added.threads), keep=(done.keep, more, added.keep))
