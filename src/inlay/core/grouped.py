"""The routed low-rank product for few tokens and many adapters: one product over the factors of all of them.

    out += scaling (M * (x A^T)) B^T,    A = the A_k one below the other,    B = the B_k side by side

M keeps of each token's x A^T what its own adapter makes. That multiplies each token with every adapter's A, which costs less
than a product for each adapter as long as tokens are few: decoding, where a step has one token per row. Without gradients.

Where the scalings differ, what a B_k has beyond the first one's is multiplied into it before it is cast.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core.routed import Factors, Segment

MAX_TOKENS = 32
"""With more tokens a product for each adapter is the cheaper way."""


class Stack:
    """The factors of some adapters as one: A (in, all r), B (all r, out).

    **Arguments:**

    - `factors`: one entry per adapter, None for one that leaves the map alone; one of them at least is not None.
    - `dtype`: what the product runs in.
    """

    def __init__(self, factors: list[Factors | None], dtype: torch.dtype):
        known = [f for f in factors if f is not None]
        self.dtype, self.scaling = dtype, known[0].scaling or 1.0
        self.A = torch.cat([f.A for f in known]).to(dtype).T
        self.B = torch.cat([_scaled(f, self.scaling, dtype) for f in known], 1).to(dtype).T
        self._ranks = [0 if f is None else len(f.A) for f in factors]
        self._masked: tuple[tuple[Segment, ...], Tensor] = ((), torch.empty(0))

    def add_(
        self, out: Float[Tensor, "tokens out"], x: Float[Tensor, "tokens in"], segments: tuple[Segment, ...]
    ) -> None:
        """out += scaling (M * (x A^T)) B^T; all of one dtype, and no two segments overlap."""
        out.addmm_((x @ self.A).mul_(self._mask(segments, len(x))), self.B, alpha=self.scaling)

    def _mask(self, segments: tuple[Segment, ...], num_tokens: int) -> Float[Tensor, "tokens r"]:
        """1 where a token's own adapter has its rank, 0 elsewhere; kept for the last segments, which a batch keeps too."""
        known = self._masked  # another thread may put its own there meanwhile
        if segments is not known[0] or num_tokens != len(known[1]):
            made = torch.zeros(num_tokens, self.B.shape[0], dtype=self.dtype, device=self.B.device)
            for s in segments:
                start = sum(self._ranks[: s.adapter])
                made[s.start : s.stop, start : start + self._ranks[s.adapter]] = 1
            known = self._masked = (segments, made)
        return known[1]


def _scaled(factors: Factors, scaling: float, dtype: torch.dtype) -> Tensor:
    """B, so that its product with `scaling` is that with the factors' own; of `dtype` where that is a wide one."""
    if factors.scaling == scaling:
        return factors.B
    wide = torch.promote_types(torch.promote_types(factors.B.dtype, torch.float32), dtype)
    return factors.B.to(wide) * (factors.scaling / scaling)
