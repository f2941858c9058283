"""Attention over packed documents: loops in float64, and every document as if it were alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.core import attention as in_torch
from inlay.kernels import attention as kernel
from inlay.kernels import native
from inlay.kernels.attention import SMALLEST_DIM, document_attention
from tests.support import oracle
from tests.support.tolerances import assert_close

DIM = 7


def _inputs(heads, kv_heads, t, dtype=torch.float32, seed=5, dim=DIM):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(h, t, dim, generator=generator).to(dtype).requires_grad_() for h in (heads, kv_heads, kv_heads)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=7),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    ordered=st.booleans(),
)
def test_result_and_gradients_are_those_of_the_loops(lengths, kv_heads, group, dtype, ordered):
    lengths = sorted(lengths) if ordered else lengths
    q, k, v = _inputs(kv_heads * group, kv_heads, sum(lengths), dtype)
    out = document_attention(q, k, v, lengths, 0.3)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out.backward(g)
    expected, *gradients = oracle.document_attention(q, k, v, g, lengths, 0.3)
    terms = max(lengths) * DIM * group
    assert out.dtype == dtype
    assert_close(out, expected, dtype, terms)
    for tensor, gradient in zip((q, k, v), gradients, strict=True):
        assert_close(tensor.grad, gradient, dtype, terms)


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    branches=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 7)), min_size=1, max_size=5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_branches_see_the_document_that_they_continue(documents, branches, kv_heads, group, dtype):
    branches = sorted((number % len(documents), length) for number, length in branches)
    lengths, parents = [*documents, *(length for _, length in branches)], [number for number, _ in branches]
    q, k, v = _inputs(kv_heads * group, kv_heads, sum(lengths), dtype)
    out = document_attention(q, k, v, lengths, 0.3, parents)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out.backward(g)
    expected, *gradients = oracle.document_attention(q, k, v, g, lengths, 0.3, parents)
    terms = sum(lengths) * DIM * group
    assert out.dtype == dtype
    assert_close(out, expected, dtype, terms)
    for tensor, gradient in zip((q, k, v), gradients, strict=True):
        assert_close(tensor.grad, gradient, dtype, terms)


def test_branches_are_those_of_the_plain_way():
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 6, 21, 16), (4, 2, 21, 16), (4, 2, 21, 16), (1, 2, 300, 16), (1, 2, 300, 16)]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    g = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    found = [
        (out := way(*given, 0.3), *torch.autograd.grad(out, given, g))
        for way in (in_torch._Branches.apply, in_torch.masked_branches)
    ]
    for ours, plain in zip(*found, strict=True):
        assert (ours - plain).norm() <= 1e-12 * plain.norm()


@pytest.mark.parametrize("lengths", [(9, 10, 11), (3, 3, 3, 40), (64,), (1, 1, 2)])
def test_a_document_is_computed_as_if_it_were_alone(lengths):
    q, k, v = _inputs(6, 2, sum(lengths))
    together = document_attention(q, k, v, lengths, 0.3).split(lengths)
    alone = zip(*(x.split(lengths, 1) for x in (q, k, v)), strict=True)
    for whole, part, length in zip(together, alone, lengths, strict=True):
        assert torch.allclose(whole, document_attention(*part, (length,), 0.3), rtol=1e-6, atol=1e-6)


def test_a_later_token_changes_nothing_before_it():
    q, k, v = (x.detach() for x in _inputs(4, 2, 11))
    before = document_attention(q, k, v, (5, 6), 0.3)
    k[:, 8], v[:, 8] = 9.0, 9.0
    after = document_attention(q, k, v, (5, 6), 0.3)
    assert torch.equal(before[:8], after[:8])
    assert not torch.allclose(before[8:], after[8:])


# The compiled way, for bfloat16

compiled = pytest.mark.skipif(not native.multiplies_bfloat16(), reason="this processor does not multiply bfloat16")


@compiled
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 13), st.integers(40, 130)), min_size=1, max_size=5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.sampled_from([SMALLEST_DIM, 3 * SMALLEST_DIM, 64, 80]),
    tokens_first=st.booleans(),
    scaling=st.sampled_from([0.3, 1.0]),
)
def test_the_compiled_result_and_gradients_are_those_of_float64(lengths, kv_heads, group, dim, tokens_first, scaling):
    inputs = _inputs(kv_heads * group, kv_heads, sum(lengths), torch.bfloat16, dim=dim)
    if tokens_first:  # as projections lay them
        inputs = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in inputs]
    out, g, gradients = _run(document_attention, inputs, lengths, scaling)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected, _, exact_gradients = _run(in_torch.document_attention, exact, lengths, scaling, g.double())
    assert out.grad_fn.name() == "_AttentionBackward"
    terms = max(lengths) * dim * group
    assert_close(out, expected, torch.bfloat16, terms)
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        assert_close(gradient, exact_gradient, torch.bfloat16, terms)


def _run(attention, inputs, lengths, scaling, g=None):
    out = attention(*inputs, lengths, scaling)
    if g is None:
        g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return out, g, torch.autograd.grad(out, inputs, g)


@compiled
@pytest.mark.parametrize("size", [0.3, 1.0, 8.0])
def test_the_compiled_way_is_no_less_exact_than_torchs(size):
    """Norm of the error against float64, of the result and of each gradient: torch's own kernel on the same bfloat16."""
    length, scaling = 200, 0.125
    q, k, v = _inputs(6, 2, length, torch.bfloat16, dim=64)
    inputs = [(size * q.detach()).requires_grad_(), k, v]
    exact = [x.detach().double().requires_grad_() for x in inputs]

    def torchs(*qkv):
        fused = torch.nn.functional.scaled_dot_product_attention
        return fused(*(x[None] for x in qkv[:3]), is_causal=True, scale=scaling, enable_gqa=True)[0].transpose(0, 1)

    out, g, gradients = _run(document_attention, inputs, (length,), scaling)
    results = [(out, *gradients)]
    for attention, qkv in ((torchs, inputs), (in_torch.document_attention, exact)):
        found, _, grads = _run(attention, qkv, (length,), scaling, g.to(qkv[0].dtype))
        results.append((found, *grads))
    for ours, theirs, true in zip(*results, strict=True):
        assert (ours.double() - true).norm() <= 1.05 * (theirs.double() - true).norm()


@compiled
def test_scores_that_exp_can_not_hold_are_computed():
    q, k, v = (x.detach() for x in _inputs(2, 1, 50, torch.bfloat16, dim=16))
    out = document_attention(1e4 * q, k, v, (20, 30), 1.0)
    expected = in_torch.document_attention((1e4 * q).double(), k.double(), v.double(), (20, 30), 1.0)
    assert_close(out, expected, torch.bfloat16, 50)


@compiled
def test_every_number_of_threads_gives_the_same_bits(monkeypatch):
    monkeypatch.setattr(native, "FEWEST_NUMBERS", 0)
    before, lengths = torch.get_num_threads(), (70, 3, 49, 48)
    inputs = _inputs(4, 2, sum(lengths), torch.bfloat16, dim=32)
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out, _, gradients = _run(document_attention, inputs, lengths, 0.2)
            results.append((out, *gradients))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@compiled
def test_heads_of_queries_apart_give_the_bits_of_those_together(monkeypatch):
    q, k, v = _inputs(6, 2, 200, torch.bfloat16, dim=32)
    found = []
    for fewest in (0, 10**6):
        monkeypatch.setattr(kernel, "_FEWEST", fewest)
        found.append(document_attention(q, k, v, [7, 150, 43], 0.2))
    assert torch.equal(*found)


def test_other_widths_and_dtypes_take_torchs_way():
    for dtype, dim in ((torch.bfloat16, 8), (torch.float32, 16)):
        q, k, v = _inputs(2, 1, 9, dtype, dim=dim)
        assert "_Attention" not in document_attention(q, k, v, (9,), 0.3).grad_fn.name()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 3, 15, 16, 40])
def test_what_is_no_number_is_lost_nowhere(dtype, length):
    for which, place, rows in ((0, length // 2, [length // 2]), (1, length // 2, range(length // 2, length))):
        given = [x.detach() for x in _inputs(4, 2, length + 2, dtype, dim=16)]
        given[which][:, place] = torch.nan
        for attend in (document_attention, in_torch.document_attention):
            broken = attend(*given, (length, 2), 0.3).isnan().any(-1).any(-1)
            assert torch.where(broken)[0].tolist() == list(rows)
