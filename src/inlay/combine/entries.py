"""Ways that look at single entries of the changes, in the coordinates of their core or in those of the layer.

    core    M_i of U M_i V^T = delta W_i: what is made lies in the space of the changes, and loses nothing to a rank of theirs
    full    delta W_i itself, a block of rows at a time; what is made has any rank, and is cut down to r

Source: Core Space merging (Panariello et al. 2025, arXiv 2509.17786), which finds the core the better place for such ways.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.combine import core_space
from inlay.combine.contract import Made, Truncated, Weighted
from inlay.core import lowrank
from inlay.core.routed import Factors

ROWS = 1024
"""So many rows of a layer are looked at together."""

SMALL = 256
"""A matrix with a side of at most so many rows or columns is decomposed whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByEntry(Truncated, abstract=True):
    """A way that combines entry by entry."""

    space: Literal["core", "full"] = "core"
    """Whose entries: those of the small core that the changes share, or of the layer's weight."""

    @abc.abstractmethod
    def known(self, matrix: Float[Tensor, "out in"]) -> float:
        """What has to be known of all entries of one change before any of them is combined."""

    @abc.abstractmethod
    def joined(
        self, parts: Sequence[Float[Tensor, "rows in"]], weights: Sequence[float], known: Sequence[float]
    ) -> Float[Tensor, "rows in"]:
        """The entries that are made of those of every change."""

    @abc.abstractmethod
    def drawn(self, part: Float[Tensor, "rows in"], generator: torch.Generator) -> Float[Tensor, "rows in"]:
        """The entries of one change after whatever is drawn."""

    def merge(self, changes: Sequence[Weighted], generator: torch.Generator) -> Made:
        r, weights = self.rank(changes), [change.weight for change in changes]
        factors = [change.factors for change in changes]
        if self.space == "core":
            U, V, parts = core_space.coordinates(factors)
            known = [self.known(part) for part in parts]
            matrix = self.joined([self.drawn(part, generator) for part in parts], weights, known)
            return core_space.rotated(core_space.best(matrix, r), U, V)
        num_rows = len(factors[0].B)
        known = [self.known(rows(each, 0, num_rows)) for each in factors]
        blocks = []
        for start in range(0, num_rows, ROWS):
            parts = [self.drawn(rows(each, start, start + ROWS), generator) for each in factors]
            blocks.append(self.joined(parts, weights, known))
        return approximated(torch.cat(blocks), r, generator)


def rows(factors: Factors, start: int, stop: int) -> Float[Tensor, "rows in"]:
    """Some rows of a change, in float32."""
    return factors.scaling * (factors.B[start:stop].float() @ factors.A.float())


def approximated(matrix: Float[Tensor, "out in"], r: int, generator: torch.Generator) -> Made:
    """Factors of rank r of a large matrix, nearly the best, and how far they are from it: looked at, not estimated.

    A small one is decomposed whole, a large one by subspace iteration (`inlay.core.lowrank.top`); the error is |matrix - B A|^2
    itself, in float64, some rows at a time.
    """
    if min(matrix.shape) <= SMALL:
        return core_space.best(matrix.double(), r)
    U, s, Vt = lowrank.top(matrix.float(), r, generator)
    A, B = (s.sqrt()[:, None] * Vt).double(), (U * s.sqrt()).double()
    norm, error = 0.0, 0.0
    for start in range(0, len(matrix), ROWS):
        block = matrix[start : start + ROWS].double()
        norm += float(block.square().sum())
        error += float(block.sub_(B[start : start + ROWS] @ A).square().sum())
    return Made(A, B, norm, error)
