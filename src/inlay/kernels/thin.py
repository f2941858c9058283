"""What one adapter's factors add to many tokens, and the gradients of that: by `thin.c`, in bfloat16 where the processor
multiplies it.

    h = x A^T,   out += scaling h B^T;      e = scaling g B,   d x += e A,   d A = e^T x,   d B = scaling g^T h

torch's products have much to do before each begins, and these are small: the six of a linear map are two calls here.
"""

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from inlay.core.routed import Factors
from inlay.kernels import native

FEWEST_TOKENS, MOST_RANK = 16, 32
"""With fewer tokens or more ranks torch's products are as fast."""

_COLUMNS, _LANES = 32, 16
"""What widths are a multiple of; and what a rank is filled up to."""

_FORWARD, _BACKWARD = range(2)
"""The functions of `thin.c`."""

Kept = Int32[Tensor, "half filled"]
"""h in bfloat16, the numbers of two tokens in a word; ranks are filled up to a multiple of 16."""


def takes(x: Float[Tensor, "tokens in"], out: Float[Tensor, "tokens out"], factors: Factors) -> bool:
    """x and out are bfloat16 and the factors float32, all contiguous, on the processor or without numbers; there are at least
    `FEWEST_TOKENS` tokens and at most `MOST_RANK` ranks, and widths are multiples of 32."""
    A, B = factors.A, factors.B
    return (
        x.dtype == out.dtype == torch.bfloat16
        and A.dtype == B.dtype == torch.float32
        and len(x) >= FEWEST_TOKENS
        and len(A) <= MOST_RANK
        and x.shape[1] % _COLUMNS == out.shape[1] % _COLUMNS == 0
        and all([(t.is_cpu or t.is_meta) and t.is_contiguous() for t in (x, out, A, B)])
        and native.multiplies_bfloat16()
    )


def add_(out: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"], factors: Factors, scaling: float) -> Kept:
    """out += scaling x A^T B^T, for what `takes` takes; h comes back."""
    h = x.new_empty(-(-len(x) // 2), _filled(len(factors.A)), dtype=torch.int32)
    _run(_FORWARD, {"x": x, "y": out, "h": h}, factors, scaling, len(x))
    return h


def gradients(
    g: Float[Tensor, "tokens out"],
    x: Float[Tensor, "tokens in"],
    h: Kept,
    factors: Factors,
    scaling: float,
    into: Float[Tensor, "tokens in"] | None,
    *,
    wanted: tuple[bool, bool],
) -> tuple[Float[Tensor, "r in"] | None, Float[Tensor, "out r"] | None]:
    """The gradients of A and B in float32, those that are wanted; that of x is added to `into`.

    **Arguments:**

    - `g`: the gradient of `out`.
    - `x`, `factors`, `scaling`: what `add_` was given, and `h` what it gave back.
    """
    assert into is None or into.is_contiguous(), "it is a product"
    dA, dB = (torch.empty_like(t) if want else None for t, want in zip((factors.A, factors.B), wanted, strict=True))
    given = {"x": x.contiguous(), "g": g.contiguous(), "h": h, "y": into, "dA": dA, "dB": dB}
    _run(_BACKWARD, {name: t for name, t in given.items() if t is not None}, factors, scaling, len(x))
    return dA, dB


def _run(function: int, tensors: dict[str, Tensor], factors: Factors, scaling: float, tokens: int) -> None:
    A, B = factors.A, factors.B
    (r, width), outputs = A.shape, len(B)
    of_tokens = -(-tokens // 2) if function == _BACKWARD else 0
    words = A.new_empty(((width + outputs) // 2 + of_tokens) * _filled(r), dtype=torch.int32)
    if A.is_meta:
        return
    sizes: dict[str, Any] = {"tokens": tokens, "in": width, "out": outputs, "r": r, "scaling": scaling}
    given = {**tensors, "A": A, "B": B, "words": words}
    native.run("thin", function, given, sizes, tokens, tokens * (width + outputs))


def _filled(r: int) -> int:
    """A rank, filled up."""
    return -(-r // _LANES) * _LANES
