"""The routed low-rank product: every token of a batch names its adapter, or none.

    out[t] = y[t] + sum over segments s that hold t of  scaling_k B_k (A_k x[t]),   k = s.adapter

x is the input of a frozen linear map, y its output, both with one row per token. A segment (start, stop, adapter) gives a
run of consecutive tokens to one adapter, so padded batches (a segment per row), packed documents (a segment per document)
and decoding steps (a segment per row, one token each) are one thing. Tokens in no segment keep y bit for bit.

Gradients, with g = d loss / d out, h = A x, and sums over the tokens of the adapter's segments:

    d y = g,   d B = scaling g^T h,   d A = scaling (g B)^T x,   d x = scaling (g B) A

Products run in the dtype of x; A and B may be wider (float32 masters under a bfloat16 base): they are cast once per call,
and their gradients come back in their own dtype. Source: LoRA (Hu et al. 2021, arXiv 2106.09685), equation 3.

One pair of matrix products per segment, in a loop: a grouped kernel would save launches where segments are many and
short, at the price of a second implementation.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Segment(NamedTuple):
    """Tokens start <= t < stop belong to adapter number `adapter`."""

    start: int
    stop: int
    adapter: int


@dataclasses.dataclass(frozen=True, eq=False)  # its shapes are checked in tests; a tuple's fields would not be
class Factors:
    """A low-rank change of a linear map: delta W = scaling B A."""

    A: Float[Tensor, "r in"]
    B: Float[Tensor, "out r"]
    scaling: float


def row_segments(adapters: Sequence[int | None], num_tokens: int) -> tuple[Segment, ...]:
    """The segments of a batch whose rows hold `num_tokens` tokens each; neighbours with one adapter become one segment."""
    segments: list[Segment] = []
    for row, adapter in enumerate(adapters):
        if adapter is None:
            continue
        start, stop = row * num_tokens, (row + 1) * num_tokens
        if segments and segments[-1].adapter == adapter and segments[-1].stop == start:
            start = segments.pop().start
        segments.append(Segment(start, stop, adapter))
    return tuple(segments)


def routed(
    y: Float[Tensor, "tokens out"],
    x: Float[Tensor, "tokens in"],
    factors: Sequence[Factors],
    segments: Sequence[Segment],
) -> Float[Tensor, "tokens out"]:
    """y plus what each token's adapter adds to it; the equation at the top of this file.

    **Arguments:**

    - `y`, `x`: output and input of the frozen map, one row per token.
    - `factors`: one entry per adapter; ranks may differ.
    - `segments`: who owns which tokens; overlapping segments add up.

    **Returns:**

    A new tensor (tokens, out) in the dtype of y; y itself where there is no segment.
    """
    if not segments:
        return y
    pairs = [tensor for f in factors for tensor in (f.A, f.B)]
    result: Tensor = _Routed.apply(y, x, tuple(segments), tuple(f.scaling for f in factors), *pairs)  # type: ignore[assignment]  # torch types apply as Any
    return result


class _Routed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, segments: Any, scalings: Any, *pairs: Tensor) -> Tensor:
        ctx.segments, ctx.scalings = segments, scalings
        A, B = _cast(pairs[0::2], x.dtype), _cast(pairs[1::2], x.dtype)
        hidden = [x[s.start : s.stop] @ A[s.adapter].T for s in segments]  # (segment tokens, r)
        ctx.save_for_backward(x, *pairs, *hidden)
        if len(segments) == 1 and segments[0].stop - segments[0].start == len(y):
            k = segments[0].adapter
            return torch.addmm(y, hidden[0], B[k].T, alpha=scalings[k])
        out = y.clone()
        for s, h in zip(segments, hidden, strict=True):
            out[s.start : s.stop].addmm_(h, B[s.adapter].T, alpha=scalings[s.adapter])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        (g,) = grad_outputs
        x, *rest = ctx.saved_tensors
        num_pairs = 2 * len(ctx.scalings)
        pairs, hidden = rest[:num_pairs], rest[num_pairs:]
        A, B = _cast(pairs[0::2], x.dtype), _cast(pairs[1::2], x.dtype)
        grads: list[Tensor | None] = [None] * num_pairs
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        for s, h in zip(ctx.segments, hidden, strict=True):
            k, scaling, rows = s.adapter, ctx.scalings[s.adapter], slice(s.start, s.stop)
            grad_hidden = (g[rows] @ B[k]).mul_(scaling)  # (segment tokens, r)
            if ctx.needs_input_grad[4 + 2 * k]:
                _accumulate(grads, 2 * k, grad_hidden.T @ x[rows], pairs[2 * k].dtype)
            if ctx.needs_input_grad[5 + 2 * k]:
                _accumulate(grads, 2 * k + 1, (g[rows].T @ h).mul_(scaling), pairs[2 * k + 1].dtype)
            if grad_x is not None:
                grad_x[rows].addmm_(grad_hidden, A[k])
        return g, grad_x, None, None, *grads


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [tensor.to(dtype) for tensor in tensors]


def _accumulate(grads: list[Tensor | None], index: int, grad: Tensor, dtype: torch.dtype) -> None:
    grad = grad.to(dtype)
    already = grads[index]
    grads[index] = grad if already is None else already.add_(grad)
