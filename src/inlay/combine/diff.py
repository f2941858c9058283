"""How two adapters differ, module by module, from their factors alone.

norm             |delta W|, the root of the sum of the squares of its entries
cosine           <delta W_1, delta W_2> / (|delta W_1| |delta W_2|)
overlap          |U_1^T U_2|^2 / min(r_1, r_2), U the singular vectors of the outputs, likewise of the inputs: the mean of the
                 squared cosines of the angles between the two subspaces; 1 where one holds the other, near r / size by chance
effective rank   exp(-sum_i p_i log p_i), p_i = s_i / sum_j s_j: of how many directions of one size it is (Roy and Vetterli
                 2007)
intruders        with the base's weights: `inlay.combine.intruders`
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from inlay.combine import core_space
from inlay.combine.checks import Named, change, changed, check
from inlay.combine.intruders import Weight, intruders
from inlay.core.routed import Factors


class Difference(NamedTuple):
    """Two changes of one module; of one that is not there, the norm is 0."""

    norms: tuple[float, float]
    cosine: float
    overlap_out: float
    overlap_in: float
    effective_ranks: tuple[float, float]
    intruders: tuple[int, int] | None
    """None where the base's weights are not at hand."""


def diff(
    files: Named, weight: Weight | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Difference]:
    """Module path -> how the two adapters differ there.

    **Raises:**

    - `CompatibilityError`: they are of different bases or shapes, or have no factors; see `inlay.combine.checks`.
    """
    check(files)
    paths = changed(files)
    found = {}
    for number, path in enumerate(paths):
        progress(number, len(paths))
        one, other = (change(file, path) for file in files.values())
        found[path] = _difference(one, other, weight and weight(path))
    return found


def summed(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """The last part of a module's path -> the same of all modules of that name: norms of all together, means of the rest."""
    groups: dict[str, list[Difference]] = {}
    for path, difference in found.items():
        groups.setdefault(path.rpartition(".")[2], []).append(difference)
    return {name: _together(group) for name, group in groups.items()}


def _together(group: list[Difference]) -> Difference:
    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    first, second = (math.hypot(*(each.norms[i] for each in group)) for i in (0, 1))
    inner = math.fsum(each.cosine * each.norms[0] * each.norms[1] for each in group)
    ranks = (mean([each.effective_ranks[0] for each in group]), mean([each.effective_ranks[1] for each in group]))
    counts = [each.intruders for each in group if each.intruders is not None]
    overlaps = mean([each.overlap_out for each in group]), mean([each.overlap_in for each in group])
    new = (sum(a for a, _ in counts), sum(b for _, b in counts)) if counts else None
    return Difference((first, second), inner / (first * second) if first * second else 0.0, *overlaps, ranks, new)


def _difference(one: Factors | None, other: Factors | None, weight: Tensor | None) -> Difference:
    parts = [core_space.decomposed(each) if each is not None else None for each in (one, other)]
    first, second = parts
    sizes = [float(part.s.norm()) if part else 0.0 for part in parts]
    ranks = [_effective_rank(part.s) if part else 0.0 for part in parts]
    cosine, overlaps = 0.0, (0.0, 0.0)
    if first and second and all(sizes):
        across = first.U.T @ second.U, first.V.T @ second.V
        cosine = float((first.s[:, None] * across[0] * across[1] * second.s).sum()) / (sizes[0] * sizes[1])
        smaller = min(len(first.s), len(second.s))
        overlaps = (float(across[0].square().sum()) / smaller, float(across[1].square().sum()) / smaller)
    new = None if weight is None else _counted(weight, one, other)
    return Difference((sizes[0], sizes[1]), cosine, *overlaps, (ranks[0], ranks[1]), new)


def _counted(weight: Tensor, one: Factors | None, other: Factors | None) -> tuple[int, int]:
    """How many intruders each change brings."""
    found = iter(intruders(weight, *(each for each in (one, other) if each is not None)))
    first, second = (0 if each is None else len(next(found).A) for each in (one, other))
    return first, second


def _effective_rank(s: Tensor) -> float:
    p = s / s.sum()
    return float(torch.special.entr(p).sum().exp()) if s.sum() > 0 else 0.0
