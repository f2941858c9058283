"""How a LoRA step grows with the tokens of a row: python -m benchmarks.growth [SHAPE ...] [-- ROWSxTOKENS ...]

r=16 on all linear layers, every token trained on, bfloat16 checkpoints, computed in the dtype that Inlay takes by itself.
Every line is a process of its own on two threads: after a step of 64 tokens, the median of NUM_STEPS steps, the peak of
resident memory, and the step's time as a multiple of its floor: 4 N T operations at the rate of a large product, measured
before and after each.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks import floor, shapes

NUM_STEPS = 3
SIZES = ("1x256", "1x1024", "1x2048")


def main(names: list[str], sizes: list[str]) -> None:
    """Measure all sizes of all shapes and print a line for each."""
    for shape in names:
        with tempfile.TemporaryDirectory() as folder:
            directory = shapes.directory(shape, Path(folder) / shape)
            for size in sizes:
                command = [sys.executable, "-m", "benchmarks.growth", "worker", str(directory), *size.split("x")]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                r = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{shape:5} {size:7} {r['seconds']:6.2f} s, {r['tokens_per_second']:6.1f} tokens/s, "
                    f"peak {r['peak_bytes'] / 1e9:5.2f} GB, {r['floors']:.2f} times the floor at {r['rate'] / 1e9:.0f} GFLOP/s",
                    flush=True,
                )


def worker(directory: str, rows: int, tokens: int) -> None:
    """One line's figures, as JSON."""
    import inlay
    from inlay.process import peak_rss_bytes
    from inlay.text.mask import Example
    from inlay.training.settings import Plan, Settings
    from inlay.training.state import TrainState
    from inlay.training.step import step_

    torch.set_num_threads(2)
    base = inlay.load(directory)
    base.attach(inlay.Lora(r=16), "it")
    state = TrainState.new(base.adapters["it"], Settings(), Plan(1000, 1, 1e-4, "as asked", 1000))
    generator = torch.Generator().manual_seed(0)

    def step(rows: int, tokens: int) -> None:
        draws = torch.randint(3, 500, (rows, tokens), generator=generator).tolist()
        step_(base, state, [Example(tuple(row), (True,) * tokens, "row") for row in draws])

    step(1, 64)
    seconds, floors, rates = [], [], [floor.rate(dtype=base.dtype)]
    for _ in range(NUM_STEPS):
        start = time.perf_counter()
        step(rows, tokens)
        seconds.append(time.perf_counter() - start)
        rates.append(floor.rate(dtype=base.dtype))
        floors.append(seconds[-1] * (rates[-1] + rates[-2]) / 2 / floor.operations(base.num_weights, rows * tokens))
    result = dict(seconds=median(seconds), tokens_per_second=rows * tokens / median(seconds), floors=median(floors))
    print(json.dumps(result | dict(peak_bytes=peak_rss_bytes(), rate=median(rates))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
        main(sys.argv[1:cut] or list(shapes.SHAPES), sys.argv[cut + 1 :] or list(SIZES))
