"""The laws of adapters: they hold for every method, on every family, and a new method is under them the day it lands."""

import copy

import pytest
import torch

from inlay.core.cross_entropy import cross_entropy_sum
from inlay.io import peft
from inlay.model import targets
from inlay.model.attach import Attached
from tests.support import models
from tests.support.cases import every_method, other
from tests.support.tolerances import assert_close

FAMILIES = list(models.CONFIGS)
METHODS = every_method()
DEPTH = 3 * 7 * 28  # layers x maps per layer x the longest sum: what a logit's rounding passes through

pytestmark = pytest.mark.parametrize(("name", "method"), METHODS, ids=[name for name, _ in METHODS])
families = pytest.mark.parametrize("family", FAMILIES)


def attached(family, method, *, both=False, dtype=torch.float32):
    """A model with a randomised adapter 'a', and a second one 'b' on fewer layers."""
    held = Attached(models.model(family, dtype))
    models.randomize(held.create(method, "a", seed=1), seed=11)
    if both:
        models.randomize(held.create(other(method), "b", seed=2), seed=12)
    return held


def logits(held, ids, rows):
    with torch.no_grad(), held.using(rows):
        return held.module(input_ids=ids).logits


@families
def test_a_fresh_adapter_changes_nothing(name, method, family):
    model, ids = models.model(family, torch.float64), models.tokens(2, 7)
    before = model(input_ids=ids).logits
    held = Attached(model)
    held.create(method)
    assert_close(logits(held, ids, "default"), before, torch.float64, DEPTH)


@families
def test_no_adapter_is_the_base_bit_for_bit(name, method, family):
    model, ids = models.model(family), models.tokens(2, 7)
    before = model(input_ids=ids).logits
    held = Attached(model)
    models.randomize(held.create(method), seed=4)
    assert not torch.equal(logits(held, ids, "default"), before)
    assert torch.equal(logits(held, ids, None), before)
    assert torch.equal(logits(held, ids, [None, None]), before)


@families
def test_a_mixed_batch_is_its_rows_one_by_one(name, method, family):
    held, ids = attached(family, method, both=True, dtype=torch.float64), models.tokens(4, 7)
    rows = ["b", None, "a", "b"]
    mixed = logits(held, ids, rows)
    for i, row in enumerate(rows):
        assert_close(mixed[i : i + 1], logits(held, ids[i : i + 1], row), torch.float64, DEPTH)
    assert not torch.allclose(logits(held, ids, "a"), logits(held, ids, "b"))


@families
def test_merged_equals_unmerged(name, method, family):
    held, ids = attached(family, method, dtype=torch.float64), models.tokens(2, 7)
    unmerged = logits(held, ids, "a")
    adapter = held.get("a")
    merged = copy.deepcopy(held.detach("a") and held.module)
    for path, params in adapter.params.items():
        linear = held.linears[path]
        weight, bias = adapter.methods[path].merge(params, linear.weight(torch.float64), linear.bias)
        module = merged.get_submodule(path)
        with torch.no_grad():
            module.weight.copy_(weight.T if linear.transposed else weight)
            if bias is not None:
                module.bias.copy_(bias)
    assert_close(merged(input_ids=ids).logits, unmerged, torch.float64, DEPTH)


def test_merging_piece_by_piece_equals_merging_whole(name, method):
    held = attached("llama", method, dtype=torch.float64)
    adapter = held.get("a")
    for path, params in adapter.params.items():
        weight, one = held.linears[path].weight(torch.float64), adapter.methods[path]
        cut = weight.shape[0] // 3
        pieces = [
            one.merge(one.rows(params, a, b), weight[a:b], None)[0] for a, b in ((0, cut), (cut, weight.shape[0]))
        ]
        assert_close(torch.cat(pieces), one.merge(params, weight, None)[0], torch.float64, 30)


@families
def test_attaching_and_detaching_leave_every_byte_and_module_of_the_base(name, method, family):
    model = models.model(family)
    before, modules = models.byte_image(model), {path: type(m) for path, m in model.named_modules()}
    held = Attached(model)
    for adapter in ("a", "b"):
        models.randomize(held.create(method, adapter), seed=3)
    logits(held, models.tokens(2, 5), ["a", "b"])
    held.detach("a")
    held.release()
    assert models.byte_image(model) == before
    assert {path: type(m) for path, m in model.named_modules()} == modules
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_order_of_attaching_does_not_matter(name, method):
    ids, results = models.tokens(2, 7), []
    for order in (("a", "b"), ("b", "a")):
        held = Attached(models.model("llama"))
        for adapter in order:
            models.randomize(held.create(method if adapter == "a" else other(method), adapter), seed=ord(adapter))
        results.append(logits(held, ids, ["a", "b"]))
    assert torch.equal(*results)


@families
def test_saved_and_loaded_it_is_the_same_to_the_bit(name, method, family, tmp_path):
    held, ids = attached(family, method), models.tokens(2, 7)
    adapter = held.get("a")
    every = [path for path, _ in held.module.named_modules()]
    peft.write(
        tmp_path,
        adapter.method,
        adapter.params,
        base_name="x",
        target_modules=targets.short_names(list(adapter.params), every),
        fan_in_fan_out=False,
        record={},
    )
    read = peft.read(tmp_path)
    assert list(targets.resolve(read.method, held.linears, held.head)) == list(adapter.params)
    for path, params in adapter.params.items():
        assert set(read.params[path]) == set(params)
        assert all(torch.equal(read.params[path][key], tensor) for key, tensor in params.items())
        assert read.method.for_module(path).describe() == adapter.methods[path].describe()
    assert ids.shape == (2, 7)


def test_fresh_tensors_have_the_shapes_that_the_method_says(name, method):
    held = Attached(models.model("gpt2"))
    adapter = held.create(method)
    for path, params in adapter.params.items():
        shapes = adapter.methods[path].shapes(held.linears[path])
        assert {key: tuple(tensor.shape) for key, tensor in params.items()} == shapes
        assert all(tensor.dtype == torch.float32 for tensor in params.values())


def test_the_same_seed_gives_the_same_tensors(name, method):
    def fresh(seed):
        adapter = Attached(models.model("llama")).create(method, seed=seed)
        return torch.cat([tensor.flatten() for tensor in adapter.tensors()])

    assert torch.equal(fresh(5), fresh(5))
    assert not torch.equal(fresh(5), fresh(6))


def test_gradients_reach_the_adapter_and_nothing_else(name, method):
    held = attached("llama", method, both=True)
    ids = models.tokens(2, 7)
    held.active = "a"
    tensors = held.parameters()
    loss = cross_entropy_sum(held.module(input_ids=ids).logits, ids)
    loss.backward()
    assert all(tensor.grad is not None and bool(tensor.grad.abs().sum() > 0) for tensor in tensors)
    assert all(tensor.grad is None for tensor in held.get("b").tensors())
    assert all(parameter.grad is None for parameter in held.module.parameters())


def test_gradients_agree_with_finite_differences(name, method):
    held = attached("gpt2", method, dtype=torch.float64)
    adapter, ids = held.get("a"), models.tokens(2, 5)
    adapter.params = {path: {k: t.double() for k, t in p.items()} for path, p in adapter.params.items()}
    tensors = adapter.train_()

    def loss():
        return cross_entropy_sum(held.module(input_ids=ids).logits, ids) / ids.numel()

    # central differences in float64: their error is near step^2, their rounding near 1e-16 / step. GPT-2 computes all of
    # its forward pass in float64; the norms of the other families go through float32
    step, tolerance = 1e-5, 1e-6
    held.active = "a"
    loss().backward()
    generator = torch.Generator().manual_seed(8)
    direction = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]
    norm = torch.sqrt(sum((d**2).sum() for d in direction))
    slope = sum((t.grad * d).sum() for t, d in zip(tensors, direction, strict=True)) / norm
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for t, d in zip(tensors, direction, strict=True):
                t.add_(sign * step * d / norm)
            ends.append(loss().item())
            for t, d in zip(tensors, direction, strict=True):
                t.sub_(sign * step * d / norm)
    measured = (ends[0] - ends[1]) / (2 * step)
    assert abs(measured - slope.item()) <= tolerance * abs(measured)


def test_leading_dimensions_do_not_matter(name, method):
    held = attached("llama", method, dtype=torch.float64)
    path = next(iter(held.get("a").params))
    module = held.module.get_submodule(path)
    x = torch.randn(2, 3, 5, module.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), held.using("a"):
        assert_close(module(x).reshape(-1, module.out_features), module(x.reshape(-1, x.shape[-1])), torch.float64, 30)


def test_a_swapped_adapter_answers_as_if_it_had_been_attached(name, method):
    held, ids = attached("llama", method, both=True), models.tokens(2, 7)
    wanted = logits(held, ids, "b")
    new = held.detach("b")
    before = held.swap("a", new)
    assert torch.equal(logits(held, ids, "a"), wanted)
    held.swap("a", before)
    assert not torch.equal(logits(held, ids, "a"), wanted)
