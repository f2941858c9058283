"""The small matrix that a sum of low-rank changes comes down to, without the changes themselves.

    sum_i c_i B_i A_i = [c_1 B_1 ... c_n B_n] [A_1; ...; A_n] = U (R_B R_A^T) V^T,   U R_B and V R_A by QR

U (out, R) and V (in, R) are orthonormal, R the sum of the ranks, so that the R x R core has the singular values of the sum, and
its best approximation of rank r is that of the sum (Eckart and Young 1936). It takes time (in + out) R^2, where a decomposition
of the sum takes in out min(in, out). All of it in float64: the factors of adapters are small, and a sum may cancel.

Source: Core Space merging (Panariello et al. 2025, arXiv 2509.17786), which combines in these coordinates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.combine.contract import Made
from inlay.core.routed import Factors

NOTHING = 1e-7
"""Part of the largest singular value below which one is rounding: factors are kept in float32."""


def truncated(B: Float[Tensor, "out wide"], A: Float[Tensor, "wide in"], r: int) -> Made:
    """The best factors of rank r of the product B A, each with the roots of the singular values; fewer where it has fewer."""
    U, core, V = _core(B, A)
    return rotated(best(core, r), U, V)


def rotated(core: Made, U: Float[Tensor, "out p"], V: Float[Tensor, "in q"]) -> Made:
    """What was made in orthonormal coordinates, in those of the layer."""
    return Made(core.A @ V.T, U @ core.B, core.square_norm, core.square_error)


def best(matrix: Float[Tensor, "out in"], r: int) -> Made:
    """The best factors of rank r of a matrix, or of its rank where that is less; the error is what was cut off."""
    U, s, Vt = torch.linalg.svd(matrix, full_matrices=False)
    root, squares = s[:r].sqrt(), s.square()
    return Made(root[:, None] * Vt[:r], U[:, :r] * root, float(squares.sum()), float(squares[r:].sum()))


def inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """<B A, B' A'>, the sum of the products of their entries, of two changes (B, A)."""
    (B, A), (B_, A_) = one, other
    return float(((B.T @ B_) * (A @ A_.T)).sum())


class Coordinates(NamedTuple):
    """Changes in orthonormal coordinates that all share: scaling_i B_i A_i = U M_i V^T."""

    U: Float[Tensor, "out p"]
    V: Float[Tensor, "in q"]
    matrices: list[Float[Tensor, "p q"]]


def coordinates(factors: Sequence[Factors]) -> Coordinates:
    """The changes in the basis of the singular vectors of all B beside each other, and of all A: the reference of the paper.

    What is done to single entries of M_i depends on the basis; that of singular vectors has nothing arbitrary but signs, which
    all M_i share.
    """
    U, R_B = torch.linalg.qr(torch.cat([each.B.double() for each in factors], 1))
    V, R_A = torch.linalg.qr(torch.cat([each.A.double() for each in factors]).T)
    turn_B, turn_A = torch.linalg.svd(R_B)[0], torch.linalg.svd(R_A)[0]
    ranks = [len(each.A) for each in factors]
    pairs = zip((turn_B.T @ R_B).split(ranks, 1), (turn_A.T @ R_A).split(ranks, 1), factors, strict=True)
    return Coordinates(U @ turn_B, V @ turn_A, [each.scaling * (B @ A.T) for B, A, each in pairs])


class Decomposed(NamedTuple):
    """A change as U diag(s) V^T, without singular values that are rounding."""

    U: Float[Tensor, "out p"]
    s: Float[Tensor, " p"]
    V: Float[Tensor, "in p"]


def decomposed(factors: Factors) -> Decomposed:
    """The singular value decomposition of scaling B A, in float64."""
    U, core, V = _core(factors.B.double() * factors.scaling, factors.A.double())
    left, s, right = torch.linalg.svd(core, full_matrices=False)
    kept = s > NOTHING * s.amax()
    return Decomposed((U @ left)[:, kept], s[kept], (V @ right.T)[:, kept])


def _core(
    B: Float[Tensor, "out p"], A: Float[Tensor, "p in"]
) -> tuple[Float[Tensor, "out k"], Float[Tensor, "k l"], Float[Tensor, "in l"]]:
    """(U, R_B R_A^T, V) of the product B A."""
    U, R_B = torch.linalg.qr(B)
    V, R_A = torch.linalg.qr(A.T)
    return U, R_B @ R_A.T, V
