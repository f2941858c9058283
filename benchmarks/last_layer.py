"""A step whose last layer says only what the head is asked, and one whose last layer says all: python -m benchmarks.last_layer
[SHAPE] [DTYPE] [ROWS] [TOKENS]

r=16 on all linear layers, AdamW; of a row the last eighth is trained on. Both step in turn in one process, on the same rows.
Printed are medians of seconds and their ratio; how far the loss and its gradients are apart.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

import inlay
from benchmarks import shapes
from benchmarks.shared_prefix import gradients
from inlay.tasks import _packed
from inlay.text.mask import Example
from inlay.training.settings import Plan, Settings
from inlay.training.state import TrainState
from inlay.training.step import step_

NUM_STEPS = 7
WAYS = {"what is asked": _packed.FEWEST_UNASKED, "all": sys.maxsize}
"""From how many tokens that are not asked about on they are left out."""


def main(shape: str = "135m", dtype: str = "bfloat16", rows: str = "4", tokens: str = "256") -> None:
    """Measure both ways."""
    with tempfile.TemporaryDirectory() as folder:
        base = inlay.load(shapes.directory(shape, Path(folder) / shape, getattr(torch, dtype)), dtype=dtype)
        base.attach(inlay.Lora(r=16), "it")
        state = TrainState.new(base.adapters["it"], Settings(), Plan(1000, 1, 1e-4, "as asked", 1000))
        generator, length = torch.Generator().manual_seed(0), int(tokens)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(NUM_STEPS + 1):
            draws = torch.randint(3, 500, (int(rows), length), generator=generator).tolist()
            some = [Example(row, [i >= length - length // 8 for i in range(length)], "row") for row in draws]
            for way, _packed.FEWEST_UNASKED in WAYS.items():
                begun = time.perf_counter()
                step_(base, state, some)
                seconds[way].append(time.perf_counter() - begun)
        found = {way: gradients(base, some) for way, _packed.FEWEST_UNASKED in WAYS.items()}
    print(f"{shape}, {dtype}: {rows} rows of {tokens} tokens, of which the last {length // 8} are trained on")
    times = {way: median(some[1:]) for way, some in seconds.items()}
    for way, every in seconds.items():
        print(f"{way:14} {times[way]:6.2f} s a step ({min(every[1:]):.2f} to {max(every[1:]):.2f})")
    (loss, one), (other_loss, other) = found.values()
    apart, size = (one - other).norm() / other.norm(), abs(loss - other_loss) / other_loss
    print(f"{times['what is asked'] / times['all']:.3f} of the time; losses {size:.1e} apart, gradients {apart:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(*sys.argv[1:])
