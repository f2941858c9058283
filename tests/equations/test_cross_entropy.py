"""The loss from a frozen head: without all logits, and as if they were there."""

import pytest
import torch

from inlay.core import cross_entropy
from inlay.core.cross_entropy import IGNORE, cross_entropy_sum, head_cross_entropy_sum
from tests.support import oracle
from tests.support.tolerances import assert_close

TOKENS, WIDTH, VOCAB = 23, 11, 37


def _inputs(dtype, stored):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).to(stored)
    bias = torch.randn(VOCAB, generator=generator).to(stored)
    return hidden, weight, bias, torch.randint(0, VOCAB, (TOKENS,), generator=generator)


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "stored"), [(torch.float32,) * 2, (torch.float64,) * 2, (torch.float32, torch.bfloat16)]
)
def test_it_is_the_loss_of_the_full_logits(monkeypatch, rows, has_bias, dtype, stored):
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", rows * VOCAB * dtype.itemsize)
    hidden, weight, bias, labels = _inputs(dtype, stored)
    bias = bias if has_bias else None
    loss = head_cross_entropy_sum(hidden, weight, bias, labels, dtype)
    (loss * 0.7).backward()
    wide = hidden.detach().double().requires_grad_()
    logits = torch.nn.functional.linear(wide, weight.double(), bias if bias is None else bias.double())
    expected = cross_entropy_sum(logits, labels)
    (expected * 0.7).backward()
    assert_close(expected, oracle.cross_entropy_sum(logits.detach(), labels, IGNORE), torch.float64, TOKENS * VOCAB)
    assert_close(loss, expected, dtype, WIDTH)
    assert_close(hidden.grad, wide.grad, dtype, VOCAB)


def test_narrow_inputs_are_multiplied_in_the_wide_dtype():
    hidden, weight, bias, labels = _inputs(torch.bfloat16, torch.bfloat16)
    loss = head_cross_entropy_sum(hidden, weight, bias, labels, torch.float32)
    loss.backward()
    exact = head_cross_entropy_sum(hidden.detach().double(), weight.double(), bias.double(), labels, torch.float64)
    assert_close(loss, exact, torch.float32, WIDTH)
    assert hidden.grad.dtype == torch.bfloat16


def test_a_token_that_is_all_but_impossible_has_a_finite_loss():
    loss = head_cross_entropy_sum(
        torch.ones(1, 1), torch.tensor([[0.0], [500.0]]), None, torch.tensor([0]), torch.float32
    )
    assert loss.item() == 500


def test_nothing_costs_nothing():
    hidden, weight, bias, labels = _inputs(torch.float32, torch.float32)
    assert head_cross_entropy_sum(hidden[:0], weight, bias, labels[:0], torch.float32).item() == 0
