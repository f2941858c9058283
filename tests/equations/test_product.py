"""The product of tokens with a weight: what it is, and that of few it depends on nothing beside it, by tiles of any."""

import pytest
import torch

from inlay.core import product as in_torch
from inlay.kernels import native, product
from inlay.modules.frozen import FrozenLinear
from inlay.quant.int8 import Int8

SHAPES = [(1, 1), (5, 3), (17, 40), (64, 64), (100, 96), (131, 257), (256, 160)]
"""(out, in): below and beside what a unit of work and a register hold."""

DTYPES = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]


def _ways():
    return [name for name in native.supported() if name != "plain"]


def _given(shape, tokens, dtypes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    out, width = shape
    x = torch.randn(tokens, width, generator=generator)
    return x.to(dtypes[0]), torch.randn(out, width, generator=generator).to(dtypes[1]), torch.randn(out).to(dtypes[0])


@pytest.mark.parametrize("way", _ways())
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_product(way, dtypes, shape):
    for tokens in (1, 2, 5, 16, 17, 70):
        x, W, b = _given(shape, tokens, dtypes)
        with native.only(way):
            y, plain = product.linear(x, W, b), product.linear(x, W, None)
        exact = x.double() @ W.double().T
        size = x.double().norm(dim=1, keepdim=True) * W.double().norm(dim=1)
        for found, expected in ((plain, exact), (y, exact + b.double())):
            assert found.dtype == x.dtype
            rounding = torch.finfo(x.dtype).eps * (expected.abs() + b.double().abs())
            assert ((found.double() - expected).abs() <= rounding + 2e-6 * size).all()


@pytest.mark.parametrize("way", _ways())
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_token_s_output_does_not_depend_on_those_beside_it(way, dtypes, shape):
    x, W, _ = _given(shape, product.MOST_TOKENS, dtypes)
    with native.only(way):
        if product._function(x.dtype, W.dtype, W.shape, way) is None:
            assert dtypes[0] == torch.bfloat16, "other numbers have a function in each way"
            return
        together = product.linear(x, W, None)
        for first, last in ((0, 1), (3, 5), (7, 14), (15, 16)):
            assert torch.equal(product.linear(x[first:last], W, None), together[first:last])


@pytest.mark.parametrize("way", native.supported())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_whole_numbers_with_a_scale_for_each_row(way, dtype, shape):
    x, W, _ = _given(shape, product.MOST_TOKENS, (dtype, torch.float32))
    packed = Int8().quantize(W)
    exact = x.double() @ (packed[""].double() * (packed["SCB"].double() / 127)[:, None]).T
    size = x.double().norm(dim=1, keepdim=True) * packed["SCB"].double() * shape[1] ** 0.5
    with native.only(way):
        y = Int8().open(packed).product(x)
        assert y is not None
        assert y.dtype == dtype
        assert ((y.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + 2e-6 * size).all()
        for first, last in ((0, 1), (3, 5), (7, 14), (15, 16)):
            assert torch.equal(product.int8(x[first:last], packed[""], packed["SCB"]), y[first:last])


@pytest.mark.skipif(not native.has_tiles(), reason="this processor has no tiles")
@pytest.mark.parametrize("shape", [(16, 32), (80, 64), (100, 96), (65, 1056), (200, 2080)], ids=str)
def test_many_tokens_have_the_bits_of_few_by_tiles(shape):
    for tokens in (17, 31, 32, 100, 513, 540):
        x, W, b = _given(shape, tokens, DTYPES[2])
        with native.noting() as done:
            y = product.linear(x, W, b)
        assert [(one.kernel, one.function) for one in done] == [("product", product._MANY)]
        few = [product.linear(part, W, b) for part in x.split(product.MOST_TOKENS)]
        assert torch.equal(y, torch.cat(few))


@pytest.mark.parametrize("widens", [False, True])
def test_many_tokens_are_multiplied_in_float32_where_that_is_faster(monkeypatch, widens):
    monkeypatch.setattr(native, "widens_bfloat16", lambda: widens)
    monkeypatch.setattr(in_torch, "native_bfloat16", lambda: True)
    for tokens, wide in ((product.MOST_TOKENS, False), (product.MOST_TOKENS + 1, widens)):
        x = torch.zeros(1, tokens, 8, dtype=torch.bfloat16)
        assert product.product_dtype(x) == (torch.float32 if wide else torch.bfloat16)
        assert product.product_dtype(x.float()) == torch.float32
    linear = FrozenLinear(torch.randn(64, 96).bfloat16(), None, False)
    x = torch.randn(40, 96).bfloat16()
    exact = x.double() @ linear.weight.double().T
    y = linear(x)
    assert y.dtype == torch.bfloat16
    if widens:  # and rounded once
        assert ((y.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_what_it_does_not_take_torch_multiplies():
    x, W, b = _given((9, 8), 3, DTYPES[0])
    for given in (x.double(), W.double(), None), (x, W.T.contiguous().T, b), (x[:0], W, b), (x.bfloat16(), W, None):
        assert torch.allclose(
            product.linear(*given).double(),
            in_torch.linear(*given).double(),
            atol=0 if given[0].dtype != x.dtype else 1e-5,
        )


def test_what_is_no_number_comes_out_as_none():
    for dtypes in DTYPES:
        x, W, _ = _given((70, 96), 4, dtypes)
        x[1, 90], W[66, 5] = torch.nan, torch.inf
        y = product.linear(x, W, None)
        assert y[1].isnan().all()
        assert not y[0, :66].isnan().any()
        assert not y[0, 66].isfinite()


def test_what_lies_apart_is_put_together():
    x, W, b = _given((40, 64), 6, DTYPES[0])
    assert torch.equal(product.linear(x.T.contiguous().T, W, b), product.linear(x, W, b))
