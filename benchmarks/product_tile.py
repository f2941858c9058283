"""Which tile of a bfloat16 weight to widen at a time: python -m benchmarks.product_tile

y = x W^T and d x = g W with W in bfloat16 and products in float32, against a float32 W, in turn; medians of nine. GFLOP/s.
"""

import statistics
import time
from collections.abc import Callable

import torch

from inlay.core import product

SHAPES = ((1024, 1536, 576), (1024, 576, 1536), (512, 8192, 2048), (512, 2048, 8192))
"""(tokens, out, in) of the 135m and the 1b model."""
TILES = (1, 2, 4, 8, 16)
"""MiB."""


def rates(tokens: int, out: int, weight: torch.Tensor, repeats: int = 9) -> str:
    """The median rates in GFLOP/s of both products with this weight, as text."""
    x, g = torch.randn(tokens, weight.shape[1]), torch.randn(tokens, out)
    works: tuple[Callable[[], object], ...] = (
        lambda: product.linear(x, weight, None),
        lambda: product.linear_backward(g, weight),
    )
    found = []
    for work in works:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        found.append(2 * tokens * weight.numel() / statistics.median(seconds[1:]) / 1e9)
    return f"{found[0]:.0f}/{found[1]:.0f}"


if __name__ == "__main__":
    torch.set_num_threads(2)
    for tokens, out, width in SHAPES:
        wide = torch.randn(out, width)
        parts = [f"float32 {rates(tokens, out, wide)}"]
        for tile in TILES:
            product.TILE_BYTES = tile << 20
            parts.append(f"{tile} MiB {rates(tokens, out, wide.bfloat16())}")
        print(f"{tokens} x {out} x {width}: " + "  ".join(parts))
