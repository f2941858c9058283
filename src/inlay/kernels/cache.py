"""Attention of the newest token of each sequence over keys and values in blocks: `cache.c`, which has the equation.

There is no other way here: where `available` says no, blocks are put together and `torch` computes (`inlay.generation.pages`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inlay.kernels import native

BLOCK = 16
"""Tokens of a block."""

WIDEST = 256
"""Numbers of a head at most; they are a multiple of sixteen."""

_DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes that it knows, by their numbers there."""


class Newest(NamedTuple):
    """Where the newest tokens of some sequences are."""

    tokens: Int[Tensor, " rows"]
    """Among those of the step."""

    lengths: Int[Tensor, " rows"]
    """How many tokens each sequence has with it."""

    tables: Int[Tensor, "rows most"]
    """The blocks of each."""


def available(query: Tensor, value: Tensor, keys: Tensor) -> bool:
    """The library is there and takes such tensors: of one dtype that it knows, on the processor."""
    dim = query.shape[-1]
    suits = native.variant() not in (native.TORCH, "plain") and query.dtype in _DTYPES and query.is_cpu
    return suits and keys.dtype == query.dtype == value.dtype and value.shape[-1] == dim <= WIDEST and dim % 16 == 0


def write_(
    key: Float[Tensor, "kv_heads t dim"],
    value: Float[Tensor, "kv_heads t dim"],
    pages: tuple[Float[Tensor, "blocks kv_heads dim 16"], Float[Tensor, "blocks kv_heads 16 dim"]],
    places: Newest,
) -> None:
    """Write keys and values of some tokens, each with a table and a length of its own, into their blocks."""
    k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (key, value))
    kv_heads, _, dim = k.shape
    rows, most = places.tables.shape
    addresses = [
        None,
        k.data_ptr(),
        v.data_ptr(),
        *[x.data_ptr() for x in pages],
        None,
        *[x.data_ptr() for x in places],
    ]
    strides = [0, 0, *[stride for x in (k, v) for stride in (x.stride(1), x.stride(0))]]
    job = native.CacheJob(*addresses, *strides, kv_heads, kv_heads, dim, most, 0, 0.0, _DTYPES.index(k.dtype))
    native.do("cache", 0, job, rows * kv_heads, rows * kv_heads * dim)


def attend_(
    query: Float[Tensor, "heads t dim"],
    key: Float[Tensor, "kv_heads t dim"],
    value: Float[Tensor, "kv_heads t dim"],
    pages: tuple[Float[Tensor, "blocks kv_heads dim 16"], Float[Tensor, "blocks kv_heads 16 dim"]],
    newest: Newest,
    out: Float[Tensor, "t heads dim"],
    *,
    scaling: float,
    window: int | None,
) -> None:
    """Write the newest tokens' keys and values into their blocks, and what these tokens see into their rows of `out`."""
    heads, _, dim = query.shape
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (query, key, value))
    rows, most = newest.tables.shape
    kv_heads = k.shape[0]
    addresses = [x.data_ptr() for x in (q, k, v, *pages, out, *newest)]
    strides = [stride for x in (q, k, v) for stride in (x.stride(1), x.stride(0))]
    sizes = (heads, kv_heads, dim, most, window or 1 << 62)
    job = native.CacheJob(*addresses, *strides, *sizes, scaling, _DTYPES.index(q.dtype))
    native.do("cache", 0, job, rows * kv_heads, rows * most * BLOCK * kv_heads * dim)
