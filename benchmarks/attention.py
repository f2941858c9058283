"""Attention over packed documents, ours and torch's: python -m benchmarks.attention

2,048 tokens in documents of one length and of lengths within a quarter of each other, 9 heads of queries and 3 of keys, 64
wide; forward and backward on one thread, in its own processor time, so that a busy machine disturbs it little. torch's is
measured on the same packed row with the mask of its documents, which is what a model of `transformers` does with it, and on the
documents as a batch, padded where lengths differ, which charges nothing for the padding elsewhere. In turn, medians of five.
"""

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from inlay.kernels.attention import document_attention

HEADS, KV_HEADS, DIM, NUM_TOKENS = 9, 3, 64, 2048


def seconds(call: Callable[[], Tensor]) -> float:
    """Processor time of one forward and backward pass."""
    start = time.process_time()
    out = call()
    out.backward(torch.ones_like(out))
    return time.process_time() - start


def measure(lengths: list[int], dtype: torch.dtype) -> list[float]:
    """Median seconds of ours, and of torch's on the packed row and on the batch."""
    longest = max(lengths)
    heads = (HEADS, KV_HEADS, KV_HEADS)  # tokens first in memory, as projections make them
    row = [torch.randn(sum(lengths), h, DIM).to(dtype).transpose(0, 1).requires_grad_() for h in heads]
    batch = [torch.randn(len(lengths), longest, h, DIM).to(dtype).transpose(1, 2).requires_grad_() for h in heads]
    mask = torch.block_diag(*(torch.ones(n, n, dtype=torch.bool).tril_() for n in lengths))
    torchs = functools.partial(torch.nn.functional.scaled_dot_product_attention, enable_gqa=True)
    calls = (
        lambda: document_attention(*row, lengths, DIM**-0.5),
        lambda: torchs(*(x[None] for x in row), attn_mask=mask),
        lambda: torchs(*batch, is_causal=True),
    )
    taken = [[seconds(call) for call in calls] for _ in range(6)][1:]
    return list(map(statistics.median, zip(*taken, strict=True)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        for longest in (32, 64, 128, 256, 512):
            even = [longest] * (NUM_TOKENS // longest)
            uneven = sorted(longest - i * longest // 64 % (longest // 4) for i in range(len(even)))
            for name, lengths in (("one length", even), ("uneven", uneven)):
                ours, packed, padded = measure(lengths, dtype)
                print(
                    f"{str(dtype).removeprefix('torch.'):9} {longest:4} tokens, {name:10}: {1e3 * ours:6.1f} ms; torch's "
                    f"{packed / ours:5.2f} times that on the packed row, {padded / ours:5.2f} times on the batch"
                )
