"""The last layer computed where the head is asked: loss and gradients are those of all tokens, and only those reach its MLP."""

import pytest
import torch

import inlay
from inlay.modules import last
from inlay.packing import shared
from inlay.tasks import _packed as loss
from inlay.text.mask import Example
from tests.equations.test_loss import FAMILIES, _base
from tests.support import models

USUAL = {"llama", "llama_tied", "mistral", "qwen2", "qwen3", "sliding", "grouped"}
"""Families whose layers have the usual parts; of the others some have, and none is computed wrongly."""


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """However few tokens are left out."""
    monkeypatch.setattr(loss, "FEWEST_UNASKED", 1)


def _rows(lengths=((9, 4), (3, 2), (14, 5)), begin=()):
    generator = torch.Generator().manual_seed(2)
    rows = []
    for prompt, answer in lengths:
        ids = [*begin, *torch.randint(3, models.VOCABULARY, (prompt + answer,), generator=generator).tolist()]
        rows.append(Example(ids, [i >= len(ids) - answer for i in range(len(ids))], "row"))
    return rows


def _with_gradients(base, rows):
    tensors = base.parameters()
    total = loss.loss_of(base, rows)
    return total.item(), torch.autograd.grad(total, tensors)


def _adapted(path, name, method=None):
    family, changes = FAMILIES[name]
    base = _base(path / "base", family, **changes)
    models.randomize(base.attach(method or inlay.Lora(r=3, lora_alpha=5), "it"), seed=4)
    return base


def _assert_the_same(base, rows):
    actual, gradients = _with_gradients(base, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "FEWEST_UNASKED", 1 << 30)
        expected, others = _with_gradients(base, rows)
    assert actual == pytest.approx(expected, rel=1e-6)
    for gradient, other in zip(gradients, others, strict=True):
        assert (gradient - other).norm() <= 1e-5 * other.norm() + 1e-12


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_all_tokens(tmp_path, name):
    base = _adapted(tmp_path, name)
    _assert_the_same(base, _rows())
    assert loss._can_narrow[base] >= (name in USUAL)


def _reached(base):
    """How many tokens reach the MLP of each layer."""
    loss.loss_of(base, _rows())  # what is tried first is tried
    counts = []
    hooks = [
        layer.mlp.register_forward_hook(lambda module, given, out: counts.append(given[0].shape[1]))
        for layer in base.model.base_model.layers
    ]
    loss.loss_of(base, _rows())
    for hook in hooks:
        hook.remove()
    return counts


def test_only_tokens_that_are_asked_for_reach_the_last_mlp(tmp_path):
    base = _adapted(tmp_path, "llama")
    *others, final = _reached(base)
    assert set(others) == {12 + 4 + 18}
    assert final == 4 + 2 + 5


def test_rows_that_begin_alike_are_asked_for_too(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "FEWEST", 3)
    base = _adapted(tmp_path, "llama")
    _assert_the_same(base, _rows(begin=range(5, 25)))
    assert loss._can_share[base]


@pytest.mark.parametrize(
    "method", [inlay.Bottleneck(bottleneck_size=3), inlay.Prefix(num_virtual_tokens=3), inlay.Dora(r=3)]
)
def test_other_methods_are_narrowed_alike(tmp_path, method):
    _assert_the_same(_adapted(tmp_path, "llama", method), _rows())


def test_rows_of_several_adapters_are_computed_whole(tmp_path):
    base = _adapted(tmp_path, "llama")
    models.randomize(base.attach(inlay.Lora(r=2, lora_alpha=3), "other"), seed=5)
    loss.loss_of(base, _rows())
    assert loss._narrows(base, 9, 3)
    with base.using(["it", "other", None]):
        assert not loss._narrows(base, 9, 3)
        several = loss.loss_of(base, _rows()).item()
    alone = 0.0
    for name, row in zip(("it", "other", None), _rows(), strict=True):
        with base.using(name):
            alone += loss.loss_of(base, [row]).item()
    assert several == pytest.approx(alone, rel=1e-6)


def test_without_gradients_every_map_sees_all_tokens(tmp_path):
    base = _adapted(tmp_path, "llama")
    loss.loss_of(base, _rows())
    with torch.no_grad():
        assert set(_reached(base)) == {12 + 4 + 18}


def test_planted_a_layer_that_does_more_is_not_narrowed(tmp_path, monkeypatch):
    base = _base(tmp_path / "base", "llama")
    kind = type(base.model.base_model.layers[-1])
    real = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *given, **named: real(self, *given, **named) + 0.5)
    before = loss.loss_of(base, _rows()).item()
    assert not loss._can_narrow[base]
    monkeypatch.setattr(loss, "FEWEST_UNASKED", 1 << 30)
    assert loss.loss_of(base, _rows()).item() == before


def test_planted_a_token_too_few_shows(tmp_path, monkeypatch):
    base = _adapted(tmp_path, "llama")
    loss.loss_of(base, _rows())
    monkeypatch.setattr(last.Tensor, "index_select", lambda x, axis, places: x.narrow(axis, 0, len(places)))
    with pytest.raises(AssertionError):
        _assert_the_same(base, _rows())
