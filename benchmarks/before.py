"""A training step of this tree and of another one, in turn: python -m benchmarks.before TREE [SHAPE] [DTYPE] [ROWS] [TOKENS]

TREE is a checkout of another commit, with its kernels built. Each step is what the tree's own `benchmarks.step` times: LoRA,
r=16, all linear layers, two threads. Printed are medians of seconds, and the median of what one took of the other beside it.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from benchmarks import shapes, step

HERE = Path(__file__).parents[1]


def main(tree: str, shape: str = "135m", dtype: str = "bfloat16", rows: str = "4", tokens: str = "256") -> None:
    """Print a line."""
    with tempfile.TemporaryDirectory() as folder:
        directory = shapes.directory(shape, Path(folder) / shape, getattr(torch, dtype))
        given = "benchmarks.step", "inlay", str(directory), dtype, rows, tokens, "lora"
        rounds = step.turns([step.start(*given, tree=place) for place in (Path(tree).resolve(), HERE)])
    before, now = ([turn[i]["seconds"] for turn in rounds] for i in (0, 1))
    ratio = median(one / other for one, other in zip(now, before, strict=True))
    print(f"{shape}, {dtype}: {median(before):.3f} s before, {median(now):.3f} s now, {ratio:.3f} of before")


if __name__ == "__main__":
    main(*sys.argv[1:])
