"""The laws on a CUDA device: what is computed there is what the CPU computes. They need a device, and are skipped without one."""

import pytest
import torch

import inlay
from inlay.base.load import load
from inlay.base.quantize import quantize
from inlay.io.checkpoint import open_checkpoint
from inlay.tasks import _packed as loss
from inlay.text.mask import Example
from tests.support import bases, models, quantized
from tests.support.cases import every_variant, fits
from tests.support.tolerances import assert_close

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

DEPTH = 3 * 7 * 28
FAMILIES = ("llama", "llama_tied", "qwen3", "gpt2", "gemma3")
OTHERS = ("gpt_neox", "mixtral", "qwen3_moe")


def both(directory, **how):
    """The base on the CPU and on the device."""
    return load(directory, dtype="float32", **how), load(directory, dtype="float32", device="cuda", **how)


def on_cpu(value):
    return value.detach().cpu()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_computes_on_a_device_what_it_computes_on_the_cpu(tmp_path, family):
    here, there = both(bases.directory(tmp_path / "base", family))
    ids = models.tokens(3, 9)
    assert_close(on_cpu(there.logits(ids.cuda(), None)), here.logits(ids, None), torch.float32, DEPTH)
    for seed, (name, method) in enumerate(every_variant()):
        if not fits(method, family):
            continue
        for base in (here, there):
            models.randomize(base.attach(method, name), seed=seed)
        assert_close(on_cpu(there.logits(ids.cuda(), name)), here.logits(ids, name), torch.float32, DEPTH)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_mixed_batch_on_a_device_is_its_rows_one_by_one(tmp_path, family):
    base = load(bases.directory(tmp_path / "base", family), dtype="float32", device="cuda")
    for seed, (name, method) in enumerate(every_variant()):
        if fits(method, family):
            models.randomize(base.attach(method, name), seed=seed)
    names = [None, *base.adapters, None]
    ids = models.tokens(len(names), 7).cuda()
    mixed = on_cpu(base.logits(ids, names))
    for i, name in enumerate(names):
        assert_close(mixed[i : i + 1], on_cpu(base.logits(ids[i : i + 1], name)), torch.float32, DEPTH)


@pytest.mark.parametrize("family", FAMILIES + OTHERS)
def test_losses_and_gradients_on_a_device_are_those_of_the_cpu(tmp_path, family):
    rows = [
        Example(tuple(models.tokens(1, n, seed=n)[0].tolist()), (False, *[True] * (n - 1)), "row") for n in (9, 5, 7)
    ]
    found = []
    for base in both(bases.directory(tmp_path / "base", family)):
        adapter = models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "it"), seed=1)
        base.active = "it"
        tensors = adapter.train_()
        made = loss.loss_of(base, rows)
        found.append([on_cpu(made), *map(on_cpu, torch.autograd.grad(made, tensors))])
        assert loss.unpacked_because(base) is None or family == "gpt2"
    for ours, expected in zip(*reversed(found), strict=True):
        size = expected.abs().max().clamp(min=1)  # a sum is rounded as its largest terms are
        # every layer there and back; and both sides are rounded, so that they may be twice as far apart as one is from the truth
        assert_close(ours / size, expected / size, torch.float32, 4 * 2 * DEPTH)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_quantised_base_on_a_device_computes_what_it_computes_on_the_cpu(tmp_path, family, scheme):
    directory, _ = quantized.directory(tmp_path / "base", family, scheme)
    here, there = both(directory)
    ids = models.tokens(3, 9)
    for base in (here, there):
        models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "it"), seed=1)
    for name in (None, "it"):
        assert_close(on_cpu(there.logits(ids.cuda(), name)), here.logits(ids, name), torch.float32, 3 * 7 * 128)


def test_a_base_whose_weights_travel_to_the_device_computes_the_same(tmp_path):
    """64 layers, of which the device may hold a few at a time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=24, num_attention_heads=4, vocab_size=97)
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path / "plain")
    bases.tokenizer().save_pretrained(tmp_path / "plain")
    quantize(open_checkpoint(tmp_path / "plain"), tmp_path / "base", "nf4")
    whole = load(tmp_path / "base", dtype="float32", device="cuda")
    ids = models.tokens(2, 9).cuda()
    expected = whole.logits(ids, None)
    part = load(tmp_path / "base", dtype="float32", device="cuda", device_memory=4_000_000)
    assert_close(on_cpu(part.logits(ids, None)), on_cpu(expected), torch.float32, 24 * 7 * 512)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_device_generates_and_saves_what_the_cpu_reads(tmp_path, family):
    here, there = both(bases.directory(tmp_path / "base", family))
    models.randomize(there.attach(inlay.Lora(r=3, lora_alpha=5), "it"), seed=1)
    (tmp_path / "it").mkdir()
    there.save("it", tmp_path / "it", {})
    here.attach(tmp_path / "it", "it")
    texts = ["say it", "say", "say it it it"]
    assert there.generate(texts, "it", max_new_tokens=6) == here.generate(texts, "it", max_new_tokens=6)
    assert there.generate(texts, [None, "it", None], max_new_tokens=6) == here.generate(
        texts, [None, "it", None], max_new_tokens=6
    )


def test_training_on_a_device_follows_the_cpu(tmp_path):
    directory = bases.directory(tmp_path / "base")
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(40))
    losses = []
    for number, base in enumerate(both(directory)):
        out = tmp_path / f"out{number}"
        report = inlay.train(base, rows, method=inlay.Lora(r=3), output=out, max_steps=12, batch_size=4)
        losses.append((report.loss, report.eval_loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
