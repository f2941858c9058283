"""The benchmark of amplification: what it says of changes whose place in a weight is known."""

import pytest
import torch
from benchmarks import amplification


def test_a_change_along_the_weights_own_directions_finds_their_sizes():
    U, _ = torch.linalg.qr(torch.randn(20, 5))
    V, _ = torch.linalg.qr(torch.randn(12, 5))
    weight = U @ torch.diag(torch.tensor([9.0, 7.0, 5.0, 3.0, 1.0])) @ V.T
    change = U[:, 3:] @ torch.diag(torch.tensor([6.0, 2.0])) @ V[:, 3:].T  # where the weight has 3 and 1
    in_change, in_weight, in_random, size, changed, amplified = amplification.lies(weight, change, 2)
    assert in_change == pytest.approx((9 + 1) ** 0.5, rel=1e-4)
    assert in_weight == pytest.approx((81 + 49) ** 0.5, rel=1e-4)
    assert in_random < in_weight
    assert size == pytest.approx((81 + 49 + 25 + 9 + 1) ** 0.5, rel=1e-4)
    assert changed == pytest.approx(40**0.5, rel=1e-4)
    assert amplified == pytest.approx(2.0, rel=1e-4)
