"""Merging into and out of quantised checkpoints: what is written is what was asked for, and what is lost is said."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from inlay import quant
from inlay.base.load import load
from inlay.core import blocks
from inlay.errors import CompatibilityError
from inlay.export import requantize
from inlay.export.merge import merge
from inlay.methods.lora import Lora
from tests.support import models, quantized
from tests.support.command import run_json
from tests.support.refusals import refused
from tests.support.tolerances import assert_close

METHOD = Lora(r=3, lora_alpha=5)


def held(path, std, family="llama", scheme="nf4"):
    """A quantised base with an adapter 'a' whose B has this spread."""
    directory, plain = quantized.directory(path / "base", family, scheme)
    base = load(directory, dtype="float32")
    models.randomize(base.create(METHOD, "a", seed=1), seed=11, std=std)
    return base, plain


def changed(base, path):
    params = base.adapters["a"].params[path]
    weight = base.linears[path].weight(torch.float32)
    return weight, weight + METHOD.scaling * params["lora_B"] @ params["lora_A"]


@pytest.mark.parametrize("scheme", quant.names())
@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
def test_a_quantised_base_becomes_plain(tmp_path, family, scheme):
    base, _ = held(tmp_path, 0.1, family, scheme)
    merge(base, "a", tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for path in base.adapters["a"].params:
        _, merged = changed(base, path)
        stored = model.get_submodule(path).weight
        assert_close(stored.T if base.linears[path].transposed else stored, merged, torch.bfloat16, 1)


def test_what_survives_is_measured_as_the_equation_says(tmp_path):
    base, _ = held(tmp_path, 0.2)
    found = requantize.merge_quantized(base, "a", tmp_path / "q", "nf4")
    made = load(tmp_path / "q", dtype="float32")
    products = np.zeros(3)
    for path, (cosine, error) in found.layers.items():
        before, merged = (tensor.double().numpy() for tensor in changed(base, path))
        got, wanted = made.linears[path].weight(torch.float32).double().numpy() - before, merged - before
        parts = np.array([(got * wanted).sum(), (got**2).sum(), (wanted**2).sum()])
        assert cosine == pytest.approx(parts[0] / np.sqrt(parts[1] * parts[2]), abs=1e-4)
        assert error == pytest.approx(np.sqrt(((got - wanted) ** 2).sum() / parts[2]), rel=1e-3)
        products += parts
    assert found.cosine == pytest.approx(products[0] / np.sqrt(products[1] * products[2]), abs=1e-4)
    assert requantize.MIN_COSINE < found.cosine < 1
    assert 0 < found.divergence < found.adapter_divergence


def test_a_change_that_is_erased_is_refused_and_nothing_is_written(tmp_path):
    base, _ = held(tmp_path, 0.02)
    with pytest.raises(
        CompatibilityError, match=r"nf4 would erase too much(.|\n)*cosine of 0\.(.|\n)*keep the adapter apart"
    ):
        requantize.merge_quantized(base, "a", tmp_path / "q", "nf4")
    assert not (tmp_path / "q").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    found = requantize.merge_quantized(base, "a", tmp_path / "q", "nf4", force=True)
    assert found.cosine < requantize.MIN_COSINE


def test_a_plain_base_is_compared_with_itself_quantised(tmp_path):
    from tests.support import bases

    quantized.model("llama").save_pretrained(tmp_path / "plain")
    bases.tokenizer().save_pretrained(tmp_path / "plain")
    base = load(tmp_path / "plain", dtype="float32")
    adapter = models.randomize(base.create(METHOD, "a", seed=1), seed=11, std=0.2)
    found = requantize.merge_quantized(base, "a", tmp_path / "q", "nf4")
    assert found.cosine > requantize.MIN_COSINE
    for tensors in adapter.params.values():
        tensors["lora_B"].zero_()
    none = requantize.merge_quantized(base, "a", tmp_path / "r", "nf4", force=True)
    assert none.cosine == 1.0  # no change was wanted, and none was made


@pytest.mark.parametrize("shape", [(7, 64), (33, 192), (128, 256)])
def test_refined_constants_are_nearer(shape):
    generator = torch.Generator().manual_seed(3)
    for weight in (torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) ** 3):
        scheme = quant.find("nf4")
        plain, refined = (
            scheme.open(make(weight)).dequantize(torch.float32) for make in (scheme.quantize, scheme.refine)
        )
        assert (refined - weight).norm() < 0.99 * (plain - weight).norm()


def test_constants_by_least_squares_are_where_the_error_is_smallest():
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
    absmax, code = blocks.fit_constants(weight, blocks.nf4_codebook()), blocks.nf4_codebook()

    def errors(constants):
        return (blocks.dequantize(blocks.nearest(weight, constants, code), constants, code) - weight).square().sum(1)

    for factor in (0.99, 1.01):
        assert (errors(absmax) <= errors(absmax * factor) + 1e-6).float().mean() >= 0.6


def test_zeros_stay_zeros():
    weight = torch.zeros(3, 128)
    weight[1, :64] = 1.5
    scheme = quant.find("nf4")
    made = scheme.open(scheme.refine(weight)).dequantize(torch.float32)
    assert torch.equal(made == 0, weight == 0)
    assert torch.allclose(made, weight, rtol=0.02)


def test_the_command_says_what_survived(tmp_path, capsys):
    base, _ = held(tmp_path, 0.2)
    (tmp_path / "a").mkdir()
    base.save("a", tmp_path / "a", {})
    given = ["merge", tmp_path / "base", tmp_path / "a", "--output"]
    made = run_json(capsys, *given, tmp_path / "q", "--quantize", "nf4", "--keep", "q_proj")
    assert made["cosine"] > 0.9
    assert len(made["layers"]) == 21
    says = ["--keep says what is not quantised, and nothing is"]
    refused(capsys, *given, tmp_path / "r", "--keep", "q_proj", says=says, status=2)
