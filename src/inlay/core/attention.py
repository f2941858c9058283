"""Causal attention over packed documents: each token sees the tokens of its own document up to itself.

    out[t] = sum over s of P[t, s] v[s],   P[t] = softmax over s of scaling q[t] . k[s],   s <= t in the document of t

Documents lie one after the other in one row. Neighbours of like length are computed together as a batch, padded with zeros
at their ends to the longest among them: no token sees what comes after it, so that needs no mask, and a padded position hands
back no gradient because nobody reads its result. Nothing is computed between two documents, and a batch of documents of one
length is a view of the row.

A document may go on in several ways: a branch sees the whole document that it continues, and itself up to each token. So what
rows have in common is computed once, and its keys and values get the gradients of all branches.

torch's fused kernel does the rest, where `inlay.kernels.attention` has none of its own; on a processor in float32 whatever
the dtype of q: without instructions for bfloat16 it takes 1.6 to 5 times as long in that (benchmarks/attention.py). Plain
products and an explicit softmax with a backward pass of its own were tried instead: in float32 they take 1.2 to 1.4
times as long at 16 to 512 tokens, because the kernel passes over half of every P and copies nothing.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

MAX_PADDING = 1.25
"""The longest of the documents that are computed together has at most this many times the tokens of the shortest."""

LOSES_NAN = 16
"""Of documents with fewer tokens torch's fused kernel makes numbers where a query or key is none, on a processor."""


def document_attention(
    q: Float[Tensor, "heads t dim"],
    k: Float[Tensor, "kv_heads t dim"],
    v: Float[Tensor, "kv_heads t dim"],
    lengths: Sequence[int],
    scaling: float,
) -> Float[Tensor, "t heads dim"]:
    """The equation at the top of this file.

    **Arguments:**

    - `q`, `k`, `v`: a whole number of query heads per head of keys.
    - `lengths`: the tokens of each document, in order; they add up to t.

    **Returns:**

    A new tensor (t, heads, dim) in the dtype of q.
    """
    groups = _groups(tuple(lengths))
    if len(groups) == 1:
        return _padded((q, k, v), groups[0], scaling)
    sizes = [sum(group) for group in groups]
    parts = zip(*(x.split(sizes, 1) for x in (q, k, v)), strict=True)
    return torch.cat([_padded(part, group, scaling) for part, group in zip(parts, groups, strict=True)])


def branch_attention(
    q: Float[Tensor, "heads t dim"],
    k: Float[Tensor, "kv_heads t dim"],
    v: Float[Tensor, "kv_heads t dim"],
    lengths: Sequence[int],
    parents: Sequence[int],
    scaling: float,
) -> Float[Tensor, "branch_tokens heads dim"]:
    """What the branches see: the documents that they continue, and themselves up to each token.

    **Arguments:**

    - `q`, `k`, `v`, `lengths`: of documents and, after all of these, branches.
    - `parents`: of each branch the number of the document that it continues; those of one document are neighbours.
    """
    starts = [0, *itertools.accumulate(lengths)]
    number, made = len(lengths) - len(parents), []
    for parent, same in itertools.groupby(parents):
        count = len([*same])
        own, number = lengths[number : number + count], number + count
        first, document = starts[number - count], slice(starts[parent], starts[parent + 1])
        for group in _groups(tuple(own)):
            here = slice(first, first := first + sum(group))
            made.append(_branches([x[:, here] for x in (q, k, v)], [x[:, document] for x in (k, v)], group, scaling))
    return torch.cat(made)


def _branches(qkv: Sequence[Tensor], document: Sequence[Tensor], lengths: tuple[int, ...], scaling: float) -> Tensor:
    """Branches of like length of one document: three and two of (heads, t, dim) in, (t, heads, dim) out."""
    longest, given, on_cpu = max(lengths), qkv[0].dtype, qkv[0].device.type == "cpu"
    dtype = torch.promote_types(given, torch.float32) if on_cpu else given
    own = [
        x.unflatten(1, (-1, longest)).transpose(0, 1).to(dtype) for x in _filled(qkv, lengths)
    ]  # (branches, heads, ...)
    before = [x[None].to(dtype) for x in document]
    out: Tensor = _Branches.apply(*own, *before, scaling) if on_cpu else masked_branches(*own, *before, scaling)  # type: ignore[assignment]  # torch types apply as Any
    flat = out.transpose(1, 2).flatten(0, 1).to(given)
    return flat if min(lengths) == longest else flat.index_select(0, _positions(lengths, flat.device))


def masked_branches(
    q: Float[Tensor, "n heads t dim"],
    k: Float[Tensor, "n kv_heads t dim"],
    v: Float[Tensor, "n kv_heads t dim"],
    k_before: Float[Tensor, "1 kv_heads s dim"],
    v_before: Float[Tensor, "1 kv_heads s dim"],
    scaling: float,
) -> Float[Tensor, "n heads t dim"]:
    """n branches of one document the plain way: each with a copy of its keys and values."""
    K, V = (torch.cat([x.expand(len(q), -1, -1, -1), y], 2) for x, y in ((k_before, k), (v_before, v)))
    seen = torch.ones(q.shape[2], K.shape[2], dtype=torch.bool, device=q.device).tril_(K.shape[2] - q.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(q, K, V, seen, scale=scaling, enable_gqa=True)


class _Branches(torch.autograd.Function):
    """The same by two calls of torch's fused kernel for processors: all branches over the document, and each over itself.

        l = log(e^l1 + e^l2),   out = e^(l1 - l) out1 + e^(l2 - l) out2,      l1, l2: logarithms of what each call divides by

    Backward, each call is given l and out as if they were its own, and then has the gradients of its part.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_before: Tensor, v_before: Tensor, scaling: float
    ) -> Tensor:
        group = q.shape[1] // k.shape[1]
        out1, l1 = _flash(_folded(q, group), k_before, v_before, 0.0, False, scale=scaling)
        out2, l2 = _flash(q, *(x.repeat_interleave(group, 1) for x in (k, v)), 0.0, True, scale=scaling)
        out1, l1 = _unfolded(out1, q.shape), _unfolded(l1[..., None], q.shape)[..., 0]
        logs = torch.logaddexp(l1, l2)
        out = out1.mul_((l1 - logs).exp_()[..., None]).add_(out2.mul_((l2 - logs).exp_()[..., None]))
        ctx.scaling, ctx.group = scaling, group
        ctx.save_for_backward(q, k, v, k_before, v_before, out, logs)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        (q, k, v, k_before, v_before, out, logs), g, group = ctx.saved_tensors, grad_outputs[0], ctx.group
        folded = [_folded(x, group) for x in (g, q, out, logs[..., None])]
        given = (folded[0], folded[1], k_before, v_before, folded[2], folded[3][..., 0])
        dq1, dk_before, dv_before = _flash_backward(*given, 0.0, False, scale=ctx.scaling)
        wide = (x.repeat_interleave(group, 1) for x in (k, v))
        dq2, dk, dv = _flash_backward(g, q, *wide, out, logs, 0.0, True, scale=ctx.scaling)
        dk, dv = (x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv))
        return dq2 + _unfolded(dq1, q.shape), dk, dv, dk_before, dv_before, None


_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _folded(x: Tensor, group: int) -> Tensor:
    """(n, heads, t, d) to (1, kv_heads, n group t, d): all that one head of keys is asked."""
    return x.unflatten(1, (-1, group)).transpose(0, 1).flatten(1, 3)[None]


def _unfolded(x: Tensor, shape: torch.Size) -> Tensor:
    """What `_folded` was given."""
    n, heads, t, _ = shape
    return x[0].unflatten(1, (n, heads // x.shape[1], t)).transpose(0, 1).flatten(1, 2)


@functools.lru_cache(maxsize=64)
def _groups(lengths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Neighbouring documents of like length, which are computed together."""
    groups: list[list[int]] = []
    for length in lengths:
        longer = [*groups[-1], length] if groups else []
        if longer and max(longer) <= MAX_PADDING * min(longer):
            groups[-1] = longer
        else:
            groups.append([length])
    return tuple(map(tuple, groups))


def _padded(qkv: Sequence[Tensor], lengths: tuple[int, ...], scaling: float) -> Tensor:
    """One group: three of (heads, t, dim) in, (t, heads, dim) out."""
    longest = max(lengths)
    if min(lengths) == longest:
        return _even(qkv, longest, scaling)
    return _even(_filled(qkv, lengths), longest, scaling).index_select(0, _positions(lengths, qkv[0].device))


def _filled(qkv: Sequence[Tensor], lengths: tuple[int, ...]) -> Sequence[Tensor]:
    """The same with zeros at the ends of all but the longest."""
    longest = max(lengths)
    if min(lengths) == longest:
        return qkv
    positions, size = _positions(lengths, qkv[0].device), len(lengths) * longest
    rows = [x.transpose(0, 1) for x in qkv]  # (t, heads, dim): whole tokens are moved, as projections lay them
    return [x.new_zeros(size, *x.shape[1:]).index_copy_(0, positions, x).transpose(0, 1) for x in rows]


@functools.lru_cache(maxsize=64)
def _positions(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each token lies among the padded documents."""
    longest = max(lengths)
    return torch.tensor([row * longest + i for row, n in enumerate(lengths) for i in range(n)], device=device)


def _even(qkv: Sequence[Tensor], length: int, scaling: float) -> Tensor:
    """Documents of one length."""
    given = qkv[0].dtype
    dtype = torch.promote_types(given, torch.float32) if qkv[0].device.type in ("cpu", "meta") else given
    # widened last, so that `inlay.core.recompute` can see that the kernel's arguments came from something narrower
    Q, K, V = (x.unflatten(1, (-1, length)).transpose(0, 1).to(dtype) for x in qkv)  # (documents, heads, length, dim)
    out = torch.nn.functional.scaled_dot_product_attention(
        Q, K, V, is_causal=True, scale=scaling, enable_gqa=Q.shape[1] != K.shape[1]
    )
    if length < LOSES_NAN:
        lost = (K - K).sum(-1, keepdim=True).cumsum(2).repeat_interleave(Q.shape[1] // K.shape[1], 1)
        out = out + (lost + (Q - Q).sum(-1, keepdim=True))  # nothing, where Q and K are numbers
    return out.transpose(1, 2).flatten(0, 1).to(given)  # (t, heads, dim)
