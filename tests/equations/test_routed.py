"""The routed low-rank product against loops in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inlay.core import product
from inlay.core.cross_entropy import IGNORE, cross_entropy_sum
from inlay.core.lowrank import kaiming_uniform, merged
from inlay.core.routed import Factors, Segment, routed, row_segments
from tests.support import oracle
from tests.support.tolerances import assert_close

ROWS = {
    "identical": ["a", "a", "a", "a", "a"],
    "distinct": ["a", "b", "c", "d", "e"],
    "skewed": ["a", "a", "a", "a", "b"],
    "scattered": ["a", "b", "a", None, "b"],
    "one": ["c"],
    "none": [None, None],
}
SHAPE = dict(out_features=11, in_features=7, num_tokens=3)
RANKS = dict(a=2, b=5, c=3, d=4, e=1)
SCALINGS = dict(a=0.7, b=1.3, c=2.9, d=0.11, e=5.3)


def _problem(rows, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    W, b = draw(SHAPE["out_features"], SHAPE["in_features"]), draw(SHAPE["out_features"])
    x = draw(len(rows), SHAPE["num_tokens"], SHAPE["in_features"])
    names = [name for name in RANKS if name in rows]
    adapters = {
        name: (draw(RANKS[name], SHAPE["in_features"]), draw(SHAPE["out_features"], RANKS[name]), SCALINGS[name])
        for name in names
    }
    return W, b, x, adapters, names


def _run(W, b, x, adapters, names, rows):
    flat = x.reshape(-1, x.shape[-1])
    factors = [Factors(*adapters[name]) for name in names]
    segments = row_segments([None if row is None else names.index(row) for row in rows], x.shape[1])
    return routed(flat, W, b, factors, segments).view(*x.shape[:2], -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_every_row_gets_its_own_adapter(rows, dtype):
    W, b, x, adapters, names = _problem(rows, dtype)
    expected = oracle.lora_output(
        W.double(), b.double(), x.double(), {n: (A.double(), B.double(), s) for n, (A, B, s) in adapters.items()}, rows
    )
    # up to three roundings of a sum over `in`, scaled by at most |scaling B| summed over r
    gain = max([1, *(s * float(B.double().abs().sum(1).max()) * 3 for _, B, s in adapters.values())])
    assert_close(_run(W, b, x, adapters, names, rows), expected, dtype, terms=SHAPE["in_features"] * gain**2)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_gradients_are_those_of_the_equation(rows):
    W, b, x, adapters, names = _problem(rows, torch.float64)
    leaves = {n: (A.requires_grad_(), B.requires_grad_(), s) for n, (A, B, s) in adapters.items()}
    x.requires_grad_()
    out = _run(W, b, x, leaves, names, rows)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (out * g).sum().backward()
    flat_x, flat_g = x.detach().reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    grad_x = flat_g @ W
    for name in names:
        tokens = [i * x.shape[1] + t for i, row in enumerate(rows) if row == name for t in range(x.shape[1])]
        A, B, scaling = leaves[name]
        grad_A, grad_B, from_adapter = oracle.lora_gradients(flat_x, flat_g, A.detach(), B.detach(), scaling, tokens)
        assert_close(A.grad, grad_A, torch.float64, terms=400)
        assert_close(B.grad, grad_B, torch.float64, terms=400)
        grad_x = grad_x + torch.tensor(from_adapter)
    assert_close(x.grad.reshape(grad_x.shape), grad_x, torch.float64, terms=400)


def test_gradcheck_over_mixed_segments_and_ranks():
    generator = torch.Generator().manual_seed(2)
    shapes = [(9, 4), (2, 4), (6, 2), (3, 4), (6, 3)]
    W, b = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((6, 4), (6,)))
    x, *pairs = (torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes)
    seen = torch.randn(9, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    segments = [Segment(0, 2, 0), Segment(3, 5, 1), Segment(5, 9, 0, 0.7), Segment(4, 8, 1, -1.5)]

    def call(x, seen, A0, B0, A1, B1):
        return routed(x, W, b, [Factors(A0, B0, 1.7), Factors(A1, B1, 0.3)], segments, dropped=seen)

    assert torch.autograd.gradcheck(lambda x, *pairs: call(x, None, *pairs), (x, *pairs))
    assert torch.autograd.gradcheck(call, (x, seen, *pairs))


def test_a_row_of_several_adapters_gets_the_sum_of_what_they_add_each_times_its_weight():
    W, b, x, adapters, names = _problem(["a", "b", "c"], torch.float64)
    flat, factors = x.reshape(-1, x.shape[-1]), [Factors(*adapters[name]) for name in names]
    plain = flat @ W.T + b
    added = [routed(flat, W, b, factors, row_segments([k] * 3, 3)) - plain for k in range(3)]
    rows = [((0, 0.5), (2, -2.0)), 1, ((1, 3.0), (0, 1.0))]
    out = routed(flat, W, b, factors, row_segments(rows, 3))
    expected = [0.5 * added[0] - 2 * added[2], added[1], 3 * added[1] + added[0]]
    parts = [plain[3 * k : 3 * k + 3] + expected[k][3 * k : 3 * k + 3] for k in range(3)]
    assert_close(out, torch.cat(parts), torch.float64, terms=1000)


@given(
    rows=st.lists(st.sampled_from([None, 0, 1, 2]), min_size=1, max_size=9),
    num_tokens=st.integers(1, 5),
)
def test_segments_cover_each_named_token_once(rows, num_tokens):
    segments = row_segments(rows, num_tokens)
    owner = [None] * (len(rows) * num_tokens)
    for s in segments:
        assert s.start < s.stop
        for t in range(s.start, s.stop):
            assert owner[t] is None
            owner[t] = s.adapter
    assert owner == [row for row in rows for _ in range(num_tokens)]
    assert all(a.adapter != b.adapter for a, b in itertools.pairwise(segments) if a.stop == b.start)


def test_a_row_without_an_adapter_keeps_the_bits_of_the_base():
    W, b, x, adapters, names = _problem(["a", None, "b"], torch.float32)
    out = _run(W, b, x, adapters, names, ["a", None, "b"])
    plain = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), W, b).view_as(out)
    assert torch.equal(out[1], plain[1])
    assert not torch.equal(out[0], plain[0])


def test_masters_keep_their_dtype_and_receive_gradients_in_it():
    W, b, x, adapters, names = _problem(["a", "b"], torch.bfloat16)
    leaves = {n: (A.float().requires_grad_(), B.float().requires_grad_(), s) for n, (A, B, s) in adapters.items()}
    out = _run(W, b, x, leaves, names, ["a", "b"])
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(t.grad.dtype == torch.float32 for A, B, _ in leaves.values() for t in (A, B))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_narrow_weight_is_widened_tile_by_tile_to_the_same_numbers(monkeypatch, transposed):
    monkeypatch.setattr(product, "TILE_BYTES", 4 * 7 * 3)  # three of the eleven rows
    W, b, x, adapters, names = _problem(["a", None, "b"], torch.float32)
    narrow = W.T.bfloat16().contiguous().T if transposed else W.bfloat16()
    flat = x.reshape(-1, x.shape[-1]).requires_grad_()
    results = []
    for weight in (narrow, narrow.float()):
        factors = [Factors(*adapters[name]) for name in names]
        out = routed(flat, weight, b, factors, row_segments([0, None, 1], x.shape[1]))
        results += [out.detach(), torch.autograd.grad(out.square().sum(), flat)[0]]
    for one, other in zip(results[:2], results[2:], strict=True):
        assert_close(one, other, torch.float32, terms=11 * 40)


def test_many_tiles_are_no_less_exact_than_one_product(monkeypatch):
    """g W in bfloat16 from 64 tiles of rows: each is rounded once, and so is their sum, which makes the error the root of two
    times as large; a sum that is rounded with every tile has six times the error."""
    monkeypatch.setattr(product, "TILE_BYTES", 2 * 16 * 2)  # two rows
    generator = torch.Generator().manual_seed(0)
    g, W = (torch.randn(32, 128, generator=generator).bfloat16(), torch.randn(128, 16, generator=generator).bfloat16())
    exact = g.double() @ W.double()
    tiled, whole = product.linear_backward(g, W.float()), product.linear_backward(g, W)
    assert (tiled.double() - exact).norm() <= 1.6 * (whole.double() - exact).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_a_wider_dtype_are_as_close_as_the_narrow_input_allows(dtype):
    W, b, x, adapters, _ = _problem(["a", "b"], dtype)
    flat = x.reshape(-1, x.shape[-1]).requires_grad_()
    masters = [Factors(A.float().requires_grad_(), B.float().requires_grad_(), s) for A, B, s in adapters.values()]
    out = routed(flat, W, b, masters, row_segments([0, 1], x.shape[1]), dtype=torch.float32)
    exact = oracle.lora_output(
        W.double(),
        b.double(),
        x.double(),
        {n: (A.double(), B.double(), s) for n, (A, B, s) in adapters.items()},
        ["a", "b"],
    )
    assert out.dtype == dtype
    assert_close(out.view(exact.shape), exact, dtype, terms=1)  # one rounding, at the end
    out.sum().backward()
    assert flat.grad.dtype == dtype
    assert all(t.grad.dtype == torch.float32 for f in masters for t in (f.A, f.B))


def test_the_arguments_are_not_changed():
    W, b, x, adapters, names = _problem(["a", "b", "a"], torch.float32)
    flat = x.reshape(-1, x.shape[-1])
    before = [t.clone() for t in (W, b, flat, *(t for A, B, _ in adapters.values() for t in (A, B)))]
    routed(flat, W, b, [Factors(*adapters[n]) for n in names], row_segments([0, 1, 0], x.shape[1]))
    after = [W, b, flat, *(t for A, B, _ in adapters.values() for t in (A, B))]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_merged_weight_is_the_equation():
    W, _, _, adapters, _ = _problem(["b"], torch.float64)
    A, B, scaling = adapters["b"]
    expected = oracle.merged_weight(W, A, B, scaling)
    assert_close(merged(W, A, B, scaling), expected, torch.float64, terms=60)
    assert_close(merged(W.float(), A.float(), B.float(), scaling), expected, torch.float32, terms=60)


def test_a_bfloat16_weight_is_rounded_once():
    W, _, _, adapters, _ = _problem(["b"], torch.bfloat16)
    A, B, scaling = adapters["b"]
    exact = torch.tensor(oracle.merged_weight(W.double(), A.double(), B.double(), scaling))
    half_ulp = 2.0**-8 * exact.abs() * (1 + 2.0**-12)
    assert bool(((merged(W, A, B, scaling).double() - exact).abs() <= half_ulp).all())


def test_the_first_A_is_uniform_within_its_bound_and_comes_from_the_seed():
    A = kaiming_uniform(64, 100, torch.Generator().manual_seed(0))
    assert A.dtype == torch.float32
    assert 0.099 < A.abs().max() <= 0.1
    assert abs(A.std().item() - 0.1 / np.sqrt(3)) < 0.002
    assert torch.equal(A, kaiming_uniform(64, 100, torch.Generator().manual_seed(0)))
    assert not torch.equal(A, kaiming_uniform(64, 100, torch.Generator().manual_seed(1)))


def test_cross_entropy_sums_the_labelled_positions_alone():
    logits = torch.randn(2, 5, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([[3, IGNORE, 12, 0, IGNORE], [IGNORE, IGNORE, 7, IGNORE, 1]])
    expected = oracle.cross_entropy_sum(logits.reshape(10, 13), labels.flatten().tolist(), IGNORE)
    assert_close(cross_entropy_sum(logits, labels).reshape(1), [expected], torch.float64, terms=60)
    assert cross_entropy_sum(logits, torch.full_like(labels, IGNORE)).item() == 0.0
