"""Products with a frozen weight, in the dtype that the processor multiplies fast.

    y = x W^T + b,   d x = g W

W may be stored in a narrower dtype than the one it is multiplied in: bfloat16 weights mapped from a file, on a processor
that multiplies float32 alone. Then a tile of its rows is widened into a buffer that stays in the cache, multiplied, and
the next one takes its place: no copy of W is ever held, and the widening costs less than the variation between two runs.
Every bfloat16 is a float32, so that the result is that of a converted copy.

W may also be no numbers at all, but something that makes its rows when it is asked (`Rows`): a quantised weight. It takes the
same way, a tile at a time, and again in the backward pass.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core import float32

TILE_BYTES = 32 << 20
"""Size of the widened tile: measured with benchmarks/product_tile.py, and with a QLoRA step of 1b's shape, which takes 1.05
times its bfloat16 step's time with this, and 1.12 times with a quarter of it."""

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
"""The dtypes that a model can compute in, by name."""

RESULT_BYTES = 8 << 20
"""Size of what oneDNN makes at a time where there is a place for the whole: it has no call that writes there, and blocks of
ever other sizes leave holes in the heap. It takes 1.02 to 1.07 times as long as all at once."""

FEW_TOKENS = 16
"""Up to here a weight that is not held as numbers is asked for the product itself, which need not make its rows first."""


@runtime_checkable  # the tests check it where they check shapes
class Rows(Protocol):
    """A frozen matrix W (out, in) that is not held as numbers."""

    shape: tuple[int, int]

    def read(self, start: int, out: Float[Tensor, "rows in"]) -> None:
        """Fill `out` with the rows from number `start` on, in the dtype of `out`."""

    def product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"] | None:
        """x W^T by a way that suits few tokens, or None where there is none for these."""


@functools.cache
def native_bfloat16() -> bool:
    """This processor has instructions that multiply bfloat16."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that inputs like `x` are multiplied in: their own, but float32 where the processor has no narrower one.

    torch multiplies bfloat16 without such instructions six to ten times slower than float32, and float16 likewise.
    """
    dtype = x.dtype
    if dtype == torch.float32 or not (x.is_cpu or x.is_meta) or dtype not in (torch.bfloat16, torch.float16):
        return dtype
    return dtype if dtype == torch.bfloat16 and native_bfloat16() else torch.float32


def linear(
    x: Float[Tensor, "tokens in"],
    weight: Float[Tensor, "out in"] | Rows,
    bias: Float[Tensor, " out"] | None,
    out: Float[Tensor, "tokens out"] | None = None,
) -> Float[Tensor, "tokens out"]:
    """x W^T + b in the dtype of x, which is the dtype that is multiplied in; `out`, where that is given, may hold it."""
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        if float32.is_ours(x, weight.T):
            y = float32.matmul(x, weight.T) if out is None else _into(out, x, weight)
            return y if bias is None else y.add_(bias)
        return torch.mm(x, weight.T, out=out) if bias is None else torch.addmm(bias.to(x.dtype), x, weight.T, out=out)
    if not isinstance(weight, Tensor) and out is None and len(x) <= FEW_TOKENS:
        few = weight.product(x)
        if few is not None:
            return few if bias is None else few.add_(bias)
    y = x.new_empty(len(x), weight.shape[0]) if out is None else out
    for start, stop, tile in _tiles(weight, x.dtype, x.device):
        if float32.is_ours(x, tile.T):
            _into(y[:, start:stop], x, tile)
        else:
            torch.mm(x, tile.T, out=y[:, start:stop])
    return y if bias is None else y.add_(bias)


def _into(y: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"], weight: Float[Tensor, "out in"]) -> Tensor:
    """x W^T by oneDNN, in y."""
    step = max(1, RESULT_BYTES // (len(x) * x.dtype.itemsize))
    for start in range(0, len(weight), step):
        y[:, start : start + step] = float32.matmul(x, weight[start : start + step].T)
    return y


def linear_backward(
    g: Float[Tensor, "tokens out"], weight: Float[Tensor, "out in"] | Rows
) -> Float[Tensor, "tokens in"]:
    """g W in the dtype of g: the gradient of `linear` with respect to x."""
    if isinstance(weight, Tensor) and weight.dtype == g.dtype:
        return float32.matmul(g, weight)
    wide = torch.promote_types(g.dtype, torch.float32)  # a narrow sum would be rounded with every tile
    grad = None
    for start, stop, tile in _tiles(weight, g.dtype, g.device):
        part = g[:, start:stop]
        if grad is None:
            made = float32.matmul(part, tile)
            grad = made if stop == weight.shape[0] else made.to(wide)
        elif float32.is_ours(part, tile):
            grad.add_(float32.matmul(part, tile))
        elif wide == g.dtype:
            grad.addmm_(part, tile)
        else:
            grad.add_(part @ tile)
    assert grad is not None, "a weight has rows"
    return grad.to(g.dtype)


def _tiles(weight: Tensor | Rows, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, rows start <= i < stop in `dtype`) over all rows; one buffer for all tiles."""
    rows, columns = weight.shape
    step = max(1, TILE_BYTES // (columns * dtype.itemsize))
    buffer = _buffer(min(step, rows) * columns, dtype, device)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        tile = buffer[: (stop - start) * columns].view(stop - start, columns)
        if isinstance(weight, Tensor):
            tile.copy_(weight[start:stop])
        else:
            weight.read(start, tile)
        yield start, stop, tile


_buffers = threading.local()
"""The last buffer of each thread: a block that comes and goes between those that stay leaves holes in the heap."""


def _buffer(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """At least `size` elements that nobody else uses until the next call."""
    buffer: Tensor | None = getattr(_buffers, "last", None)
    if buffer is None or buffer.numel() < size or buffer.dtype != dtype or buffer.device != device:
        buffer = _buffers.last = torch.empty(size, dtype=dtype, device=device)
    return buffer


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes with one thread.

    Products of few rows gain little from more, and where another program wants a core, threads that wait for each other take
    many times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
