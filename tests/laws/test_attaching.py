"""Adapters come, go and are swapped: rows take what is attached, whatever block they stand in, and nothing else is kept."""

import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import inlay
from inlay.base.attach import attach
from inlay.errors import CompatibilityError, ConfigError
from inlay.model.adapter_set import AdapterSet
from tests.support import models


def _held():
    made = AdapterSet(models.model("llama"))
    for seed, name in enumerate("ab"):
        models.randomize(made.attach(inlay.Lora(r=2, lora_alpha=30), name), seed=seed)
    made.active = "a"
    return made


@pytest.fixture
def held():
    return _held()


def _logits(held, ids, rows):
    with held.using(rows), torch.no_grad():
        return held.module(input_ids=ids).logits


def test_a_swap_within_a_block_leaves_the_default_as_it_was(held):
    ids = models.tokens(1, 5)
    wanted = _logits(held, ids, "b")
    new = held.detach("b")
    with held.using(None):
        held.swap("a", new)
        assert held.active is None
    assert held.active == "a"
    with torch.no_grad():
        assert torch.equal(held.module(input_ids=ids).logits, wanted)


def test_blocks_around_a_swap_take_the_new_adapter(held):
    ids = models.tokens(2, 5)
    wanted = _logits(held, ids, ["b", None])
    new = held.detach("b")
    with held.using(["a", None]), torch.no_grad():
        with held.using(None):
            held.swap("a", new)
        assert held.active == ["a", None]
        assert torch.equal(held.module(input_ids=ids).logits, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("rows", ["a", ["a", "b", None]])
def test_tensors_that_are_changed_in_place_answer_at_once(dtype, is_trained, rows):
    """What was made of an adapter's tensors for another dtype, or stacked, is made anew."""
    held, ids = AdapterSet(models.model("llama").to(dtype)), models.tokens(3, 1)
    for seed, name in enumerate("ab"):
        models.randomize(held.attach(inlay.Lora(r=2, lora_alpha=30 + seed), name), seed=seed)
    held["a"].train_(is_trained)
    before = _logits(held, ids, rows)
    with torch.no_grad():
        for tensor in held["a"].tensors():
            tensor.mul_(1.5)
    now = _logits(held, ids, rows)
    other = held.detach("a")
    assert torch.equal(_logits(held, ids, None), _logits(held, ids, [None] * 3))
    held.put(other)
    assert torch.equal(now, _logits(held, ids, rows))
    assert not torch.equal(now[0], before[0])
    held["a"].train_(not is_trained)
    assert torch.equal(now, _logits(held, ids, rows))
    held["a"].params = {path: {key: 0 * t for key, t in params.items()} for path, params in held["a"].params.items()}
    assert torch.equal(_logits(held, ids, rows)[0], _logits(held, ids, None)[0])


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_of_an_optimizer_is_answered_with_at_once(held, kind, fused):
    ids = models.tokens(2, 1)
    learning = held["a"].train_()
    optimizer = kind(learning, lr=0.1, fused=fused)
    before = [_logits(held, ids, rows) for rows in ("a", ["a", "b"])]
    for tensor in learning:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    assert all(
        not torch.equal(_logits(held, ids, rows)[0], b[0]) for rows, b in zip(("a", ["a", "b"]), before, strict=True)
    )


def test_a_swap_that_fails_changes_nothing(held):
    ids = models.tokens(1, 5)
    before, strange = _logits(held, ids, "a"), AdapterSet(models.model("llama", sizes={"hidden_size": 40}))
    wrong = strange.attach(inlay.Lora(r=2), "other")
    strange.detach("other")
    with pytest.raises(CompatibilityError):
        held.swap("a", wrong)
    assert (wrong.name, held.active, list(held)) == ("other", "a", ["a", "b"])
    assert torch.equal(_logits(held, ids, "a"), before)


def test_a_detached_adapter_is_a_thing_of_its_own():
    held, ids = _held(), models.tokens(1, 5)
    wanted = _logits(held, ids, "a")
    adapter = held.detach("a")
    with pytest.raises(ConfigError, match="not attached to a model"):
        adapter.merged("lm_head", torch.zeros(2, 2), None)
    again = pickle.loads(pickle.dumps(adapter))
    held.put(again)
    assert torch.equal(_logits(held, ids, "a"), wanted)
    module = weakref.ref(held.module)
    del held
    gc.collect()
    assert again.bound
    assert module() is not None  # an attached one knows its model
    del again
    gc.collect()
    assert module() is None
    assert adapter.num_weights


class Remembers(nn.Module):
    """Keeps what it made, as recurrent layers do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.last, self.calls = None, 0
        self.register_buffer("kept", torch.zeros(4))

    def forward(self, x):
        self.last, self.calls = x * self.weight, self.calls + 1
        self.kept = self.last.mean(0)
        return self.last


class Around(nn.Module):
    """Has one such layer beside a linear one."""

    def __init__(self):
        super().__init__()
        self.layer, self.linear = Remembers(), nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(self.layer(x))


def test_a_module_remembers_what_it_made_with_the_tensors_of_an_adapter():
    held = attach(Around(), inlay.Lora(r=2, target_modules="linear", modules_to_save="layer"), "a")
    with torch.no_grad():
        held["a"].params["layer"]["weight"].fill_(3.0)
        x = torch.randn(2, 4)
        held.module(x)
        layer = held.layout.modules["layer"]
        assert torch.equal(layer.last, 3 * x)
        assert torch.equal(layer.kept, (3 * x).mean(0))
        assert layer.calls == 1
        assert torch.equal(layer.weight, torch.ones(4))


def test_a_module_that_remembers_all_rows_is_not_called_for_some_of_them():
    held = attach(Around(), inlay.Lora(r=2, target_modules="linear", modules_to_save="layer"), "a")
    with (
        held.using(["a", None]),
        torch.no_grad(),
        pytest.raises(CompatibilityError, match="for some of them") as caught,
    ):
        held.module(torch.randn(2, 4))
    assert "Remembers remembers last, kept" in str(caught.value)
