"""The laws of adapters: they hold for every method, on every family, and a new method is under them the day it lands."""

import copy

import pytest
import torch

from inlay.base.attach import attach
from inlay.core.cross_entropy import cross_entropy_sum
from inlay.methods import hooks
from inlay.methods.contract import LinearMethod
from inlay.model.adapter_set import AdapterSet
from inlay.model.changes import replaced
from inlay.modules.experts import Experts
from tests.support import models
from tests.support.cases import VARIANTS, every_variant, fits, other
from tests.support.tolerances import assert_close

FEW = ("gpt2", "llama", "llama_tied", "gemma3")
"""Families with and without biases, tied heads and (in, out) weights: what changes with the family is the models' part."""

CASES = [
    (name, method, family)
    for name, method in every_variant()
    for family in (models.CONFIGS if name == "lora" else FEW)
    if fits(method, family)
]
ON_ALL = ("lora", "lora_biases", "lora_tokens", "bitfit", "full", "prefix")
"""Methods of what families differ in: biases, tied tables, everything, keys and values. They are tried on each by default."""
DEPTH = 3 * 7 * 28  # layers x maps per layer x the longest sum: what a logit's rounding passes through


def _over(some):
    """Of the families of `FEW`, a method that is not in `ON_ALL` is tried on gpt2 and on one of the others by default, the next
    method on the next one; another way of a method on one of these two. The rest of the product is slow."""
    names, rows = list(dict.fromkeys(name for name, *_ in CASES)), []
    for name, method, family in some:
        others = [f for n, _, f in some if n == name and f != "gpt2"]
        number = names.index(name)
        tried = ["gpt2", *([others[number % len(others)]] if others else [])]
        if name in VARIANTS and len(tried) > 1:
            tried = [tried[number % 2]]
        is_default = name in ON_ALL or family in tried
        marks = [] if is_default else [pytest.mark.slow]
        rows.append(pytest.param(name, method, family, marks=marks, id=f"{name}-{family}"))
    return pytest.mark.parametrize(("name", "method", "family"), rows)


everywhere = _over(CASES)
linear = _over([case for case in CASES if isinstance(case[1], LinearMethod)])
once = _over(list({case[0]: case for case in reversed(CASES)}.values()))


def attached(family, method, *, both=False, dtype=torch.float32):
    """A model with a randomised adapter 'a', and a second one 'b' that changes less of it."""
    held = AdapterSet(models.model(family, dtype))
    models.randomize(held.create(method, "a", seed=1), seed=11)
    if both:
        models.randomize(held.create(other(method), "b", seed=2), seed=12)
    return held


def logits(held, ids, rows):
    with torch.no_grad(), held.using(rows):
        return held.module(input_ids=ids).logits


@everywhere
def test_a_fresh_adapter_changes_nothing(name, method, family):
    """In float32: a tensor that starts as one of the base's is rounded to it."""
    model, ids = models.model(family), models.tokens(2, 7)
    before = model(input_ids=ids).logits
    held = AdapterSet(model)
    held.create(method)
    if hooks.changes_at_start(method):
        assert (logits(held, ids, "default") - before).abs().max() > 1e-3
    else:
        assert_close(logits(held, ids, "default"), before, torch.float32, DEPTH)


@everywhere
def test_no_adapter_is_the_base_bit_for_bit(name, method, family):
    model, ids = models.model(family), models.tokens(2, 7)
    before = model(input_ids=ids).logits
    held = AdapterSet(model)
    models.randomize(held.create(method), seed=4)
    assert not torch.equal(logits(held, ids, "default"), before)
    assert torch.equal(logits(held, ids, None), before)
    assert torch.equal(logits(held, ids, [None, None]), before)


@everywhere
def test_a_mixed_batch_is_its_rows_one_by_one(name, method, family):
    held, ids = attached(family, method, both=True, dtype=torch.float64), models.tokens(4, 7)
    rows = ["b", None, "a", "b"]
    mixed = logits(held, ids, rows)
    for i, row in enumerate(rows):
        assert_close(mixed[i : i + 1], logits(held, ids[i : i + 1], row), torch.float64, DEPTH)
    assert not torch.allclose(logits(held, ids, "a"), logits(held, ids, "b"))


@everywhere
def test_merged_equals_unmerged(name, method, family):
    held, ids = attached(family, method, dtype=torch.float64), models.tokens(2, 7)
    adapter, unmerged = held["a"], logits(held, ids, "a")
    if method.unmergeable_because:
        return  # tests/attacks: merging it is refused
    merged = copy.deepcopy(held.detach("a") and held.module)
    held.put(adapter)
    for path in adapter.params:
        view = held.maps.get(path)
        module = merged.get_submodule(held.layout.module_of(path))
        with torch.no_grad():
            if isinstance(view, Experts):
                for number, one in enumerate(view.each):
                    W, _ = adapter.merged(path, one.weight(torch.float64), None, number=number)
                    getattr(module, view.name)[number].copy_(W.T if view.transposed else W)
                continue
            if view is None:
                for key, tensor in replaced(adapter.at(path)).items():
                    getattr(module, key).copy_(tensor)
                continue
            weight, bias = adapter.merged(path, view.weight(torch.float64), view.bias)
            module.weight.copy_(weight.T if view.transposed else weight)
            if bias is not None:
                module.bias.copy_(bias)
    assert_close(merged(input_ids=ids).logits, unmerged, torch.float64, DEPTH)


@once
def test_merging_piece_by_piece_equals_merging_whole(name, method, family):
    held = attached(family, method, dtype=torch.float64)
    adapter = held["a"]
    for path in [path for path in adapter.params if path in held.maps and not method.unmergeable_because]:
        view = held.maps[path]
        weight = view.weight(torch.float64)
        whole = adapter.merged(path, weight, view.bias)
        cut = weight.shape[0] // 3
        for piece, rows in ((weight[:cut], slice(0, cut)), (weight[cut:], slice(cut, None))):
            bias = None if view.bias is None else view.bias[rows]
            part = adapter.merged(path, piece, bias, rows.start)
            assert_close(part[0], whole[0][rows], torch.float64, 30)
            if bias is not None:
                assert_close(part[1], whole[1][rows], torch.float64, 30)


@everywhere
def test_attaching_and_detaching_leave_every_byte_and_module_of_the_base(name, method, family):
    model = models.model(family)
    before, modules = models.byte_image(model), {path: type(m) for path, m in model.named_modules()}
    held = AdapterSet(model)
    for adapter in ("a", "b"):
        models.randomize(held.create(method, adapter), seed=3)
    logits(held, models.tokens(2, 5), ["a", "b"])
    held.detach("a")
    held.release()
    assert models.byte_image(model) == before
    assert {path: type(m) for path, m in model.named_modules()} == modules
    assert all(parameter.requires_grad for parameter in model.parameters())


@once
def test_the_order_of_attaching_does_not_matter(name, method, family):
    ids, results = models.tokens(2, 7), []
    for order in (("a", "b"), ("b", "a")):
        held = AdapterSet(models.model(family))
        for adapter in order:
            models.randomize(held.create(method if adapter == "a" else other(method), adapter), seed=ord(adapter))
        results.append(logits(held, ids, ["a", "b"]))
    assert torch.equal(*results)


@everywhere
def test_saved_and_loaded_it_is_the_same_to_the_bit(name, method, family, tmp_path):
    held, ids = attached(family, method), models.tokens(2, 7)
    held["a"].finish_()
    adapter, wanted = held["a"], logits(held, ids, "a")
    held.save("a", tmp_path, {})
    again = attach(models.model(family), tmp_path, "again")
    read = again["again"]
    assert set(read.params) == set(adapter.params)
    for path, params in adapter.params.items():
        assert set(read.params[path]) == set(params)
        assert all(torch.equal(read.params[path][key], tensor) for key, tensor in params.items())
        assert hooks.for_module(read.method, path).describe() == hooks.for_module(adapter.method, path).describe()
    assert torch.equal(logits(again, ids, "again"), wanted)
    assert all(tensor.requires_grad for tensor in read.train_())  # it can be trained on


@everywhere
def test_fresh_tensors_have_the_shapes_that_the_method_says(name, method, family):
    held = AdapterSet(models.model(family))
    adapter = held.create(method)
    assert all(tensor.dtype == torch.float32 for tensor in adapter.tensors())
    assert adapter.num_weights == held.layout.count(method) or name in ("p_tuning", "prefix_network")
    adapter.finish_()
    shapes = {path: {key: tuple(t.shape) for key, t in params.items()} for path, params in adapter.params.items()}
    assert shapes == held.layout.wanted(adapter.method)
    assert adapter.num_weights == held.layout.count(adapter.method)


@once
def test_the_same_seed_gives_the_same_tensors(name, method, family):
    def fresh(seed):
        adapter = AdapterSet(models.model(family)).create(method, seed=seed)
        return torch.cat([tensor.flatten() for tensor in adapter.tensors()])

    assert torch.equal(fresh(5), fresh(5))
    draws_nothing = {"bitfit", "full", "ia3", "ln_tuning", "oft", "oft_series", "vera"}
    assert torch.equal(fresh(5), fresh(6)) == (name in draws_nothing)


@once
def test_gradients_reach_the_adapter_and_nothing_else(name, method, family):
    held = attached(family, method, both=True)
    ids = models.tokens(2, 7)
    held.active = "a"
    tensors = held.parameters()
    loss = cross_entropy_sum(held.module(input_ids=ids).logits, ids)
    loss.backward()
    assert all(tensor.grad is not None and bool(tensor.grad.abs().sum() > 0) for tensor in tensors)
    assert all(tensor.grad is None for tensor in held["b"].tensors())
    assert all(
        parameter.grad is None for parameter in held.module.parameters()
    )  # the base's alone: adapters are beside it


@once
def test_gradients_agree_with_finite_differences(name, method, family):
    held = attached("gpt2", method, dtype=torch.float64)
    adapter, ids = held["a"], models.tokens(2, 5)
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


@linear
def test_leading_dimensions_do_not_matter(name, method, family):
    held = attached(family, method, dtype=torch.float64)
    path = next(iter(held["a"].params))
    module, view = held.module.get_submodule(path), held.maps[path]
    x = torch.randn(2, 3, 5, view.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), held.using("a"):
        assert_close(module(x).reshape(-1, view.out_features), module(x.reshape(-1, x.shape[-1])), torch.float64, 30)


@once
def test_a_swapped_adapter_answers_as_if_it_had_been_attached(name, method, family):
    held, ids = attached(family, method, both=True), models.tokens(2, 7)
    wanted = logits(held, ids, "b")
    new = held.detach("b")
    before = held.swap("a", new)
    assert torch.equal(logits(held, ids, "a"), wanted)
    held.swap("a", before)
    assert not torch.equal(logits(held, ids, "a"), wanted)
