"""What the low-rank methods share: the initial factors, the change of an output and of the weight, and its norms.

    delta W = scaling B A,   A ~ U(-1/sqrt(in), 1/sqrt(in)),   B = 0
    |W + scaling B A|^2 = |W|^2 + 2 scaling <W A^T, B> + scaling^2 <B A A^T, B>,   row by row

Source: LoRA (Hu et al. 2021, arXiv 2106.09685), section 4.1. The uniform A is what its authors' code and `peft` draw
(Kaiming-uniform with a = sqrt(5)); the paper's text says Gaussian.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

SPARE, ITERATIONS = 16, 6
"""Directions beyond those that are wanted, and steps, of the search for singular values."""


def kaiming_uniform(r: int, in_features: int, generator: torch.Generator) -> Float[Tensor, "r in"]:
    """A fresh A: float32 on the CPU, uniform in +-1/sqrt(in_features)."""
    bound = in_features**-0.5
    return torch.empty(r, in_features).uniform_(-bound, bound, generator=generator)


def top(
    matrix: Float[Tensor, "rows columns"], k: int, generator: torch.Generator
) -> tuple[Float[Tensor, "rows q"], Float[Tensor, " q"], Float[Tensor, "q columns"]]:
    """The q = min(k, rows, columns) largest singular values s of a matrix U diag(s) V^T, and their U and V^T.

    By subspace iteration on k + `SPARE` directions, or on all where there are no more: what it captures of the matrix is
    within 0.1 % of the best, in time linear in k. Source: Halko, Martinsson, Tropp 2011, algorithm 4.4.
    """
    width = min(k + SPARE, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    Q, _ = torch.linalg.qr(matrix @ start)
    for _ in range(ITERATIONS):
        Q, _ = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ Q)[0])
    U, s, V = torch.linalg.svd(Q.T @ matrix, full_matrices=False)
    return Q @ U[:, :k], s[:k], V[:k]


def balanced(
    matrix: Float[Tensor, "out in"], r: int, generator: torch.Generator
) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
    """A and B whose B A is the best approximation of a matrix of rank r, each with the roots of its singular values."""
    U, s, V = top(matrix, r, generator)
    return s.sqrt()[:, None] * V, U * s.sqrt()


def project(x: Shaped[Tensor, "tokens *in"], A: Float[Tensor, "r in"]) -> Float[Tensor, "tokens r"]:
    """A x for every token; whole numbers x are one-hot inputs, given as the indices of their ones."""
    return x @ A.to(x.dtype).T if x.is_floating_point() else A.T[x]


def change(
    x: Shaped[Tensor, "tokens *in"],
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
    scaling: float,
    dtype: torch.dtype,
) -> Float[Tensor, "tokens out"]:
    """scaling B A x for every token, in `dtype`."""
    return scaling * (project(x, A).to(dtype) @ B.to(dtype).T)


def square_norms(
    square_norms: Float[Tensor, " out"],
    projected: Float[Tensor, "out r"],
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
    scaling: float,
) -> Float[Tensor, " out"]:
    """|W + scaling B A|^2 by rows, from `square_norms` |W|^2 and `projected` W A^T: the sum itself is never formed."""
    cross = (projected * B).sum(1)
    own = ((B @ (A @ A.T)) * B).sum(1)
    return square_norms + 2 * scaling * cross + scaling**2 * own


def merged(
    weight: Float[Tensor, "out in"], A: Float[Tensor, "r in"], B: Float[Tensor, "out r"], scaling: float
) -> Float[Tensor, "out in"]:
    """W + scaling B A in the dtype of W, computed in float32 or wider and rounded once."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), B.to(wide), A.to(wide), alpha=scaling).to(weight.dtype)
