"""A step over questions on one document, the document computed once and for each: python -m benchmarks.shared_prefix
[SHAPE] [DTYPE] [QUESTIONS] [DOCUMENT] [QUESTION]

r=16 on all linear layers, AdamW; of a question the last half is trained on. Both ways step in turn in one process, on the same
rows; printed are medians of seconds, their ratio, and how far loss and gradients are apart.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import inlay
from benchmarks import shapes
from inlay.packing import shared
from inlay.tasks import _packed
from inlay.text.mask import Example
from inlay.training.settings import Plan, Settings
from inlay.training.state import TrainState
from inlay.training.step import step_

NUM_STEPS = 2
WAYS = {"once": shared.FEWEST, "for each": sys.maxsize}
"""From how many tokens on what rows begin with alike is computed once."""


def main(
    shape: str = "135m", dtype: str = "float32", questions: str = "8", document: str = "1000", question: str = "60"
) -> None:
    """Measure both ways."""
    print(f"{shape}, {dtype}: {questions} questions of {question} tokens on a document of {document}")
    times, apart = in_turn(
        shape, dtype, lambda generator: drawn(int(questions), int(document), int(question), generator),
        lambda least: setattr(shared, "FEWEST", least), WAYS, NUM_STEPS,
    )  # fmt: skip
    print(f"{times['for each'] / times['once']:.2f} times as fast; {apart}")


def in_turn(
    shape: str,
    dtype: str,
    draw: Callable[[torch.Generator], list[Example]],
    take: Callable[[int], None],
    ways: dict[str, int],
    num_steps: int,
) -> tuple[dict[str, float], str]:
    """The median seconds of a LoRA step by each way, which is printed, and how far the last is from the first, in words.

    **Arguments:**

    - `draw`: the rows of a step.
    - `take`: takes the way that has this number in `ways`.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = inlay.load(shapes.directory(shape, Path(folder) / shape, getattr(torch, dtype)), dtype=dtype)
        base.attach(inlay.Lora(r=16), "it")
        state = TrainState.new(base.adapters["it"], Settings(), Plan(1000, 1, 1e-4, "as asked", 1000))
        generator, rows = torch.Generator().manual_seed(0), list[Example]()
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(num_steps + 1):
            rows = draw(generator)
            for way, number in ways.items():
                take(number)
                begun = time.perf_counter()
                step_(base, state, rows)
                seconds[way].append(time.perf_counter() - begun)
        found = []
        for number in ways.values():
            take(number)
            found.append(gradients(base, rows))
    times = {way: median(some[1:]) for way, some in seconds.items()}
    for way, some in seconds.items():
        print(f"{way:14} {times[way]:6.2f} s a step ({min(some[1:]):.2f} to {max(some[1:]):.2f})")
    (loss, one), *_, (other_loss, other) = found
    apart, size = (one - other).norm() / other.norm(), abs(loss - other_loss) / other_loss
    return times, f"losses {size:.1e} apart, gradients {apart:.1e}"


def drawn(count: int, document: int, question: int, generator: torch.Generator) -> list[Example]:
    """Questions on a new document."""
    ids = torch.randint(3, 500, (document + count * question,), generator=generator).tolist()
    rows = (ids[:document] + ids[start : start + question] for start in range(document, len(ids), question))
    return [Example(row, [i >= len(row) - question // 2 for i in range(len(row))], "row") for row in rows]


def gradients(base: inlay.Base, rows: list[Example]) -> tuple[float, torch.Tensor]:
    """The loss of rows, and its gradient."""
    total, found = 0.0, torch.zeros(())
    for part in _packed.parts(base, rows, None):
        loss, tensors = _packed.loss_of(base, part), base.parameters()
        total += loss.item()
        found = found + torch.cat([tensor.flatten() for tensor in torch.autograd.grad(loss, tensors)])
    return total, found


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(*sys.argv[1:])
