"""Fused experts: what the laws of methods don't ask of them, on models that store them in every way."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig

import inlay
from inlay.base.attach import attach
from inlay.base.load import load
from inlay.core.cross_entropy import cross_entropy_sum
from inlay.errors import CompatibilityError, TargetError
from inlay.export.plan import planned
from inlay.io.safetensors import read_header
from inlay.model.adapter_set import AdapterSet
from inlay.model.changes import replaced
from inlay.modules.maps import maps_of
from tests.support import bases, models

GPT_OSS = GptOssConfig(
    vocab_size=models.VOCABULARY,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
"""Experts stored as (in, out), with biases and a gate of their own; its attention is its own too."""

LORA = inlay.Lora(r=3, lora_alpha=5)
METHODS = {
    "lora": LORA,
    "one parameter": inlay.Lora(r=3, lora_alpha=5, target_modules="down_proj,q_proj"),
    "pissa": inlay.Lora(r=3, lora_alpha=5, initializer="pissa"),
    "ranks": inlay.Lora(r=3, lora_alpha=5, rank_pattern={"experts.down_proj": 2}),
}


def model(family, dtype=torch.float32):
    if family != "gpt_oss":
        return models.model(family, dtype)
    torch.manual_seed(3)
    how = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    built = AutoModelForCausalLM.from_config(GPT_OSS, **how)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.to(dtype).eval()


everywhere = pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
with_methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def logits(held, ids, rows):
    with torch.no_grad(), held.using(rows):
        return held.module(input_ids=ids).logits


@everywhere
def test_a_parameter_that_holds_several_maps_gives_each(family):
    plain = model(family)
    found = {path: linear for path, linear in maps_of(plain).items() if linear.count}
    assert found
    for path, linear in found.items():
        stored = plain.get_parameter(path)
        assert tuple(linear.sizes.values()) == tuple(stored.shape)
        assert len(linear.each) == linear.count == len(stored)
        for one, tensor in zip(linear.each, stored, strict=True):
            assert torch.equal(one.as_stored(one.weight(torch.float32)), tensor)
        assert plain.get_submodule(linear.holder(path)) is linear.module
        params = {"A": torch.randn(linear.count, 2, 3)}
        assert torch.equal(linear.joined(linear.parts(params))["A"], params["A"])


@everywhere
@with_methods
def test_rows_take_their_own_adapter_in_every_expert(family, method):
    held, ids = AdapterSet(model(family, torch.float64)), models.tokens(4, 7)
    models.randomize(held.create(method, "a"), 1)
    models.randomize(held.create(inlay.Lora(r=2, lora_alpha=5, target_modules="gate_up_proj"), "b"), 2)
    models.randomize(held.create(inlay.Lora(r=2, lora_alpha=5, target_modules="k_proj"), "c"), 2)
    rows = ["a", None, "b", "c"]
    mixed = logits(held, ids, rows)
    for i, row in enumerate(rows):
        torch.testing.assert_close(mixed[i : i + 1], logits(held, ids[i : i + 1], row), atol=1e-10, rtol=1e-10)
        assert row is None or not torch.allclose(mixed[i : i + 1], logits(held, ids[i : i + 1], None))


@everywhere
@with_methods
def test_a_fresh_adapter_changes_nothing(family, method):
    held, ids = AdapterSet(model(family)), models.tokens(2, 7)
    before = logits(held, ids, None)
    held.create(method, "a")
    torch.testing.assert_close(logits(held, ids, "a"), before)
    held.detach("a")
    assert torch.equal(logits(held, ids, None), before)


@everywhere
def test_gradients_are_those_of_weights_with_the_change_in_them(family):
    """Against the model's own experts over W + scaling B A, formed for each expert and differentiated by torch."""
    held, ids = AdapterSet(model(family, torch.float64)), models.tokens(2, 7)
    adapter = models.randomize(
        held.create(inlay.Lora(r=3, lora_alpha=5, target_modules="gate_up_proj,down_proj"), "a"), 1
    )
    adapter.params = {path: {k: t.double() for k, t in p.items()} for path, p in adapter.params.items()}
    ours = held.parameters()
    cross_entropy_sum(held.module(input_ids=ids).logits, ids).backward()
    plain, leaves, changed = model(family, torch.float64), [], {}
    for path, params in adapter.params.items():
        A, B = (params[name].detach().clone().requires_grad_() for name in ("lora_A", "lora_B"))
        leaves += [A, B]
        change = 5 / 3 * torch.einsum("eor,eri->eoi", B, A)
        W = plain.get_parameter(path)
        changed[path] = W + (change.mT if held.maps[path].transposed else change)
    out = torch.func.functional_call(plain, changed, kwargs={"input_ids": ids})
    cross_entropy_sum(out.logits, ids).backward()
    for tensor, leaf in zip(ours, leaves, strict=True):
        torch.testing.assert_close(tensor.grad, leaf.grad, atol=1e-9, rtol=1e-7)


@everywhere
@with_methods
def test_saved_and_loaded_it_is_the_same_to_the_bit(family, method, tmp_path):
    held, ids = AdapterSet(model(family)), models.tokens(2, 7)
    models.randomize(held.create(method, "a"), 1).finish_()
    held.save("a", tmp_path, {})
    again = attach(model(family), tmp_path, "a")
    assert torch.equal(logits(again, ids, "a"), logits(held, ids, "a"))


def test_dropout_is_for_the_adapter_alone():
    held, ids = AdapterSet(models.model("mixtral")), models.tokens(2, 7)
    before = logits(held, ids, None)
    adapter = held.create(inlay.Lora(r=3, lora_dropout=0.5), "a")
    held.parameters()
    torch.testing.assert_close(held.module(input_ids=ids).logits.detach(), before)  # B is zero
    adapter.train_(False)
    models.randomize(adapter, 1).train_()
    assert not torch.allclose(held.module(input_ids=ids).logits, held.module(input_ids=ids).logits)


def test_a_run_on_bfloat16_files_generates_and_is_loaded(tmp_path):
    """The sizes are multiples of 8, which torch's grouped product of bfloat16 wants."""
    sizes = dict(hidden_size=16, intermediate_size=24, head_dim=8, num_attention_heads=2, num_key_value_heads=2)
    models.model("mixtral", torch.bfloat16, sizes=sizes).save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(12))
    for dtype, steps in (("bfloat16", 3), ("float32", 14)):
        base = load(tmp_path / "base", dtype=dtype)
        report = inlay.train(base, rows, method=LORA, output=tmp_path / dtype, max_steps=steps, learning_rate=0.02)
        assert report.trainable_parameters == base.layout.count(LORA)
        again = load(tmp_path / "base", dtype=dtype)
        again.attach(tmp_path / dtype)
        prompts = ["say 3", "say 4"]
        assert again.generate(prompts, dtype, max_new_tokens=5) == base.generate(prompts, dtype, max_new_tokens=5)
    assert report.loss < 4.0  # it was 4.6, of 97 tokens


@everywhere
@with_methods
def test_merged_it_is_a_checkpoint_that_says_the_same(family, method, tmp_path):
    """GPT-OSS has the experts of a parameter in one tensor, the others each for itself, under names of two kinds."""
    model(family).save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    base, ids = load(tmp_path / "base", dtype="float32"), models.tokens(2, 7)
    models.randomize(base.attach(method, "a"), 1)
    inlay.merge(base, "a", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, base.logits(ids, "a"), atol=1e-4, rtol=1e-4)
    before, after = (set(read_header(tmp_path / d / "model.safetensors").tensors) for d in ("base", "merged"))
    assert before == after


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_in_a_dtype_that_nothing_can_be_rounded_to_are_not_merged(family, tmp_path):
    model(family).save_pretrained(tmp_path)
    bases.tokenizer().save_pretrained(tmp_path)
    base = load(tmp_path, dtype="float32")
    adapter, tensors = base.attach(LORA, "a"), base.checkpoint.tensors
    assert planned(base, adapter)
    narrow = {n: e._replace(dtype="F8_E4M3") if "experts" in n else e for n, e in tensors.items()}
    base.checkpoint = dataclasses.replace(base.checkpoint, tensors=narrow)
    with pytest.raises(CompatibilityError, match=r"experts\.\w+_proj: F8_E4M3 of shape"):
        planned(base, adapter)


@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt_oss", "float32"), ("gpt_oss", "bfloat16"), ("mixtral", "bfloat16")]
)
def test_a_base_says_whether_its_experts_are_the_pages_of_its_file(family, dtype, tmp_path):
    """The pages grow no memory of the process; what transformers stacks, or what is widened, does."""
    model(family, torch.bfloat16).save_pretrained(tmp_path)
    bases.tokenizer().save_pretrained(tmp_path)
    base = load(tmp_path, dtype=dtype)
    experts = next(linear for linear in base.maps.values() if linear.kind == "experts")
    start = base.model.get_input_embeddings().weight.data_ptr()
    near = abs(experts.stored.data_ptr() - start) < (tmp_path / "model.safetensors").stat().st_size
    assert base.is_mapped == (family == "gpt_oss" and dtype == "bfloat16")
    assert near == base.is_mapped
    assert ("converted" in base.describe()) != base.is_mapped


def test_a_method_that_can_not_adapt_the_experts_says_so():
    with pytest.raises(TargetError, match="dora can't adapt the experts of this model"):
        attach(models.model("mixtral"), inlay.Dora(r=3))
    assert attach(models.model("mixtral"), inlay.Dora(r=3, target_modules="q_proj,v_proj"))
    with pytest.raises(TargetError, match="gate_up_proj is experts"):
        attach(models.model("mixtral"), inlay.Dora(r=3, target_modules="gate_up_proj"))


@everywhere
def test_experts_that_are_trained_whole_stand_in_the_place_of_the_base_s(family):
    held, ids = AdapterSet(model(family, torch.float64)), models.tokens(3, 7)
    whole = inlay.Lora(r=2, lora_alpha=5, target_modules="q_proj", modules_to_save="experts")
    models.randomize(held.create(whole, "a"), 1)
    models.randomize(held.create(LORA, "b"), 2)
    rows = ["a", None, "b"]
    mixed = logits(held, ids, rows)
    for i, row in enumerate(rows):
        torch.testing.assert_close(mixed[i : i + 1], logits(held, ids[i : i + 1], row), atol=1e-10, rtol=1e-10)
    plain = model(family, torch.float64)
    for path, params in held["a"].params.items():
        for name in replaced(held["a"].at(path)):
            plain.get_parameter(f"{path}.{name}").data.copy_(params[name])
    other = AdapterSet(plain)
    adapter = other.create(inlay.Lora(r=2, lora_alpha=5, target_modules="q_proj"), "a")
    for path, params in adapter.params.items():
        params.update(held["a"].params[path])
    adapter.params = adapter.params
    torch.testing.assert_close(logits(held, ids, "a"), logits(other, ids, "a"), atol=1e-10, rtol=1e-10)
    held.active = "a"
    tensors = held.parameters()
    cross_entropy_sum(held.module(input_ids=ids).logits, ids).backward()
    assert all(bool(tensor.grad.abs().sum() > 0) for tensor in tensors)


def test_experts_are_trained_whole_or_by_factors():
    with pytest.raises(TargetError, match="both whole and by factors"):
        attach(models.model("mixtral"), inlay.Lora(r=2, modules_to_save="experts"))
    assert attach(models.model("mixtral"), inlay.Full())


def test_experts_of_a_form_that_is_not_known_are_not_left_out_in_silence():
    class StrangeExperts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(4, 8, 8))

    net = torch.nn.Sequential(torch.nn.Linear(8, 8), StrangeExperts())
    with pytest.raises(
        TargetError, match=r"experts of a form that is not known here(.|\n)*1\.w(.|\n)*--target-modules 0"
    ):
        attach(net, inlay.Lora(r=2))
    assert attach(net, inlay.Lora(r=2, target_modules="0"))


def test_a_gate_of_one_output_is_not_among_all_linear_layers():
    """Qwen2-MoE's shared expert has one, on which no rank above 1 fits."""
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
    assert list(attach(net, inlay.Lora(r=4))["default"].params) == ["0"]
    assert list(attach(net, inlay.Lora(r=1, target_modules="1"))["default"].params) == ["1"]


def test_a_router_that_answers_with_a_choice_is_left_alone():
    class TopRouter(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).max(-1)

    net = torch.nn.Sequential(torch.nn.Linear(8, 8), TopRouter(8, 4))
    held, x = attach(net, inlay.Lora(r=2)), torch.randn(3, 8)
    assert list(held["default"].params) == ["0"]
    assert len(held.module(x)) == 2


@pytest.mark.parametrize("name", ["eva", "loftq"])
def test_an_initializer_that_needs_more_than_the_weights_of_experts_says_so(name, tmp_path):
    models.model("mixtral").save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    base, rows = load(tmp_path / "base", dtype="float32"), bases.jsonl(tmp_path / "rows.jsonl", bases.rows(12))
    base.original = base.checkpoint  # as if its attention were quantised
    method = inlay.Lora(r=2, initializer=name, target_modules="gate_up_proj")
    with pytest.raises(TargetError, match="gate_up_proj is experts"):
        inlay.train(base, rows, method=method, output=tmp_path / "out")


def test_a_parameter_that_this_model_does_not_have_is_refused(tmp_path):
    held = attach(models.model("mixtral"), LORA, "a")
    held.save("a", tmp_path, {})
    with pytest.raises(CompatibilityError, match="gate_up_proj of target_parameters"):
        attach(models.model("llama"), tmp_path)
