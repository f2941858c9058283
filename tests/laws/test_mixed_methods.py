"""Rows of one batch under adapters of different methods; and virtual tokens where rows are packed, cached and generated from."""

import pytest
import torch

from inlay.base.load import load
from inlay.core.recompute import recomputing
from inlay.errors import TargetError
from inlay.methods.lora import Lora
from inlay.tasks import _packed as loss
from inlay.text.mask import Example
from inlay.text.template import prompt_ids
from tests.support import bases, models
from tests.support.cases import SETTINGS, every_method
from tests.support.tolerances import assert_close

DEPTH = 3 * 7 * 28
FAMILIES = ("llama", "gpt2", "gemma3")
PROMPTS = ("prompt", "prefix", "p_tuning")


@pytest.fixture(params=FAMILIES)
def held(request, tmp_path):
    """A base with one adapter of every method that fits it, called after the method."""
    base = load(bases.directory(tmp_path / "base", request.param), dtype="float32")
    for number, (name, method) in enumerate(every_method()):
        if base.layout.wanted(method, strict=False):
            models.randomize(base.attach(method, name), seed=number)
    return base


def test_a_batch_of_every_method_is_its_rows_one_by_one(held):
    names = [None, *held.adapters, None]
    ids = models.tokens(len(names), 7)
    mixed = held.logits(ids, names)
    for i, name in enumerate(names):
        assert_close(mixed[i : i + 1], held.logits(ids[i : i + 1], name), torch.float32, DEPTH)
        assert name is None or not torch.allclose(mixed[i], held.logits(ids[i : i + 1], None)[0], atol=1e-3)


def test_rows_with_a_table_of_their_own_leave_the_others_their_change_of_it(held):
    """An embedding that one row replaces and another changes, and positions that all rows share."""
    table = held.layout.table.rpartition(".")[2]
    if held.layout.table not in held.maps:  # Gemma's scales what it reads, and is no map
        with pytest.raises(TargetError, match="matches no"):
            held.attach(Lora(r=2, target_modules=table), "changed")
        return
    positions = ["wpe"] if "transformer.wpe" in held.maps else []
    models.randomize(held.attach(Lora(r=2, target_modules=(table, *positions)), "changed"), seed=40)
    models.randomize(held.attach(Lora(r=2, modules_to_save=table), "replaced"), seed=41)
    rows, ids = ["changed", "full", None, "replaced"], models.tokens(4, 7)
    mixed = held.logits(ids, rows)
    for i, row in enumerate(rows):
        assert_close(mixed[i : i + 1], held.logits(ids[i : i + 1], row), torch.float32, DEPTH)
    assert not torch.allclose(mixed[0], held.logits(ids[:1], None)[0], atol=1e-3)


def test_rows_of_every_method_are_generated_as_they_are_alone(held):
    """Greedily, with the cache, from prompts of unequal length: the padding, the virtual tokens and the cache agree."""
    names = [None, *held.adapters]
    texts = ["say " + "it " * (i % 4) + str(i) for i in range(len(names))]
    together = held.generate(texts, names, max_new_tokens=5)
    for i, name in enumerate(names):
        assert held.generate([texts[i]], name, max_new_tokens=5) == [together[i]]


@pytest.mark.parametrize("name", PROMPTS)
def test_the_cache_changes_nothing(held, name):
    """Each generated token is the likeliest one of a forward pass over all before it, without a cache."""
    (answer,) = held.generate(["say it"], name, max_new_tokens=6)
    ids = torch.tensor([prompt_ids(held.tokenizer, "say it")])
    prompt = ids.shape[1]
    for _ in range(6):
        token = held.logits(ids, name)[:, -1].argmax(-1)
        ids = torch.cat([ids, token[None]], 1)
        if token.item() in held.end_tokens:
            break
    assert held.tokenizer.decode(ids[0, prompt:], skip_special_tokens=True) == answer


@pytest.mark.parametrize("name", PROMPTS)
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(held, name):
    held.active = name
    tensors = held.adapters[name].train_()
    rows = [_row(5), _row(9), _row(3)]
    assert loss.is_packed(held)
    packed = loss.loss_of(held, rows)
    gradients = torch.autograd.grad(packed, tensors)
    alone = [_padded_loss(held, row) for row in rows]
    expected = torch.autograd.grad(sum(alone), tensors)
    assert_close(packed, sum(alone), torch.float32, DEPTH)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert_close(ours, theirs, torch.float32, DEPTH)
    with recomputing():  # activations that are cheap to make again are not kept
        again = torch.autograd.grad(loss.loss_of(held, rows), tensors)
    assert all(torch.equal(a, b) for a, b in zip(again, gradients, strict=True))


def test_a_prompt_from_a_text_starts_as_its_embeddings(tmp_path):
    import inlay

    base = load(bases.directory(tmp_path / "base"), dtype="float32")
    base.attach(inlay.Prompt(num_virtual_tokens=5, prompt_tuning_init="TEXT", prompt_tuning_init_text="say"), "it")
    ids = base.tokenizer("saysa", add_special_tokens=False)["input_ids"]
    assert torch.equal(
        base.adapters["it"].params[""]["prompt_embeddings"], base.model.get_input_embeddings().weight[ids]
    )


def test_a_prompt_whose_text_stands_in_the_row_instead_says_the_same(tmp_path):
    """The one prompt whose answer is known: that of the text itself."""
    import inlay

    base = load(bases.directory(tmp_path / "base"), dtype="float32")
    base.attach(inlay.Prompt(num_virtual_tokens=3, prompt_tuning_init="TEXT", prompt_tuning_init_text="say"), "it")
    text = torch.tensor([base.tokenizer("say", add_special_tokens=False)["input_ids"]])
    ids = models.tokens(1, 6)
    whole = base.logits(torch.cat([text, ids], 1), None)[:, 3:]
    assert_close(base.logits(ids, "it"), whole, torch.float32, DEPTH)


def _row(length):
    ids = models.tokens(1, length, seed=length)[0].tolist()
    return Example(tuple(ids), tuple(i > 1 for i in range(length)), "row")


def _padded_loss(base, row):
    ids = torch.tensor([row.input_ids])
    logits = base.model(input_ids=ids, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits[1:-1], ids[0, 2:], reduction="sum")


assert set(PROMPTS) <= set(SETTINGS)
