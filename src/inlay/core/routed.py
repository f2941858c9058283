"""The frozen linear map with its routed low-rank product: every token of a batch names its adapter, or none.

    out[t] = W x[t] + b + sum over segments s that hold t of  s.weight scaling_k B_k (A_k x[t]),   k = s.adapter

A segment (start, stop, adapter) gives a run of consecutive tokens to one adapter, so padded batches (a segment per row),
packed documents (a segment per document) and decoding steps (a segment per row, one token each) are one thing. Tokens in no
segment get W x + b bit for bit.

Gradients, with g = d loss / d out times the segment's weight, h = A x, and sums over the tokens of the adapter's segments:

    d B = scaling g^T h,   d A = scaling (g B)^T x,   d x = g W + scaling (g B) A

W has none. One function for base and adapter, because then every product adds into the result of the one before it: no
temporary of the output's size, x kept once, and no gradient of W x waiting for that of B A x.

Products run in the dtype of x, or in a wider one where that is faster (`inlay.core.product`); A and B may be wider (float32
masters under a bfloat16 base): they are cast when they are multiplied, and their gradients come back in their own dtype.
Source: LoRA (Hu et al. 2021, arXiv 2106.09685), equation 3.

One pair of matrix products per segment, in a loop, by one `Thin` way or another. For few tokens without gradients there is
`inlay.kernels.low_rank`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from inlay.core.product import Rows, linear, linear_backward


class Segment(NamedTuple):
    """Tokens start <= t < stop take what adapter number `adapter` adds, times `weight`."""

    start: int
    stop: int
    adapter: int
    weight: float = 1.0


Entry = int | Sequence[tuple[int, float]] | None
"""Whose a row is: one adapter's by its number, that of several, each with its weight, or nobody's."""


@dataclasses.dataclass(frozen=True, eq=False)  # its shapes are checked in tests; a tuple's fields would not be
class Factors:
    """A low-rank change of a linear map: delta W = scaling B A."""

    A: Float[Tensor, "r in"]
    B: Float[Tensor, "out r"]
    scaling: float


@runtime_checkable  # the tests check it where they check shapes
class Thin(Protocol):
    """A way to multiply the tokens of one segment by its factors: torch's here, or that of `inlay.kernels.thin`."""

    def takes(self, x: Float[Tensor, "tokens in"], out: Float[Tensor, "tokens out"], factors: Factors) -> bool:
        """It multiplies such tensors."""
        ...

    def add_(
        self, out: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"], factors: Factors, scaling: float
    ) -> Shaped[Tensor, "..."]:
        """out += scaling x A^T B^T; x A^T comes back, as `gradients` takes it."""
        ...

    def gradients(
        self,
        g: Float[Tensor, "tokens out"],
        x: Float[Tensor, "tokens in"],
        h: Shaped[Tensor, "..."],
        factors: Factors,
        scaling: float,
        into: Float[Tensor, "tokens in"] | None,
        *,
        wanted: tuple[bool, bool],
    ) -> tuple[Float[Tensor, "r in"] | None, Float[Tensor, "out r"] | None]:
        """The gradients of A and of B, where they are wanted, from that of `out`; that of x is added to `into`."""
        ...


def row_segments(adapters: Sequence[Entry], num_tokens: int) -> tuple[Segment, ...]:
    """The segments of a batch whose rows hold `num_tokens` tokens each; see `packed_segments`."""
    return packed_segments(adapters, [num_tokens] * len(adapters))


def packed_segments(adapters: Sequence[Entry], lengths: Sequence[int]) -> tuple[Segment, ...]:
    """The segments of rows that lie one after the other, of so many tokens; neighbours with one adapter become one segment."""
    segments: list[Segment] = []
    stop = 0
    for adapter, length in zip(adapters, lengths, strict=True):
        start, stop = stop, stop + length
        if not isinstance(adapter, int):
            segments += [Segment(start, stop, *share) for share in adapter or ()]
            continue
        if segments and segments[-1][1:] == (start, adapter, 1.0):
            start = segments.pop().start
        segments.append(Segment(start, stop, adapter))
    return tuple(segments)


def routed(
    x: Float[Tensor, "tokens in"],
    weight: Float[Tensor, "out in"] | Rows,
    bias: Float[Tensor, " out"] | None,
    factors: Sequence[Factors],
    segments: Sequence[Segment],
    *,
    dropped: Float[Tensor, "tokens in"] | None = None,
    dtype: torch.dtype | None = None,
    thin: Thin | None = None,
) -> Float[Tensor, "tokens out"]:
    """The frozen map and what each token's adapter adds to it; the equation at the top of this file.

    **Arguments:**

    - `x`: one row per token.
    - `weight`, `bias`: the frozen map, in any dtype or quantised; no gradient is computed for them.
    - `factors`: one entry per adapter; ranks may differ.
    - `segments`: who owns which tokens; overlapping segments add up.
    - `dropped`: x after dropout, which the adapters get, where there is any.
    - `dtype`: what the products run in; that of x unless given.
    - `thin`: what multiplies by the factors of the segments that it takes.

    **Returns:**

    A new tensor (tokens, out) in the dtype of x.
    """
    dtype = dtype or x.dtype
    pairs = [tensor for f in factors for tensor in (f.A, f.B)]
    scalings = tuple(f.scaling for f in factors)
    result: Tensor = _Routed.apply(x, dropped, weight, bias, tuple(segments), scalings, dtype, thin, *pairs)  # type: ignore[assignment]  # torch types apply as Any
    return result


def add_low_rank_(
    out: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"], factors: Factors, segment: Segment
) -> None:
    """out[t] += weight scaling (x[t] A^T) B^T for the tokens of a segment, without gradients, in the dtype of both."""
    rows = slice(segment.start, segment.stop)
    _BY_TORCH.add_(out[rows], x[rows], factors, segment.weight * factors.scaling)


class _ByTorch:
    """`Thin` by torch's products, in the dtype of x."""

    def takes(self, x: Tensor, out: Tensor, factors: Factors) -> bool:
        return True

    def add_(self, out: Tensor, x: Tensor, factors: Factors, scaling: float) -> Tensor:
        h = x @ factors.A.to(x.dtype).T
        out.addmm_(h, factors.B.to(x.dtype).T, alpha=scaling)
        return h

    def gradients(
        self,
        g: Tensor,
        x: Tensor,
        h: Tensor,
        factors: Factors,
        scaling: float,
        into: Tensor | None,
        *,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        grad_hidden = (g @ factors.B.to(g.dtype)).mul_(scaling)  # (tokens, r)
        dA = grad_hidden.T @ x if wanted[0] else None
        dB = (h.T @ g).mul_(scaling).T if wanted[1] else None  # half the time of g^T h
        if into is not None:
            into.addmm_(grad_hidden, factors.A.to(g.dtype))
        return dA, dB


_BY_TORCH = _ByTorch()


class _Routed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor | Rows,
        bias: Tensor | None,
        segments: tuple[Segment, ...],
        scalings: tuple[float, ...],
        dtype: torch.dtype,
        thin: Thin | None,
        *pairs: Tensor,
    ) -> Tensor:
        wide = x.to(dtype)
        seen = wide if dropped is None else dropped.to(dtype)
        out = linear(wide, weight, bias)
        factors = _factors(pairs, scalings)
        parts = [(seen[s.start : s.stop], out[s.start : s.stop]) for s in segments]
        ways = [
            thin if thin and thin.takes(*part, factors[s.adapter]) else _BY_TORCH
            for s, part in zip(segments, parts, strict=True)
        ]
        hidden = [
            way.add_(to, part, f, s.weight * f.scaling)
            for (s, way, f), (part, to) in zip(_each(segments, ways, factors, dtype), parts, strict=True)
        ]
        ctx.segments, ctx.ways, ctx.scalings, ctx.dtype = segments, ways, scalings, dtype
        ctx.has_dropped = dropped is not None
        kept = (x if dropped is None else dropped,) if segments else ()
        ctx.weight = weight  # frozen: neither an output, nor changed before the backward pass
        ctx.save_for_backward(*pairs, *hidden, *kept)
        return out.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        weight, rest, dtype = ctx.weight, ctx.saved_tensors, ctx.dtype
        num_pairs = 2 * len(ctx.scalings)
        pairs, hidden = rest[:num_pairs], rest[num_pairs : num_pairs + len(ctx.segments)]
        g = grad_outputs[0].to(dtype)
        needs_x, needs_dropped, *_ = ctx.needs_input_grad
        grad_x = linear_backward(g, weight) if needs_x else None
        grad_dropped = g.new_zeros(len(g), weight.shape[1]) if ctx.has_dropped and needs_dropped else None
        grads: list[Tensor | None] = [None] * num_pairs
        if ctx.segments:
            x = rest[-1].to(dtype)
            into = grad_dropped if ctx.has_dropped else grad_x
            each = _each(ctx.segments, ctx.ways, _factors(pairs, ctx.scalings), dtype)
            for (s, way, f), h in zip(each, hidden, strict=True):
                rows, k = slice(s.start, s.stop), 2 * s.adapter
                wanted = ctx.needs_input_grad[_PAIRS + k : _PAIRS + k + 2]
                to = None if into is None else into[rows]
                found = way.gradients(g[rows], x[rows], h, f, s.weight * f.scaling, to, wanted=wanted)
                for i, grad in enumerate(found, k):
                    _accumulate(grads, i, grad, pairs[i].dtype)
        given = grad_outputs[0].dtype
        first = None if grad_x is None else grad_x.to(given)
        second = None if grad_dropped is None else grad_dropped.to(given)
        return first, second, *[None] * (_PAIRS - 2), *grads


_PAIRS = 8
"""Where the factors start among the arguments of `_Routed.forward`."""


def _factors(pairs: Sequence[Tensor], scalings: Sequence[float]) -> list[Factors]:
    return [Factors(*given) for given in zip(pairs[0::2], pairs[1::2], scalings, strict=True)]


def _each(
    segments: Sequence[Segment], ways: Sequence[Thin], factors: Sequence[Factors], dtype: torch.dtype
) -> Iterator[tuple[Segment, Thin, Factors]]:
    """Every segment, with the factors as its way takes them: torch's in `dtype`, made once for all segments of an adapter."""
    cast: dict[int, Factors] = {}
    for s, way in zip(segments, ways, strict=True):
        f = factors[s.adapter]
        if way is _BY_TORCH and s.adapter not in cast:
            cast[s.adapter] = Factors(f.A.to(dtype), f.B.to(dtype), f.scaling)
        yield s, way, cast[s.adapter] if way is _BY_TORCH else f


def _accumulate(grads: list[Tensor | None], index: int, grad: Tensor | None, dtype: torch.dtype) -> None:
    if grad is not None:
        grad, already = grad.to(dtype), grads[index]
        grads[index] = grad if already is None else already.add_(grad)
