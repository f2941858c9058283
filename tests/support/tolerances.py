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


def assert_close(actual, expected, dtype, terms):
    """`actual` is `expected` up to the rounding of `terms` accumulated products in `dtype`."""
    actual = np.asarray(actual.detach().double() if isinstance(actual, torch.Tensor) else actual, np.float64)
    expected = np.asarray(expected.detach().double() if isinstance(expected, torch.Tensor) else expected, np.float64)
    allowed = SAFETY * np.sqrt(terms) * UNIT_ROUNDOFF[dtype] * (1 + np.abs(expected))
    worst = (np.abs(actual - expected) / allowed).max() if actual.size else 0.0
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    assert worst <= 1, f"{worst:.3g} times the rounding of {terms} terms in {dtype}"
