"""What low-rank adapters add to a linear map for a few tokens of any of them: `low_rank.c`, or a product for each segment.

out[t] += sum over segments s that hold t of  s.weight scaling_k (x[t] A_k^T) B_k^T,    k = s.adapter
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core.routed import Factors, Segment, add_low_rank_
from inlay.kernels import native

MOST_TOKENS = 32
"""With more for each segment, a product for each is the cheaper way."""

MOST_TOGETHER = 128
"""Tokens of all segments, likewise."""

MOST_ENTRIES = 4 * MOST_TOGETHER
"""How many adapters' factors all tokens have together, where some have several."""

MOST_RANK = 1024

_WIDTH = 16
"""Outputs of a unit of work."""

_LINE_BYTES = 64

_DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes that it knows, by their numbers there."""


class Packed(NamedTuple):
    """Factors as the product takes them, of one dtype."""

    A: Float[Tensor, "r in"]
    lines: Float[Tensor, "lines r line"]
    """B^T, with a line's outputs of all ranks together: what some outputs take is in one piece; noughts at the end."""
    out: int
    scaling: float

    @property
    def factors(self) -> Factors:
        """The factors in this dtype."""
        return Factors(self.A, self.lines.permute(0, 2, 1).flatten(0, 1)[: self.out], self.scaling)


def pack(factors: Factors, dtype: torch.dtype) -> Packed:
    """The factors in `dtype`; an A that is there already is not copied."""
    out, r = factors.B.shape
    line = _LINE_BYTES // dtype.itemsize
    B = torch.nn.functional.pad(factors.B.to(dtype), (0, 0, 0, -out % line))
    lines = B.view(-1, line, r).transpose(1, 2).contiguous()
    return Packed(factors.A.to(dtype).contiguous(), lines, out, factors.scaling)


class Entries:
    """Whose factors change which tokens: the same for as long as these are the same.

    **Arguments:**

    - `packed`: by adapter; None: it leaves the map alone.
    - `segments`: who owns which tokens, in their order; segments of the same tokens add up.
    """

    def __init__(self, packed: Sequence[Packed | None], segments: Sequence[Segment]):
        self._some = [(s, own) for s in segments if s.start < s.stop and (own := packed[s.adapter]) is not None]
        self._size = sum([(s.stop - s.start) * (own.A.numel() + own.lines.numel()) for s, own in self._some])
        self._most = min(MOST_TOGETHER, MOST_TOKENS * len(self._some))
        is_few = sum([s.stop - s.start for s, _ in self._some]) <= MOST_ENTRIES
        self._arrays = None
        self._rank = max([own.A.shape[0] for _, own in self._some], default=0)
        if is_few and self._some and self._rank <= MOST_RANK:
            self._arrays = _arrays(self._some)

    def add_(self, out: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"]) -> None:
        """The equation at the top of this file, without gradients; all of one dtype."""
        if self._arrays is None or len(x) > self._most or not _suits(out, x):
            for s, own in self._some:
                add_low_rank_(out, x, own.factors, s)
            return
        own = x if x.is_contiguous() else x.contiguous()
        addresses = map(ctypes.addressof, self._arrays)
        sizes = len(self._arrays[0]), self._rank, x.shape[1], out.shape[1]
        job = native.LowRankJob(own.data_ptr(), out.data_ptr(), *addresses, *sizes, _DTYPES.index(x.dtype))
        native.do("low_rank", 0, job, -(-out.shape[1] // _WIDTH), self._size, keep=self)


def _arrays(some: Sequence[tuple[Segment, Packed]]) -> tuple[ctypes.Array[Any], ...]:
    """The arrays of a job."""
    own = [
        (s, one.A.data_ptr(), one.lines.data_ptr(), one.A.shape[0], s.weight * one.scaling)  # once for all its tokens
        for s, one in some
    ]
    entries = [(t, *found) for s, *found in own for t in range(s.start, s.stop)]
    entries.sort(key=lambda entry: entry[0])  # those of a token one after the other, as they were
    tokens, A, B, ranks, scalings = zip(*entries, strict=True)
    numbers, count = ctypes.c_int64, len(entries)
    return *((numbers * count)(*each) for each in (tokens, A, B, ranks)), (ctypes.c_float * count)(*scalings)


def _suits(out: Tensor, x: Tensor) -> bool:
    is_known = native.variant() not in (native.TORCH, "plain") and x.dtype in _DTYPES and x.dtype == out.dtype
    return is_known and x.is_cpu and out.is_contiguous()
