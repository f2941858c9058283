"""Against the real `transformers` with bitsandbytes: quantised checkpoints both ways, the same weights, the same logits."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import inlay
from inlay.base.quantize import quantize
from inlay.io.checkpoint import open_checkpoint
from inlay.modules.frozen import QuantizedLinear
from tests.support import bases, models, quantized

FAMILIES = ["llama", "llama_tied", "qwen3", "mistral"]

CONFIGS = {
    "nf4": dict(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "int8": dict(load_in_8bit=True, llm_int8_threshold=0.0),
}

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of versions to come


@pytest.fixture
def plain(tmp_path, request):
    """A model directory that blocks divide."""
    path = tmp_path / "plain"
    quantized.model(request.param).save_pretrained(path)
    bases.tokenizer().save_pretrained(path)
    return path


def theirs(path, dtype=torch.float32, **config):
    """The model as transformers loads it, on the processor: to be trained, since their layers round to bfloat16 otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = {"quantization_config": BitsAndBytesConfig(**config)} if config else {}
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map="cpu", **given).train()


def tensors_of(path):
    """Every tensor of a model directory."""
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("scheme", CONFIGS)
@pytest.mark.parametrize("plain", FAMILIES, indirect=True)
def test_what_they_saved_is_read_as_it_is(plain, tmp_path, scheme):
    model = theirs(plain, **CONFIGS[scheme])
    with torch.no_grad():
        ids = models.tokens(2, 9)
        expected = model(input_ids=ids).logits if scheme == "nf4" else None
    model.save_pretrained(tmp_path / "theirs")
    bases.tokenizer().save_pretrained(tmp_path / "theirs")
    base = inlay.load(tmp_path / "theirs", dtype="float32")
    assert base.scheme == scheme
    if expected is not None:  # in eight bits they quantise the inputs too
        with torch.no_grad():
            assert torch.allclose(base.model(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", CONFIGS)
@pytest.mark.parametrize("plain", FAMILIES, indirect=True)
def test_ours_has_the_same_tensors_as_theirs(plain, tmp_path, scheme):
    """All of them, but for the spaces at the end of a state."""
    theirs(plain, **CONFIGS[scheme]).save_pretrained(tmp_path / "theirs")
    quantize(open_checkpoint(plain), tmp_path / "ours", scheme)
    ours, others = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    assert ours.keys() == others.keys()
    for name, tensor in others.items():
        if ".quant_state." in name:
            states = [json.loads(bytes(t.tolist())) for t in (ours[name], tensor)]
            assert {**states[0], "dtype": ""} == {**states[1], "dtype": ""}, name
        elif tensor.is_floating_point() and name.endswith(
            ("norm.weight", "embed_tokens.weight", "lm_head.weight", ".bias")
        ):
            assert torch.equal(ours[name].float(), tensor.float()), (
                name
            )  # they store what they did not quantise as they computed
        else:
            assert torch.equal(ours[name].reshape(tensor.shape), tensor), name


@pytest.mark.parametrize("plain", FAMILIES, indirect=True)
def test_they_load_ours_and_say_the_same(plain, tmp_path):
    quantize(open_checkpoint(plain), tmp_path / "ours", "nf4")
    base, ids = inlay.load(tmp_path / "ours", dtype="bfloat16"), models.tokens(2, 9)
    assert any(isinstance(module, QuantizedLinear) for module in base.model.modules())
    with torch.no_grad():
        expected = theirs(tmp_path / "ours", torch.bfloat16)(input_ids=ids).logits.double()
        exact = inlay.load(tmp_path / "ours", dtype="float32").model(input_ids=ids).logits.double()
        actual = base.model(input_ids=ids).logits.double()
    rounding = (expected - exact).norm()  # theirs, of the same weights
    assert rounding <= 0.03 * exact.norm()
    assert (actual - exact).norm() <= 1.5 * rounding
