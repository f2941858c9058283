"""NF4 on a device, against bitsandbytes: python -m benchmarks.nf4_cuda

An 11008 x 4096 weight in bfloat16, made, read and multiplied by 1 and by 16 tokens; bytes and results are compared. Medians of
twenty runs, each timed by itself on the device; ms. To be run by hand: it needs a CUDA device, Triton and bitsandbytes.
"""

import functools
import statistics
from collections.abc import Callable

import bitsandbytes.functional as bnb  # pyright: ignore[reportMissingImports]  # wanted here alone
import torch

from inlay.core import blocks
from inlay.core.blocks import Constants
from inlay.kernels import nf4_triton

ROWS, WIDTH, BLOCK = 11008, 4096, 64


def milliseconds(work: Callable[[], object], repeats: int = 20) -> float:
    """The median time of `work` on the device."""
    found = []
    for _ in range(repeats + 3):  # the first three compile and warm up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return statistics.median(found[3:])


if __name__ == "__main__":
    device = torch.device("cuda", torch.cuda.current_device())
    print(torch.cuda.get_device_name(device), "agrees" if nf4_triton.available(device) else "does not agree")
    weight = torch.randn(ROWS, WIDTH, dtype=torch.bfloat16, device=device)
    codes, absmax = nf4_triton.quantize(weight.view(-1, BLOCK))
    q, nested, offset = (part.to(device) for part in blocks.quantize_constants(absmax.cpu()))
    constants = Constants(q, nested, blocks.constants_map().to(device), offset.item())
    codes, out = codes.view(ROWS, WIDTH // 2), torch.empty_like(weight)
    theirs, state = bnb.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    print("same codes:", torch.equal(codes.view(-1), theirs.view(-1)))

    def both(name: str, ours: Callable[[], object], other: Callable[[], object]) -> None:
        print(f"{name}: {milliseconds(ours):.3f}, bitsandbytes {milliseconds(other):.3f}")

    both(
        "quantize",
        lambda: nf4_triton.quantize(weight.view(-1, BLOCK)),
        lambda: bnb.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4"),
    )
    both(
        "dequantize",
        lambda: nf4_triton.dequantize(codes, constants, 0, BLOCK, out),
        lambda: bnb.dequantize_4bit(theirs, state),
    )
    for tokens in (1, 16):
        x = torch.randn(tokens, WIDTH, dtype=torch.bfloat16, device=device)
        made = functools.partial(bnb.dequantize_4bit, theirs, state)
        gemv = functools.partial(bnb.gemv_4bit, x, theirs.t(), state=state)
        other = gemv if tokens == 1 else lambda x=x, made=made: x @ made().T
        both(f"product of {tokens}", functools.partial(nf4_triton.product, x, codes, constants, BLOCK), other)
        print(f"  W held in bfloat16: {milliseconds(lambda x=x: x @ out.T):.3f}")
