"""How fast this processor multiplies in float32, bfloat16 and int8: python -m benchmarks.product_dtypes

x W^T of 1,024 x 1,536 x 1,536 on two threads, medians of five, in turn; int8 by `torch._int_mm`, without the quantising of x.
"""

import time
from statistics import median

import torch


def main() -> None:
    """Print a line for each dtype."""
    torch.set_num_threads(2)
    x, w = torch.randn(1024, 1536), torch.randn(1536, 1536)
    narrow = [t.to(torch.bfloat16) for t in (x, w)]
    small = [t.mul(30).clamp(-127, 127).to(torch.int8) for t in (x, w)]
    ways = {
        "float32": lambda: x @ w.T,
        "bfloat16": lambda: narrow[0] @ narrow[1].T,
        "int8": lambda: torch._int_mm(small[0], small[1].T),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(6):
        for way, multiply in ways.items():
            start = time.perf_counter()
            multiply()
            seconds[way].append(time.perf_counter() - start)
    for way, times in seconds.items():
        print(f"{way:9} {2 * 1024 * 1536 * 1536 / median(times[1:]) / 1e9:7.1f} G operations/s")


if __name__ == "__main__":
    main()
