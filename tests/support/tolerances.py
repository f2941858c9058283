"""How far a result may be from the oracle: the only numbers of that kind in the tests.

A sum of k products of magnitude m, accumulated in a format with unit roundoff u, is off by at most about k u m (1 + k u); the
tests' inputs are near 1, and the typical error grows with sqrt(k). `close_to` allows SAFETY sqrt(k) u (1 + |value|).

A result that passes n layers meets that rounding once per layer, with a gain near 1: n is counted into k by the caller.
"""

import numpy as np
import torch

UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SAFETY = 8

LOGITS = 1e-5
"""How far logits of two layers in float32 may be from those of `transformers`, as part of the largest: the same products and
sums in another order, some 2 x 7 x 48 of them, or sqrt(672) x 2^-24 = 1.5e-6, with room for what norms and softmax amplify."""

TOGETHER = 1e-5
"""How far a few steps of a run with others may take it from the run alone, as part of a loss or of a tensor's norm: the same
products in passes of other sizes, whose sums torch divides otherwise."""

OTHER_PROCESSOR = {
    torch.float32: {"losses": 2e-4, "logits": 2e-3, "adapter": 2e-2, "merged": 2e-2},
    torch.bfloat16: {"losses": 2e-2, "logits": 5e-2, "adapter": 3e-1, "merged": 3e-1},
}
"""How far twenty steps of training may take two processors apart, as part of a loss or of a tensor's norm. There is no bound: Adam
gives an entry whose gradient is nothing but rounding, as that of a key's bias, as large a step as any other. So these are measured:
one processor with AVX-512 that is told to do as one with AVX2, or with SSE 4, is off from itself by at most 3e-5, 4e-4, 6e-3 and
5e-3 in float32; and by 5e-3, 2e-2, 1.1e-1 and 1.1e-1 in bfloat16, where what a merge changes is a few units in the last place."""


def assert_close(actual, expected, dtype, terms):
    """`actual` is `expected` up to the rounding of `terms` accumulated products in `dtype`."""
    actual = np.asarray(actual.detach().double() if isinstance(actual, torch.Tensor) else actual, np.float64)
    expected = np.asarray(expected.detach().double() if isinstance(expected, torch.Tensor) else expected, np.float64)
    allowed = SAFETY * np.sqrt(terms) * UNIT_ROUNDOFF[dtype] * (1 + np.abs(expected))
    worst = (np.abs(actual - expected) / allowed).max() if actual.size else 0.0
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert worst <= 1, f"{worst:.3g} times the rounding of {terms} terms in {dtype}"
