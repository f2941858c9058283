"""What smaller intruder dimensions cost and gain: python -m benchmarks.intruders MODEL ADAPTER HELD_OUT OTHER

The loss on rows of its task and on other text, in nats per token: of the base, of an adapter, of that with its intruder
dimensions so many times as large, and of the whole adapter so many times as strong, which forgets less too.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from inlay import formats
from inlay.base.base import Base
from inlay.base.load import load
from inlay.combine import sources
from inlay.combine.combine import combine
from inlay.combine.intruders import Shrinking
from inlay.combine.ways import find
from inlay.data.forms import read_rows
from inlay.data.split import spread
from inlay.evaluation.loss import evaluate
from inlay.tasks.causal_lm import prepare

ROWS, LENGTH, FACTORS = 40, 512, (0.7, 0.3, 0.0)
"""Rows of either text, and tokens of each at most."""


def measured(base: Base, name: str | None, texts: list[list[tuple[list[int], list[bool]]]]) -> str:
    """The losses on both texts."""
    return " ".join(f"{evaluate(base, name, examples):.4f}" for examples in texts)


def main(model: str, adapter: str, held_out: str, other: str) -> None:
    """Print a line for each."""
    base, exact = load(model), load(model, dtype="float32")
    read = [(held_out, "completions"), (other, "all")]
    texts = [
        spread(prepare(read_rows(path), base.tokenizer, LENGTH, train_on, "drop").examples, ROWS)
        for path, train_on in read
    ]
    files = sources.opened([adapter])
    (name,) = files
    print("base", measured(base, None, texts), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind, factor in [("strength", 1.0), *((kind, f) for f in FACTORS for kind in ("intruders", "strength"))]:
            if kind == "strength" and not factor:
                continue
            start = time.perf_counter()
            shrinking = (
                Shrinking(lambda path: exact.maps[path].weight(torch.float32), factor) if kind == "intruders" else None
            )
            weight = 1.0 if shrinking else factor
            found = combine(files, {name: weight}, find("cat", {}), after=shrinking)
            seconds = time.perf_counter() - start
            (place := Path(folder) / f"{kind}-{factor}").mkdir()
            formats.write(place, found.file)
            attached = base.attach(place).name
            new = f"{sum(shrinking.found.values())} intruders, {seconds:.0f} s" if shrinking else ""
            print(kind, factor, measured(base, attached, texts), new, flush=True)
            base.detach(attached)


if __name__ == "__main__":
    main(*sys.argv[1:])
