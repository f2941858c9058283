"""The routed low-rank product for few tokens and many adapters: one product over the factors of all of them.

    out = x W^T + b + scaling (M * (x A^T)) B^T,    A = the A_k one below the other,    B = the B_k side by side

M keeps of each token's x A^T what its own adapter makes. That multiplies each token with every adapter's A, which costs less
than a product for each adapter as long as tokens are few: decoding, where a step has one token per row. Without gradients.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core.product import Rows, linear
from inlay.core.routed import Factors, Segment

MAX_TOKENS = 32
"""With more tokens a product for each adapter is the cheaper way."""


class Stacks:
    """The stacked factors of one map, kept for the set of adapters that came last: a batch that decodes has one for long."""

    def __init__(self) -> None:
        self._kept = _Stack([], torch.float32)

    def routed(
        self,
        x: Float[Tensor, "tokens in"],
        weight: Float[Tensor, "out in"] | Rows,
        bias: Float[Tensor, " out"] | None,
        factors: list[Factors | None],
        segments: tuple[Segment, ...],
        *,
        dtype: torch.dtype,
    ) -> Float[Tensor, "tokens out"] | None:
        """The equation at the top of this file; see `inlay.core.routed.routed`. No two segments overlap.

        None where the scalings are not one number: a narrow dtype would round them among the factors.
        """
        stack = self._kept
        # factors are equal where they are one object
        if factors != stack.factors or dtype != stack.dtype or stack.is_stale():
            stack = self._kept = _Stack(factors, dtype)
        if stack.scaling is None:
            return None
        wide = x if x.dtype == dtype else x.to(dtype)
        out = linear(wide, weight, bias)
        out.addmm_((wide @ stack.A).mul_(stack.mask(segments, len(x))), stack.B, alpha=stack.scaling)
        return out if x.dtype == dtype else out.to(x.dtype)


class _Stack:
    """The factors of some adapters as one: A (in, all r), B (all r, out)."""

    def __init__(self, factors: list[Factors | None], dtype: torch.dtype):
        self.factors, self.dtype = list(factors), dtype
        known = [f for f in factors if f is not None]
        self.scaling = known[0].scaling if len({f.scaling for f in known}) == 1 else None
        if self.scaling is not None:
            self.A = torch.cat([f.A for f in known]).to(dtype).T
            self.B = torch.cat([f.B for f in known], 1).to(dtype).T
        self._versions = _versions(known)
        self._masked: tuple[tuple[Segment, ...], Tensor] = ((), torch.empty(0))

    def is_stale(self) -> bool:
        """The factors were changed in place since they were stacked."""
        return self._versions != _versions(f for f in self.factors if f is not None)

    def mask(self, segments: tuple[Segment, ...], num_tokens: int) -> Float[Tensor, "tokens r"]:
        """1 where a token's own adapter has its rank, 0 elsewhere; kept for the last segments, which a batch keeps too."""
        known = self._masked  # another thread may put its own there meanwhile
        if segments is not known[0] or num_tokens != len(known[1]):
            made = torch.zeros(num_tokens, self.B.shape[0], dtype=self.dtype, device=self.B.device)
            ranks = [0 if f is None else len(f.A) for f in self.factors]
            for s in segments:
                start = sum(ranks[: s.adapter])
                made[s.start : s.stop, start : start + ranks[s.adapter]] = 1
            known = self._masked = (segments, made)
        return known[1]


def _versions(factors: Iterable[Factors]) -> list[int]:
    """How often each factor was changed in place; what inference mode made does not count that."""
    return [0 if M.is_inference() else M._version for f in factors for M in (f.A, f.B)]
