"""What a step costs when threads that wait sleep, or spin: python -m benchmarks.busy [LOAD] [SHAPES]

OpenMP's threads wait at the end of every product. GCC's library lets them spin for a while (GOMP_SPINCOUNT) and sleep after
that. Where every core is ours, spinning saves the time of waking; where another program wants a core, a thread that spins keeps
it from the thread that everybody waits for.

One process for each way of waiting, all with as many threads as there are cores. They step in turn, the others asleep, so that
each round compares them at one load. Printed are the median of the seconds of a step, and the median over the rounds of its
ratio to the step of the library's own way. LOAD is the number of other processes that compute all the while: 0 for a quiet
machine. SHAPES are names with commas between: `demo`, and those of `benchmarks/shapes.py`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import step

WAYS: dict[str, dict[str, str]] = {
    "as it is": {},
    "spin 100,000": {"GOMP_SPINCOUNT": "100000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 0": {"GOMP_SPINCOUNT": "0"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""What each way sets before torch is loaded."""

VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What is taken out of the environment first."""

SIZES = {"demo": (8, 64, 3), "135m": (4, 128, 1)}
"""Rows and tokens of a step, and how many steps make one measurement."""

OTHER = "while True: pow(3, 10_000)"


def main(load: str = "0", names: str = "demo,135m") -> None:
    """Measure every way at every shape, and print a line for each."""
    others = [subprocess.Popen([sys.executable, "-c", OTHER]) for _ in range(int(load))]
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name in names.split(","):
                _compare(name, Path(folder), load)
    finally:
        for other in others:
            other.kill()


def _compare(name: str, folder: Path, load: str) -> None:
    from benchmarks import shapes
    from inlay.cli.demo import BASE

    directory = BASE if name == "demo" else shapes.directory(name, folder / name)
    rows, tokens, repeats = SIZES.get(name, (4, 128, 1))
    print(f"{name}, {rows} x {tokens} tokens, {os.cpu_count()} cores, {load} other processes")
    given = ("worker", str(directory), str(rows), str(tokens), str(repeats))
    plain = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.busy", *given],
            env=plain | chosen,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for chosen in WAYS.values()
    ]
    rounds = step.turns(workers)
    for i, way in enumerate(WAYS):
        seconds = median(turn[i]["seconds"] for turn in rounds)
        ratio = median(turn[i]["seconds"] / turn[0]["seconds"] for turn in rounds)
        used = median(turn[i]["cpu_seconds"] for turn in rounds)
        print(
            f"  {way:14} {1000 * seconds:9.1f} ms, {ratio:5.3f} of the library's own way; {1000 * used:9.1f} ms of processors"
        )


def worker(directory: str, rows: str, tokens: str, repeats: str) -> None:
    """Make some steps for every line that is read, and say how long one took."""
    import torch

    import inlay
    from inlay.text.mask import Example
    from inlay.training.settings import Plan, Settings
    from inlay.training.state import TrainState
    from inlay.training.step import step_

    base = inlay.load(directory)
    base.create(inlay.Lora(r=16), "a")
    state = TrainState.new(base.adapters["a"], Settings(), Plan(1000, 1, 1e-4, "as asked", 1000))
    generator = torch.Generator().manual_seed(0)
    most = min(int(tokens), base.max_length or int(tokens))
    ids = torch.randint(5, 200, (int(rows), most), generator=generator).tolist()
    examples = [Example(tuple(row), (True,) * most, "random") for row in ids]
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        for _ in range(int(repeats)):
            step_(base, state, examples)
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
        print(json.dumps({key: value / int(repeats) for key, value in spent.items()}), flush=True)


if __name__ == "__main__":
    (worker if sys.argv[1:2] == ["worker"] else main)(*sys.argv[1 + (sys.argv[1:2] == ["worker"]) :])
