"""A mixture of sources, whose rows are drawn by weight: which rows are of which part, and in which order they come.

The order is of the seed and the weights alone, so that a run goes on from any of its steps; each source is gone through evenly.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from inlay.data.sources import Data
from inlay.errors import DataError, explain

Part = tuple[float, Sequence[int]]
"""A part of a mixture: its weight, the numbers of its rows."""


def parts(found: Data[Any], examples: Sequence[Any]) -> tuple[Part, ...]:
    """The parts of a mixture, with the numbers of the samples that came of their rows; nothing of what is no mixture.

    **Raises:**

    - `DataError`: a part has no sample.
    """
    weights = dict(found.mixed.values())
    numbers: dict[int, list[int]] = {part: [] for part in weights}
    for i, example in enumerate(examples if weights else ()):
        place = getattr(example, "source", None) or example.row.source
        numbers[found.mixed[place.rpartition(":")[0]][0]].append(i)
    empty = [name for name, (part, _) in found.mixed.items() if not numbers[part]]
    if empty:
        do = "another eval_fraction or max_length, or the mixture without it"
        raise DataError(explain("a part of the mixture has no row left to train on", found=", ".join(empty), do=do))
    return tuple((weights[part], numbers[part]) for part in sorted(weights))


def in_words(found: Data[Any], parts: Sequence[Part]) -> str:
    """How often the rows of each part of a mixture come in a pass."""
    total, num_rows = sum(weight for weight, _ in parts), sum(len(numbers) for _, numbers in parts)
    names = {part: name for name, (part, _) in reversed([*found.mixed.items()])}
    shares = [
        f"{names[i]} {weight:g} ({len(numbers):,} rows, each {num_rows * weight / total / len(numbers):.3g} times)"
        for i, (weight, numbers) in enumerate(parts)
    ]
    return f"drawn by weight: {', '.join(shares)} in an epoch"


def passes(num_rows: int, parts: Sequence[Part], generator: torch.Generator) -> Iterator[list[int]]:
    """Passes of `num_rows` draws or so, in which the parts stand in the ratio of their weights.

        draws of part i in the first k passes = round(k num_rows w_i / sum w)

    Each part is gone through in an order of its own, and once it is through in a new one: a row of a part comes again when all
    others of that part have come as often.
    """
    total, drawn = sum(weight for weight, _ in parts), [0] * len(parts)
    waiting: list[list[int]] = [[] for _ in parts]
    for k in itertools.count(1):
        made: list[int] = []
        for i, (weight, rows) in enumerate(parts):
            wanted = round(k * num_rows * weight / total) - drawn[i]
            drawn[i] += wanted
            while len(waiting[i]) < wanted:
                waiting[i] += torch.randperm(len(rows), generator=generator).tolist()
            made += [rows[number] for number in waiting[i][:wanted]]
            waiting[i] = waiting[i][wanted:]
        yield [made[number] for number in torch.randperm(len(made), generator=generator).tolist()]
