"""The laws of quantised bases: for every scheme, method and family a quantised base is the plain base of what its weights stand for."""

import functools

import pytest
import torch

from inlay import quant
from inlay.base.load import load
from inlay.model.adapter_set import AdapterSet
from inlay.modules.frozen import QuantizedLinear
from tests.support import models, quantized
from tests.support.cases import every_variant, other
from tests.support.tolerances import assert_close

FAMILIES = ("llama", "llama_tied", "qwen3", "phi3", "gpt2", "gpt_neox")
CASES = [
    (name, method, family)
    for name, method in every_variant()
    for family in (FAMILIES if name == "lora" else ("llama", "gpt2"))
    if name != "full"  # tests/attacks: it is refused
]
DEPTH = 3 * 7 * 128  # layers x maps per layer x the longest sum

schemes = pytest.mark.parametrize("scheme", quant.names())
families = pytest.mark.parametrize("family", FAMILIES)


def _over(cases):
    """Every method on every family, and with every scheme: the two schemes change places from one method to the next, and the
    combinations that this leaves out are slow. Plain LoRA has them all."""
    names = list(dict.fromkeys(name for name, *_ in cases))
    rows = []
    for name, method, family in cases:
        for number, scheme in enumerate(quant.names()):
            is_left_out = name != "lora" and (names.index(name) + (family == "gpt2") + number) % 2
            marks = [pytest.mark.slow] if is_left_out else []
            rows.append(pytest.param(scheme, name, method, family, marks=marks, id=f"{name}-{family}-{scheme}"))
    return pytest.mark.parametrize(("scheme", "name", "method", "family"), rows)


cases = _over(CASES)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(scheme, family) -> a quantised base, and the plain model of the same weights; each made once, and left as it was."""

    @functools.cache
    def pair(scheme, family):
        directory, plain = quantized.directory(tmp_path_factory.mktemp("base"), family, scheme)
        return load(directory, dtype="float32"), plain

    return pair


@pytest.fixture
def pair(pairs, scheme, family):
    base, plain = pairs(scheme, family)
    yield base, plain
    for name in [*base.adapters]:
        base.detach(name)


@schemes
@families
def test_its_logits_are_those_of_the_dequantised_model(pair, scheme, family):
    base, plain = pair
    ids = models.tokens(3, 9)
    assert any(isinstance(module, QuantizedLinear) for module in base.model.modules())
    assert base.num_weights == sum(parameter.numel() for parameter in plain.parameters())
    with torch.no_grad():
        assert_close(base.logits(ids, None), plain(input_ids=ids).logits, torch.float32, DEPTH)


@cases
def test_gradients_are_those_of_the_dequantised_model(pair, scheme, family, name, method):
    base, plain = pair
    ids, gradients = models.tokens(2, 7), []
    for held in (base.adapters, theirs := AdapterSet(plain)):
        models.randomize(held.create(method, "a", seed=1), seed=11, std=0.05)
        with held.using("a"):
            tensors = held.parameters()
            loss = held.module(input_ids=ids, labels=ids).loss
            gradients.append(torch.autograd.grad(loss, tensors))
    theirs.release()
    for ours, wanted in zip(*gradients, strict=True):
        assert wanted.abs().max() > 0
        assert_close(ours, wanted, torch.float32, DEPTH)


@cases
def test_a_mixed_batch_is_its_rows_one_by_one(pair, scheme, family, name, method):
    base, _ = pair
    models.randomize(base.create(method, "a", seed=1), seed=11)
    models.randomize(base.create(other(method), "b", seed=2), seed=12)
    ids, rows = models.tokens(4, 7), ["b", None, "a", "b"]
    mixed = base.logits(ids, rows)
    for i, row in enumerate(rows):
        assert_close(mixed[i : i + 1], base.logits(ids[i : i + 1], row), torch.float32, DEPTH)


@cases
def test_attaching_and_training_leave_every_byte_of_it(pair, scheme, family, name, method):
    base, _ = pair
    files = {file: file.read_bytes() for file in base.checkpoint.files}
    ids = models.tokens(2, 5)
    before = base.logits(ids, None)
    models.randomize(base.create(method, "a"), seed=3)
    with base.using("a"):
        base.parameters()
        base.model(input_ids=ids, labels=ids).loss.backward()
    assert not torch.equal(base.logits(ids, "a"), before)
    assert torch.equal(base.logits(ids, None), before)
    base.detach("a")
    assert torch.equal(base.logits(ids, None), before)
    assert {file: file.read_bytes() for file in files} == files
