"""The prototype that benchmarks.w8a8 times: its products are exact where nothing has to be rounded, and near where it has."""

import shutil

import pytest
import torch
from benchmarks import w8a8

from inlay.kernels import native, product

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or not native.supported(), reason="it is compiled here, and takes the library's variants"
)

H = torch.ones(1, 1, dtype=torch.float64)
while len(H) < 64:
    H = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), H)
H = H / 8


def rotated(x):
    """x H by the matrix, in float64."""
    return (x.double().view(len(x), -1, 64) @ H).view(x.shape)


@pytest.mark.parametrize("shape", [(1, 64, 1), (3, 128, 7), (40, 576, 100)], ids=str)
def test_both_products_are_those_of_the_rounded_weight(shape):
    tokens, width, rows = shape
    W, x, g = (torch.randn(*size).bfloat16() for size in ((rows, width), (tokens, width), (tokens, rows)))
    scheme = w8a8.Scheme()
    q, s = scheme.weight(W)
    assert ((q * s[:, None]).double() - rotated(W)).abs().max() <= 0.501 * s.max()
    held = rotated(q * s[:, None])
    (qx, sx), (qg, t) = w8a8.quantized(x), w8a8.quantized(g, s)
    given, back = rotated(qx * sx[:, None]), (qg * t[:, None]).double() / s
    for found, expected in (
        (scheme.linear(x, W, None), given @ held.T),
        (scheme.linear_backward(g, W), back @ held),
    ):
        assert (found.double() - expected).abs().max() <= 2**-7 * expected.abs().max(), "rounded once, to bfloat16"
    assert (given - x.double()).norm() <= 0.03 * x.double().norm()
    assert (back - g.double()).norm() <= 0.03 * g.double().norm()


def test_a_scale_for_each_64_numbers_loses_less_beside_one_that_sticks_out():
    W, x, g = (torch.randn(rows, 256).bfloat16() for rows in (256, 40, 40))
    x[:, 70] *= 100
    g[:, 70] *= 100
    found = []
    for scheme in (w8a8.Scheme(), w8a8.ByBlock()):
        q, s = scheme.weight(W)
        held = rotated(q * s[:, None])
        lost = scheme.linear(x, W, None) - x.double() @ held.T, scheme.linear_backward(g, W) - g.double() @ held
        found.append([one.norm() for one in lost])
    # one of four blocks keeps its error: half, and what y is rounded by
    assert all(block < 0.7 * row for row, block in zip(*found, strict=True)), found


def test_what_three_maps_are_given_is_rounded_once_and_anew_where_it_changed():
    scheme, W, x = w8a8.Scheme(), torch.randn(8, 64).bfloat16(), torch.randn(4, 64).bfloat16()
    first = scheme.linear(x, W, None)
    assert torch.equal(scheme.linear(x, W, None), first)
    x.mul_(2)
    assert torch.equal(scheme.linear(x, W, None), 2 * first)


def test_it_is_taken_where_nothing_is_trained_too():
    x, W = torch.randn(40, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    plain = product.linear(x, W, None)
    try:
        w8a8.take(1)
        taken = product.linear(x, W, None)
    finally:
        w8a8.take(0)
    assert torch.equal(taken, w8a8.Scheme().linear(x, W, None))
    assert not torch.equal(taken, plain)
    assert torch.equal(product.linear(x, W, None), plain)
