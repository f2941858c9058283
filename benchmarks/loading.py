"""What loading a base takes: python -m benchmarks.loading [OTHER] [SHAPE]

A process each for this version and for OTHER, the `src` folder of another one, in turn, ROUNDS times: seconds of
`inlay.load` once torch and transformers are imported, and of the whole process. SHAPE (135m) is one of `benchmarks.shapes`, in
bfloat16, its fingerprint known already.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import shapes

ROUNDS = 9
LOADED = """
import sys, time
import torch, transformers, inlay
from transformers import AutoModelForCausalLM, AutoTokenizer
start = time.perf_counter()
base = inlay.load(sys.argv[1], dtype="stored")
print(time.perf_counter() - start)
"""


def seconds(source: str, directory: Path) -> tuple[float, float]:
    """Of one load with the version at `source`, and of its process."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LOADED, str(directory)]
    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(made.stdout.split()[-1]), time.perf_counter() - start


def main(other: str = "", shape: str = "135m") -> None:
    """Measure, and print a line for each version and their ratio."""
    own = str(Path(__file__).parents[1] / "src")
    sources = [own, other] if other else [own]
    with tempfile.TemporaryDirectory() as folder:
        directory = shapes.directory(shape, Path(folder) / shape)
        found: dict[str, list[tuple[float, float]]] = {source: [] for source in sources}
        for source in sources:
            seconds(source, directory)
        for _ in range(ROUNDS):
            for source in sources:
                found[source].append(seconds(source, directory))
    medians = [[statistics.median(column) for column in zip(*found[source], strict=True)] for source in sources]
    for name, (load, process) in zip(("this version", "the other"), medians, strict=False):
        print(f"{shape}: {name} loads in {load:.3f} s, its process takes {process:.2f} s")
    if other:
        pairs = zip(found[own], found[other], strict=True)
        ratios = zip(*[(a[0] / b[0], a[1] / b[1]) for a, b in pairs], strict=True)
        print("ratios, medians of pairs: load {:.3f}, process {:.3f}".format(*map(statistics.median, ratios)))


if __name__ == "__main__":
    main(*sys.argv[1:])
