"""An adapter's products with many tokens by `thin.c`, against float64 and against torch's."""

import math

import pytest
import torch

from inlay.core.routed import Factors, Segment, routed
from inlay.kernels import native, thin

pytestmark = pytest.mark.skipif(not native.multiplies_bfloat16(), reason="the processor does not multiply bfloat16")

SHAPES = [
    (16, 64, 32, 16),
    (37, 96, 64, 8),  # fewer ranks than a register has, an odd number of tokens
    (1020, 576, 1536, 16),
    (17, 32, 32, 3),
    (100, 576, 192, 17),  # more than one register has
    (67, 2048, 544, 32),  # rows that are whole pages apart, and more numbers than are taken at a time
    (130, 96, 1024, 1),
]
"""(tokens, in, out, r)"""


def problem(tokens, width, outputs, r):
    def draw(*shape, dtype=torch.float32, size=1.0):
        """Numbers with none behind them that could be taken for one."""
        numbers = size * torch.randn(math.prod(shape), generator=generator)
        return torch.cat([numbers, torch.full((4096,), torch.nan)]).to(dtype)[: len(numbers)].view(shape)

    generator = torch.Generator().manual_seed(0)
    tensors = [draw(tokens, size, dtype=torch.bfloat16) for size in (width, outputs, outputs, width)]
    return *tensors, Factors(draw(r, width, size=width**-0.5), draw(outputs, r), 0.7)


def near(found, expected, roundings=1.01):
    """As far apart as so many numbers of the largest size may be from what they were before they were rounded to bfloat16."""
    return (found.double() - expected).abs().max() <= roundings * 2**-8 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_added_and_all_gradients_are_those_of_the_equations(shape):
    x, g, out, dx, factors = problem(*shape)
    A, B = factors.A.bfloat16().double(), factors.B.bfloat16().double()
    assert thin.takes(x, out, factors)
    y, into = out.clone(), dx.clone()
    words = thin.add_(y, x, factors, factors.scaling)
    kept = words.view(torch.bfloat16).unflatten(1, (-1, 2)).transpose(1, 2).flatten(0, 1).double()
    h = kept[: shape[0], : shape[3]]
    assert kept.count_nonzero() == h.count_nonzero(), "noughts beyond"
    assert near(h, x.double() @ A.T), "rounded once"
    assert near(y, out.double() + factors.scaling * h @ B.T)
    dA, dB = thin.gradients(g, x, words, factors, factors.scaling, into, wanted=(True, True))
    e = factors.scaling * (g.double() @ B)
    assert near(into, dx.double() + e @ A, 1.5)
    assert near(dA, e.T @ x.double())
    assert torch.allclose(dB.double(), factors.scaling * g.double().T @ h, rtol=1e-4, atol=1e-3), "of h as it is kept"


def test_only_what_is_wanted_is_made():
    x, g, out, dx, factors = problem(40, 64, 96, 16)
    words = thin.add_(out, x, factors, 0.7)
    both = thin.gradients(g, x, words, factors, 0.7, dx.clone(), wanted=(True, True))
    for wanted in ((True, False), (False, True), (False, False)):
        found = thin.gradients(g, x, words, factors, 0.7, None, wanted=wanted)
        for one, other, want in zip(found, both, wanted, strict=True):
            assert torch.equal(one, other) if want else one is None


def test_threads_change_no_bit():
    x, g, out, dx, factors = problem(1020, 576, 192, 16)
    made = []
    for threads in (1, 2, 5):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            y, into = out.clone(), dx.clone()
            words = thin.add_(y, x, factors, 0.7)
            made.append((words, y, into, *thin.gradients(g, x, words, factors, 0.7, into, wanted=(True, True))))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(one, other) for some in made[1:] for one, other in zip(made[0], some, strict=True))


def test_a_token_that_is_no_number_spoils_no_other():
    x, _, out, _, factors = problem(33, 64, 64, 16)
    expected, y = out.clone(), out.clone()
    thin.add_(expected, x, factors, 0.7)
    for token in (0, 32):
        x[token] = torch.nan
    thin.add_(y, x, factors, 0.7)
    assert torch.equal(y[1:32], expected[1:32])
    assert y[[0, 32]].isnan().all()


def test_it_takes_what_it_knows_alone():
    x, _, out, _, factors = problem(40, 64, 96, 16)
    assert thin.takes(x, out, factors)
    A, B = factors.A, factors.B
    for refused in (
        (x.float(), out.float(), factors),
        (x, out.float(), factors),
        (x, out, Factors(A.bfloat16(), B, 0.7)),
        (x[: thin.FEWEST_TOKENS - 1], out[: thin.FEWEST_TOKENS - 1], factors),
        (x[:, :48], out, Factors(A[:, :48], B, 0.7)),
        (x[:, :32], out, Factors(A[:, :32].contiguous(), B, 0.7)),
        (x, out[:, :80].contiguous(), Factors(A, B[:80], 0.7)),
        (x, out, Factors(A.repeat(3, 1), B.repeat(1, 3), 0.7)),
    ):
        assert not thin.takes(*refused)
    with native.only("avx2"):
        assert not thin.takes(x, out, factors)


@pytest.mark.parametrize("has_dropped", [False, True])
def test_a_batch_of_adapters_is_what_torch_makes_of_it(has_dropped):
    tokens = 100
    x, (g, *_), *_ = problem(tokens, 64, 96, 16)
    g = g.expand(tokens, -1)  # not contiguous
    _, _, (b, *_), W, _ = problem(96, 96, 96, 1)
    W = W[:, :64].contiguous()
    segments = (
        Segment(0, 40, 0),
        Segment(40, 45, 1),
        Segment(50, 90, 1),
        Segment(60, tokens, 0, 0.3),
        Segment(95, 99, 0),
    )
    made = []
    for way in (None, thin):
        parts = [problem(tokens, 64, 96, r)[-1] for r in (16, 5)]
        factors = [Factors(f.A.requires_grad_(), f.B.requires_grad_(), f.scaling) for f in parts]
        inputs = [x.clone().requires_grad_() for _ in range(1 + has_dropped)]
        dropped = inputs[1] if has_dropped else None
        y = routed(inputs[0], W, b, factors, segments, dropped=dropped, thin=way)
        y.backward(g)
        made.append([y.detach(), *(t.grad for t in (*inputs, *(t for f in factors for t in (f.A, f.B))))])
    assert torch.equal(made[0][0][45:50], made[1][0][45:50]), "tokens of nobody"
    assert not all(map(torch.equal, *made)), "it is another way"
    for found, expected in zip(made[1], made[0], strict=True):
        assert found.dtype == expected.dtype
        assert near(found, expected.double(), 3)
