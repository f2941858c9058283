"""How many tokens should go through a model at a time: python -m benchmarks.micro_batch [SHAPE] [TOKENS ...]

A float32 LoRA step of four rows of 256 tokens, cut into parts of at most TOKENS, in turn in one process on one thread, in
processor time. Printed are the step's times as multiples of its floor, measured with a large product before and after each:
the median of NUM_STEPS, the least and the most.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks import floor, shapes

NUM_STEPS, ROWS, LENGTH = 5, 4, 256


def main(shape: str = "135m", *sizes: str) -> None:
    """Measure all sizes and print a line for each."""
    import inlay
    from inlay.text.mask import Example
    from inlay.training.settings import Plan, Settings
    from inlay.training.state import TrainState
    from inlay.training.step import step_

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base = inlay.load(shapes.directory(shape, Path(folder) / shape, torch.float32), dtype="float32")
        base.attach(inlay.Lora(r=16), "it")
        generator = torch.Generator().manual_seed(0)
        operations = floor.operations(base.num_weights, ROWS * LENGTH)
        plan = Plan(1000, ROWS, 1e-4, "as asked", 1000)
        states = {
            n: TrainState.new(base.adapters["it"], Settings(micro_batch_tokens=n), plan)
            for n in map(int, sizes or (1024, 512, 256))
        }
        floors: dict[int, list[float]] = {n: [] for n in states}
        for _ in range(NUM_STEPS + 1):  # the first one warms up
            for n, state in states.items():
                draws = torch.randint(3, 500, (ROWS, LENGTH), generator=generator).tolist()
                rows = [Example(tuple(row), (True,) * LENGTH, "row") for row in draws]
                before, start = floor.rate(time.process_time), time.process_time()
                step_(base, state, rows)
                seconds = time.process_time() - start
                floors[n].append(seconds * (before + floor.rate(time.process_time)) / 2 / operations)
    for n, times in floors.items():
        print(f"{n:5} tokens: {median(times[1:]):.2f} times the floor ({min(times[1:]):.2f} to {max(times[1:]):.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:])
