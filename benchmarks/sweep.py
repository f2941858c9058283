"""Many adapters at once against as many runs in turn: python -m benchmarks.sweep [KIND] [ROWS] [LENGTH] [MODEL] [N ...]

KIND is a dtype or a scheme (float32, bfloat16, nf4, int8). A LoRA step, r=16 on all linear layers, of ROWS rows of LENGTH
tokens, all trained on, for N adapters (1, 2, 4 and 8): their steps together, and one after the other, in turn in one process on
as many threads as there are cores. Printed are the medians of NUM_STEPS, seconds for a step of every adapter, and the most
memory that the process has held once that number have made a step together, beyond what it held with all of them attached.
MODEL is a directory, or a shape of `benchmarks.shapes` with random weights.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks import shapes

NUM_STEPS = 3
"""Rounds of a step of each way, after one that warms up."""


def main(kind: str = "float32", rows: str = "2", length: str = "64", model: str = "135m", *more: str) -> None:
    """Measure every number of adapters and print a line for each."""
    import inlay
    from inlay.process import peak_rss_bytes
    from inlay.sweeps.steps import Due, Passes
    from inlay.text.mask import Example
    from inlay.training.settings import Plan, Settings
    from inlay.training.state import TrainState
    from inlay.training.step import step_

    with tempfile.TemporaryDirectory() as folder:
        if not Path(model).is_dir():
            model = str(shapes.directory(model, Path(folder) / model, torch.bfloat16))
        is_dtype = kind in ("float32", "bfloat16")
        base = inlay.load(model, dtype=kind) if is_dtype else inlay.load(model, dtype="bfloat16", quantize=kind)
        plan = Plan(1000, int(rows), 1e-4, "as asked", 1000)
        states, numbers = [], [*map(int, more)] or [1, 2, 4, 8]
        for number in range(max(numbers)):
            base.attach(inlay.Lora(r=16), f"a{number}")
            states.append(TrainState.new(base.adapters[f"a{number}"], Settings(), plan))
        generator, passes, before = torch.Generator().manual_seed(0), Passes(base), peak_rss_bytes()
        print(f"{kind}, {rows} rows of {length} tokens, {model}")
        for number in numbers:
            times: dict[str, list[float]] = {"together": [], "in turn": []}
            peak = 0
            for _ in range(NUM_STEPS + (number == numbers[0])):  # the first one warms up
                draws = torch.randint(3, 500, (int(rows), int(length)), generator=generator).tolist()
                examples = [Example(tuple(row), (True,) * len(row), "row") for row in draws]
                start = time.perf_counter()
                problems = passes.steps_([Due(state, examples) for state in states[:number]])
                times["together"].append(time.perf_counter() - start)
                assert problems == [None] * number
                peak = peak or peak_rss_bytes()
                start = time.perf_counter()
                for state in states[:number]:
                    step_(base, state, examples)
                times["in turn"].append(time.perf_counter() - start)
            together, in_turn = (median(found[-NUM_STEPS:]) for found in times.values())
            said = f"{together:6.3f} s together, {in_turn:6.3f} s in turn, {in_turn / together:.2f} times as fast"
            print(f"{number} adapters: {said}, {(peak - before) / 1e6:,.0f} MB", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
