"""The floor of a LoRA step: its matrix products at the rate of a large one.

4 N T operations for N weights and T tokens: forward, and back to the input; the frozen weights have no gradient
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from inlay.core import float32


def operations(num_weights: int, num_tokens: int) -> int:
    """Of a step."""
    return 4 * num_weights * num_tokens


def rate(clock: Callable[[], float] = time.perf_counter, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of a large product, the median of nine; by wall time, or by what `clock` counts."""
    a, b = torch.randn(1024, 1536, dtype=dtype), torch.randn(1536, 1536, dtype=dtype)
    times = []
    for _ in range(9):
        start = clock()
        float32.matmul(a, b)
        times.append(clock() - start)
    return 2 * 1024 * 1536 * 1536 / median(times)
