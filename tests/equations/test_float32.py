"""Large products in float32 by either library: what they are, which one is taken, and that a run keeps its own."""

from pathlib import Path

import pytest
import torch

from inlay.core import float32, product
from inlay.core.cross_entropy import head_cross_entropy_sum
from inlay.core.routed import Factors, Segment, routed

TOKENS, WIDTH, OUT = 211, 193, 257
"""A product of more than `FEWEST` multiplications, none of whose sizes a register divides."""


@pytest.fixture(params=[float32.BLAS, float32.ONEDNN])
def library(request):
    with float32.only(request.param):
        yield request.param


@pytest.fixture
def entered(monkeypatch):
    """The shapes that oneDNN is asked for."""
    shapes, inner = [], float32._onednn
    monkeypatch.setattr(float32, "_onednn", lambda x, w: shapes.append((*x.shape, w.shape[1])) or inner(x, w))
    return shapes


def _drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _assert_close(found, x, w, bias=0.0):
    x, w = x.double(), w.double()
    size = x.norm(dim=1, keepdim=True) * w.norm(dim=0)
    assert ((found.double() - (x @ w + bias)).abs() <= 2e-6 * size + 1e-6).all()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_it_is_the_product_forward_and_backward(library, entered, stored, transposed, monkeypatch):
    monkeypatch.setattr(product, "TILE_BYTES", 4 * WIDTH * 220)
    x, bias, g = _drawn(TOKENS, WIDTH), _drawn(OUT, seed=1), _drawn(TOKENS, OUT, seed=2)
    W = _drawn(WIDTH, OUT, seed=3, dtype=stored).T if transposed else _drawn(OUT, WIDTH, seed=3, dtype=stored)
    y, back = product.linear(x, W, bias), product.linear_backward(g, W)
    assert bool(entered) == (library == float32.ONEDNN)
    _assert_close(y, x, W.T, bias)
    _assert_close(back, g, W)
    assert torch.equal(x, _drawn(TOKENS, WIDTH))


def test_an_adapted_map_and_a_head_have_the_same_gradients(library, entered):
    x, W = _drawn(TOKENS, WIDTH).requires_grad_(), _drawn(OUT, WIDTH, seed=1)
    A, B = _drawn(5, WIDTH, seed=2).requires_grad_(), _drawn(OUT, 5, seed=3).requires_grad_()
    labels = torch.arange(TOKENS) % OUT
    made = routed(x, W, None, [Factors(A, B, 0.7)], [Segment(3, TOKENS, 0)])
    loss = (made * _drawn(TOKENS, OUT, seed=4)).sum() + head_cross_entropy_sum(x, W, None, labels, torch.float32)
    loss.backward()
    assert bool(entered) == (library == float32.ONEDNN)
    wide = [t.detach().double().requires_grad_() for t in (x, A, B)]
    delta = torch.cat([wide[0][:3] * 0, wide[0][3:]]) @ wide[1].T @ wide[2].T * 0.7
    said = wide[0] @ W.double().T
    exact = ((said + delta) * _drawn(TOKENS, OUT, seed=4)).sum()
    exact += torch.nn.functional.cross_entropy(said, labels, reduction="sum")
    exact.backward()
    for given, twin in zip((x, A, B), wide, strict=True):
        assert (given.grad - twin.grad).norm() <= 1e-5 * twin.grad.norm()


def test_small_and_other_products_are_torch_s_own(entered):
    with float32.only(float32.ONEDNN):
        few = _drawn(4, 9), _drawn(9, 5)
        assert torch.equal(float32.matmul(*few), few[0] @ few[1])
        for dtype in (torch.float64, torch.bfloat16):
            x, w = _drawn(TOKENS, WIDTH, dtype=dtype), _drawn(WIDTH, OUT, dtype=dtype)
            assert torch.equal(float32.matmul(x, w), x @ w)
    assert entered == []


@pytest.mark.parametrize(
    ("maker", "seconds", "expected"),
    [
        ("AuthenticAMD", (2, 1), float32.ONEDNN),
        ("AuthenticAMD", (5, 6), float32.ONEDNN),
        ("AuthenticAMD", (2, 3), float32.BLAS),
        ("GenuineIntel", (6, 5), float32.BLAS),
        ("GenuineIntel", (3, 2), float32.ONEDNN),
        ("", (6, 5), float32.BLAS),
    ],
)
def test_the_usual_one_is_taken_unless_the_other_is_clearly_faster(monkeypatch, maker, seconds, expected):
    clock = iter([t for _ in range(float32.ROUNDS) for way in seconds for t in (0.0, float(way))])
    monkeypatch.setattr(float32.time, "thread_time", lambda: next(clock))
    monkeypatch.setattr(float32, "_maker", lambda: maker)
    before = torch.get_num_threads()
    assert float32._faster() == expected
    assert torch.get_num_threads() == before


def test_a_processor_says_who_made_it():
    assert float32._maker() or not Path("/proc/cpuinfo").exists()


@pytest.mark.parametrize("error", [AttributeError, RuntimeError])
def test_without_onednn_there_is_one_library(monkeypatch, error):
    def absent(*given):
        raise error

    monkeypatch.setattr(float32, "_onednn", absent)
    assert float32._faster() == float32.BLAS
    with float32.only(float32.BLAS):
        float32.use_(float32.ONEDNN)
        assert float32.chosen() == float32.BLAS


def test_it_is_chosen_once(monkeypatch):
    asked = []
    monkeypatch.setattr(float32, "_faster", lambda: asked.append(1) or float32.BLAS)
    monkeypatch.setattr(float32, "_chosen", None)
    assert [float32.chosen(), float32.chosen()] == [float32.BLAS] * 2
    assert asked == [1]


@pytest.mark.skipif(not float32._works(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_what_one_dnn_makes_lies_where_it_is_asked_for(monkeypatch, stored):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(40, 64, generator=generator), torch.randn(5000, 64, generator=generator).to(stored)
    out, made = torch.empty(40, 5000), []
    monkeypatch.setattr(product, "RESULT_BYTES", 1000 * 40 * 4)
    monkeypatch.setattr(float32, "FEWEST", 1)
    whole = float32._onednn
    monkeypatch.setattr(float32, "_onednn", lambda x, w: made.append(whole(x, w)) or made[-1])
    with float32.only(float32.ONEDNN):
        y = product.linear(x, weight, None, out=out)
    assert y.data_ptr() == out.data_ptr()
    assert [some.shape for some in made] == [(40, 1000)] * 5, "a few at a time, so that no large block comes and goes"
    torch.testing.assert_close(out, x @ weight.float().T)
