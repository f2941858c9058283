"""The routed low-rank product for few tokens and many adapters: one product over the factors of all of them.

    out = x W^T + b + scaling (M * (x A^T)) B^T,    A = the A_k one below the other,    B = the B_k side by side

M keeps of each token's x A^T what its own adapter makes. That multiplies each token with every adapter's A, which costs less
than a product for each adapter as long as tokens are few: decoding, where a step has one token per row. Without gradients.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core.product import Rows, linear
from inlay.core.routed import Factors, Segment

MAX_TOKENS = 32
"""With more tokens a product for each adapter is the cheaper way."""


def can_stack(factors: Sequence[Factors | None]) -> bool:
    """These adapters can be one product: their scalings are one number, which a narrow dtype would round among the factors."""
    return len({f.scaling for f in factors if f is not None}) == 1


class Stacks:
    """The stacked factors of one map, kept for the set of adapters that came last: a batch that decodes has one for long."""

    def __init__(self) -> None:
        self._kept = _Stack((), torch.float32)

    def routed(
        self,
        x: Float[Tensor, "tokens in"],
        weight: Float[Tensor, "out in"] | Rows,
        bias: Float[Tensor, " out"] | None,
        factors: Sequence[Factors | None],
        segments: Sequence[Segment],
        dtype: torch.dtype,
    ) -> Float[Tensor, "tokens out"]:
        """The equation at the top of this file, for factors that `can_stack`; see `inlay.core.routed.routed`.

        No two segments overlap, and those of an adapter without factors are left alone.
        """
        stack = self._kept
        if not stack.is_of(factors, dtype):
            stack = self._kept = _Stack(factors, dtype)
        wide = x.to(dtype)
        out = linear(wide, weight, bias)
        out.addmm_((wide @ stack.A).mul_(stack.mask(segments, len(x))), stack.B, alpha=stack.scaling)
        return out.to(x.dtype)


class _Stack:
    """The factors of some adapters as one: A (in, all r), B (all r, out)."""

    def __init__(self, factors: Sequence[Factors | None], dtype: torch.dtype):
        self.factors, self.dtype = tuple(factors), dtype
        known = [f for f in factors if f is not None]
        if known:
            self.A = torch.cat([f.A for f in known]).to(dtype).T
            self.B = torch.cat([f.B for f in known], 1).to(dtype).T
            self.scaling = known[0].scaling
        self._masks: dict[Sequence[Segment], Tensor] = {}

    def is_of(self, factors: Sequence[Factors | None], dtype: torch.dtype) -> bool:
        same = len(factors) == len(self.factors) and dtype == self.dtype
        return same and all(new is old for new, old in zip(factors, self.factors, strict=True))

    def mask(self, segments: Sequence[Segment], num_tokens: int) -> Float[Tensor, "tokens r"]:
        """1 where a token's own adapter has its rank, 0 elsewhere; kept for the last segments."""
        if segments not in self._masks:
            made = torch.zeros(num_tokens, self.B.shape[0], dtype=self.dtype, device=self.B.device)
            ranks = [0 if f is None else len(f.A) for f in self.factors]
            for s in segments:
                start = sum(ranks[: s.adapter])
                made[s.start : s.stop, start : start + ranks[s.adapter]] = 1
            self._masks = {segments: made}
        return self._masks[segments]
