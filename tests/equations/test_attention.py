"""Attention over packed documents: loops in float64, and every document as if it were alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.core.attention import document_attention
from tests.support import oracle
from tests.support.tolerances import assert_close

DIM = 7


def _inputs(heads, kv_heads, t, dtype=torch.float32, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(h, t, DIM, generator=generator).to(dtype).requires_grad_() for h in (heads, kv_heads, kv_heads)]


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
