"""Attention over packed documents against torch's on the batch of them: python benchmarks/attention.py

2,048 tokens in documents of one length and of lengths within a quarter of each other, 9 heads of queries and 3 of keys, 64
wide; forward and backward on one thread, in its own processor time, so that a busy machine disturbs it little. The batch is
padded where lengths differ. In turn, medians of nine.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from inlay.core.attention import document_attention

HEADS, KV_HEADS, DIM, NUM_TOKENS = 9, 3, 64, 2048


def seconds(call: Callable[[], Tensor]) -> float:
    """Processor time of one forward and backward pass."""
    start = time.process_time()
    out = call()
    out.backward(torch.ones_like(out))
    return time.process_time() - start


def measure(lengths: list[int], dtype: torch.dtype) -> tuple[float, float]:
    """Median seconds of the packed row and of the padded batch."""
    t, longest = sum(lengths), max(lengths)
    heads = (HEADS, KV_HEADS, KV_HEADS)  # tokens first in memory, as projections make them
    row = [torch.randn(t, h, DIM).to(dtype).transpose(0, 1).requires_grad_() for h in heads]
    batch = [torch.randn(len(lengths), longest, h, DIM).to(dtype).transpose(1, 2).requires_grad_() for h in heads]
    calls = (
        lambda: document_attention(*row, lengths, DIM**-0.5),
        lambda: torch.nn.functional.scaled_dot_product_attention(*batch, is_causal=True, enable_gqa=True),
    )
    taken = [[seconds(call) for call in calls] for _ in range(10)][1:]
    ours, theirs = map(statistics.median, zip(*taken, strict=True))
    return ours, theirs


if __name__ == "__main__":
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        for longest in (32, 64, 128, 256, 512):
            even = [longest] * (NUM_TOKENS // longest)
            uneven = sorted(longest - i * longest // 64 % (longest // 4) for i in range(len(even)))
            for name, lengths in (("one length", even), ("uneven", uneven)):
                ours, theirs = measure(lengths, dtype)
                print(
                    f"{str(dtype).removeprefix('torch.'):9} {longest:4} tokens, {name:10}: packed {1e3 * ours:6.1f} ms, "
                    f"batch {1e3 * theirs:6.1f} ms, ratio {theirs / ours:.2f}"
                )
