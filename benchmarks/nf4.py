"""NF4 on the processor against bitsandbytes: python -m benchmarks.nf4

One weight of a 7b model: dequantised to bfloat16 and float32, quantised, and multiplied by 1 and by 4 rows. Ours and theirs
take turns in one process, on as many threads as torch takes; medians. Freed memory is kept, as in training
(`inlay.process`), for both: else the system clears it anew each time, which takes longer than the work. Ours is also
written to memory that is given ("again"), as a product's tiles are. bitsandbytes' product is that of its layer for inference,
whose weights it lays out for that. torch's is with the bfloat16 weight itself.
"""

import statistics
import time
import warnings
from collections.abc import Callable

import torch

from inlay import process
from inlay.kernels import native, nf4
from inlay.quant.nf4 import BLOCK, Nf4, Nf4Matrix

OUT, IN = 11008, 4096
REPEATS = 9


def medians(works: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """The median seconds of each work, done in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}  # the first one warms up


def show(what: str, works: dict[str, Callable[[], object]]) -> None:
    """Print the medians of a dict whose first work is ours, and how many times as long the others take."""
    found = medians(works)
    ours = next(iter(found.values()))
    parts = [f"{name} {seconds * 1e3:8.2f} ms ({seconds / ours:5.1f} x)" for name, seconds in found.items()]
    print(f"{what:26}" + "   ".join(parts), flush=True)


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes
        from bitsandbytes import functional
    process.keep_freed_blocks()
    torch.manual_seed(0)
    weight = torch.randn(OUT, IN).mul_(0.02).bfloat16()
    print(f"{OUT} x {IN}, {torch.get_num_threads()} threads, {native.variant()}; {native.why_not() or 'compiled'}")
    matrix = Nf4().open(Nf4().quantize(weight))
    assert isinstance(matrix, Nf4Matrix)
    codes, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
    for dtype in (torch.bfloat16, torch.float32):
        there, other = torch.empty(2, OUT, IN, dtype=dtype)
        state.dtype = dtype
        works = {
            "ours": lambda dtype=dtype: matrix.dequantize(dtype),
            "bitsandbytes": lambda: functional.dequantize_4bit(codes, state),
            "ours, again": lambda there=there: matrix.read(0, there),
            "a copy, again": lambda there=there, other=other: other.copy_(there),
        }
        show(f"dequantise to {str(dtype)[6:]}", works)
        assert torch.equal(works["ours"](), works["bitsandbytes"]())
    state.dtype = torch.bfloat16
    for dtype in (torch.bfloat16, torch.float32):
        wide = weight.to(dtype)
        works = {
            "ours": lambda wide=wide: Nf4().quantize(wide),
            "bitsandbytes": lambda wide=wide: functional.quantize_4bit(
                wide, blocksize=BLOCK, quant_type="nf4", compress_statistics=True
            ),
            "ours without constants": lambda wide=wide: nf4.quantize(wide.view(-1, BLOCK)),
        }
        show(f"quantise {str(dtype)[6:]}", works)
    layer = bitsandbytes.nn.Linear4bit(IN, OUT, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu").eval()
    for tokens in (1, 4, 16):
        x = torch.randn(tokens, IN)
        narrow = x.bfloat16()
        with torch.inference_mode():
            works = {
                "ours": lambda x=narrow: matrix.product(x),
                "bitsandbytes": lambda x=narrow: layer(x),
                "torch": lambda x=narrow: torch.nn.functional.linear(x, weight),
                "ours, float32 x": lambda x=x: matrix.product(x),
            }
            show(f"product with {tokens} row{'s' if tokens > 1 else ''}", works)
            exact = narrow.double() @ matrix.dequantize(torch.float32).double().T
            errors = [(work().double() - exact).norm() / exact.norm() for work in list(works.values())[:2]]
            print(f"{'':26}error of ours {errors[0]:.5f}, of bitsandbytes {errors[1]:.5f}")


if __name__ == "__main__":
    main()
