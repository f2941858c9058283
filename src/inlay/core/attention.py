"""Causal attention over packed documents: each token sees the tokens of its own document up to itself.

    out[t] = sum over s of P[t, s] v[s],   P[t] = softmax over s of scaling q[t] . k[s],   s <= t in the document of t

Documents lie one after the other in one row. Neighbours of like length are computed together as a batch, padded with zeros
at their ends to the longest among them: no token sees what comes after it, so that needs no mask, and a padded position hands
back no gradient because nobody reads its result. Nothing is computed between two documents, and a batch of documents of one
length is a view of the row.

torch's fused kernel does the rest, where `inlay.kernels.attention` has none of its own; on a processor in float32 whatever
the dtype of q: without instructions for bfloat16 it takes 1.6 to 5 times as long in that (benchmarks/attention.py). Plain
products and an explicit softmax with a backward pass of its own were tried instead: in float32 they take 1.2 to 1.4
times as long at 16 to 512 tokens, because the kernel passes over half of every P and copies nothing.
"""

import functools
from collections.abc import Sequence

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
    positions = _positions(lengths, qkv[0].device)
    size = len(lengths) * longest
    rows = [x.transpose(0, 1) for x in qkv]  # (t, heads, dim): whole tokens are moved, as projections lay them
    padded = [x.new_zeros(size, *x.shape[1:]).index_copy_(0, positions, x).transpose(0, 1) for x in rows]
    return _even(padded, longest, scaling).index_select(0, positions)


@functools.lru_cache(maxsize=64)
def _positions(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each token lies among the padded documents."""
    longest = max(lengths)
    return torch.tensor([row * longest + i for row, n in enumerate(lengths) for i in range(n)], device=device)


def _even(qkv: Sequence[Tensor], length: int, scaling: float) -> Tensor:
    """Documents of one length."""
    given = qkv[0].dtype
    dtype = torch.promote_types(given, torch.float32) if qkv[0].device.type == "cpu" else given
    # widened last, so that `inlay.core.recompute` can see that the kernel's arguments came from something narrower
    Q, K, V = (x.unflatten(1, (-1, length)).transpose(0, 1).to(dtype) for x in qkv)  # (documents, heads, length, dim)
    out = torch.nn.functional.scaled_dot_product_attention(
        Q, K, V, is_causal=True, scale=scaling, enable_gqa=Q.shape[1] != K.shape[1]
    )
    if length < LOSES_NAN:
        lost = (K - K).sum(-1, keepdim=True).cumsum(2).repeat_interleave(Q.shape[1] // K.shape[1], 1)
        out = out + (lost + (Q - Q).sum(-1, keepdim=True))  # nothing, where Q and K are numbers
    return out.transpose(1, 2).flatten(0, 1).to(given)  # (t, heads, dim)
