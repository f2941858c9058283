"""A GGUF file as a base: it computes what `transformers` does with its weights, is trained over, and stays as it is."""

import json

import pytest
import torch

import inlay
from inlay.errors import CompatibilityError, ConfigError, FormatError, ShapeError, UnknownNameError
from inlay.gguf.opening import open_base, open_outline
from inlay.io.fingerprint import fingerprint
from inlay.modules.frozen import Quantized, QuantizedEmbedding, QuantizedLinear
from tests.support import bases, gguf_models
from tests.support.tolerances import LOGITS

IDS = torch.tensor([[5, 60, 71, 258, 3, 99, 17, 200, 31, 8, 122]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))


def written(path, architecture="llama", tied=True, kinds=gguf_models.ALL_KINDS, **how):
    made = gguf_models.model(architecture, tied)
    gguf_models.write(path, made, kinds, **how)
    return made


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", gguf_models.CONFIGS)
def test_logits_are_those_of_transformers_with_the_files_weights(tmp_path, architecture, tied):
    theirs = written(tmp_path / "m.gguf", architecture, tied)
    base = inlay.load(tmp_path / "m.gguf", dtype="float32")
    with torch.no_grad():
        ours, expected = base.model(input_ids=IDS).logits, theirs(input_ids=IDS).logits
    assert (ours - expected).abs().max() < LOGITS * expected.abs().max()
    assert base.num_weights == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize("kind", gguf_models.ALL_KINDS)
def test_every_weight_of_a_type_is_the_files_in_every_dtype(tmp_path, kind):
    theirs = dict(written(tmp_path / "m.gguf", kinds=(kind,)).named_parameters())
    base = inlay.load(tmp_path / "m.gguf", dtype="float32")
    matrices = {path: module.matrix for path, module in base.model.named_modules() if isinstance(module, Quantized)}
    assert len(matrices) == 2 + 7 * gguf_models.LAYERS
    for path, matrix in matrices.items():
        weight = theirs["model.embed_tokens.weight" if path == "lm_head" else f"{path}.weight"]
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(matrix.dequantize(dtype), weight.to(dtype))
            part = torch.empty(7, weight.shape[1], dtype=dtype)
            matrix.read(11, part)
            assert torch.equal(part, weight[11:18].to(dtype))
        ids = torch.tensor([3, 60, 3, 0])
        assert torch.equal(matrix.take(ids, torch.float32), weight[ids])
        for beyond in (-1, len(weight)):
            with pytest.raises((ShapeError, IndexError)):
                matrix.take(torch.tensor([0, beyond + (beyond < 0) * -len(weight)]), torch.float32)


@pytest.mark.parametrize("kind", gguf_models.ALL_KINDS)
@pytest.mark.parametrize("tokens", [1, 3, 16, 40])
def test_products_forward_and_back_are_those_of_the_weight(tmp_path, kind, tokens):
    written(tmp_path / "m.gguf", kinds=(kind,))
    base = inlay.load(tmp_path / "m.gguf", dtype="float32")
    for path in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        layer = base.model.get_submodule(path)
        weight = layer.matrix.dequantize(torch.float32)
        x = torch.randn(tokens, weight.shape[1], requires_grad=True)
        y = layer(x)
        with torch.no_grad():
            assert torch.allclose(layer(x), x @ weight.T, rtol=1e-4, atol=1e-4)
        assert torch.allclose(y, x @ weight.T, rtol=1e-4, atol=1e-4)
        g = torch.randn_like(y)
        assert torch.allclose(torch.autograd.grad(y, x, g)[0], g @ weight, rtol=1e-4, atol=1e-4)


def test_nothing_of_the_file_is_copied(tmp_path):
    written(tmp_path / "m.gguf")
    before = (tmp_path / "m.gguf").read_bytes()
    base = inlay.load(tmp_path / "m.gguf")
    assert isinstance(base.model.get_input_embeddings(), QuantizedEmbedding)
    assert isinstance(base.model.get_output_embeddings(), QuantizedLinear)
    assert base.model.get_input_embeddings().matrix is base.model.get_output_embeddings().matrix
    assert sum(parameter.numel() for parameter in base.model.parameters()) == gguf_models.WIDTH * (
        2 * gguf_models.LAYERS + 1
    )
    beside = sum(file.stat().st_size for file in base.checkpoint.directory.iterdir())
    assert beside < 60_000 < len(before)
    assert (tmp_path / "m.gguf").read_bytes() == before


def test_an_adapter_learns_is_kept_and_answers_again(tmp_path):
    written(tmp_path / "m.gguf", kinds=("Q8_0", "Q4_K"))
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "the 12"}]}
        for n in range(8)
    ]
    bases.jsonl(tmp_path / "rows.jsonl", rows)
    base = inlay.load(tmp_path / "m.gguf", dtype="float32")
    losses = []
    inlay.train(
        base,
        tmp_path / "rows.jsonl",
        output=tmp_path / "a",
        max_steps=6,
        batch_size=4,
        learning_rate=3e-3,
        on_step=lambda progress: losses.append(progress.losses[-1]),
    )
    assert losses[-1] < 0.8 * losses[0]
    record = json.loads((tmp_path / "a" / "inlay.json").read_text())
    assert record["base"]["stored"] == "GGUF: Q4_K, Q8_0"
    with torch.no_grad():
        after = base.model(input_ids=IDS).logits
        with base.using(None):
            before = base.model(input_ids=IDS).logits
    with pytest.raises(CompatibilityError, match="nothing is merged into a GGUF file"):
        inlay.merge(base, "a", output=tmp_path / "merged")
    again = inlay.load(tmp_path / "m.gguf", dtype="float32")
    again.attach(tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=IDS).logits, after)
    assert (after - before).abs().max() > 0.1


def test_the_fingerprint_covers_every_weight(tmp_path):
    written(tmp_path / "m.gguf")
    whole = open_base(tmp_path / "m.gguf")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    for entry in (*whole.tensors.values(),):
        if entry.file.suffix != ".gguf":
            continue
        changed = content.copy()
        changed[entry.stop - 1] ^= 1
        (tmp_path / "n.gguf").write_bytes(changed)
        assert fingerprint(open_base(tmp_path / "n.gguf")).weights != fingerprint(whole).weights
    (tmp_path / "n.gguf").write_bytes(content)
    assert fingerprint(open_base(tmp_path / "n.gguf")) == fingerprint(whole)


def test_a_directory_with_one_file_is_that_file(tmp_path):
    (tmp_path / "d").mkdir()
    written(tmp_path / "d" / "m.gguf")
    assert open_base(tmp_path / "d").packed == open_base(tmp_path / "d" / "m.gguf").packed
    assert open_outline(tmp_path / "d").config["hidden_size"] == gguf_models.WIDTH
    (tmp_path / "d" / "n.gguf").write_bytes((tmp_path / "d" / "m.gguf").read_bytes())
    with pytest.raises(UnknownNameError, match="several GGUF files"):
        open_base(tmp_path / "d")
    with pytest.raises(UnknownNameError, match="no such file"):
        open_base(tmp_path / "x.gguf")


def test_texts_become_tokens_as_the_file_says(tmp_path):
    written(tmp_path / "m.gguf")
    written(tmp_path / "n.gguf", pre="smollm")
    tokenizer = inlay.load(tmp_path / "m.gguf").tokenizer
    text = "the Thé\n  12345 <end>日本"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids[0] == gguf_models.byte_tokens()[0].index("the")
    assert 0 in ids
    assert tokenizer.convert_tokens_to_ids("12") in ids
    assert tokenizer.convert_tokens_to_ids("12") not in inlay.load(tmp_path / "n.gguf").tokenizer(text)["input_ids"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|user|>a<end><|answer|>"


def count(writer, key, number):
    """Say another number than was said."""
    del writer.kv_data[0][key]
    writer.add_uint32(key, number)


def refused(tmp_path, error, words, **how):
    written(tmp_path / "m.gguf", **how)
    with pytest.raises(error, match=words):
        inlay.load(tmp_path / "m.gguf")


def test_what_is_not_known_is_refused_by_name(tmp_path):
    refused(tmp_path, CompatibilityError, "logit_scale", change=lambda w: w.add_float32("llama.logit_scale", 2.0))
    refused(
        tmp_path,
        CompatibilityError,
        "rope.scaling.type is 'yarn'",
        change=lambda w: w.add_string("llama.rope.scaling.type", "yarn"),
    )
    refused(tmp_path, CompatibilityError, "rope.dimension_count is 32", change=lambda w: w.add_rope_dimension_count(32))
    refused(tmp_path, CompatibilityError, "pre is 'tekken'", pre="tekken")
    refused(tmp_path, CompatibilityError, "a part of a model", change=lambda w: w.add_uint16("split.count", 2))
    refused(
        tmp_path,
        CompatibilityError,
        "blk.1.ffn_gate_inp",
        rename=lambda n: n.replace("blk.1.ffn_up", "blk.1.ffn_gate_inp"),
    )
    refused(tmp_path, CompatibilityError, "type Q5_0", kinds=("Q8_0", "Q5_0"))
    written(tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match="can't be quantised once more"):
        inlay.load(tmp_path / "m.gguf", quantize="nf4")


def test_what_contradicts_itself_is_refused(tmp_path):
    refused(
        tmp_path,
        FormatError,
        "does not hold all weights",
        rename=lambda n: n.replace("blk.1.ffn_up", "blk.2.ffn_up"),
    )
    refused(tmp_path, FormatError, "num_hidden_layers is 0", change=lambda w: count(w, "llama.block_count", 0))
    refused(tmp_path, FormatError, "tokenizer", change=lambda w: w.add_pad_token_id(9999))


def test_the_licence_of_a_file_is_its_own_else_the_card_s_beside_it(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n")
    written(tmp_path / "m.gguf")
    assert inlay.load(tmp_path / "m.gguf").about_base["base"]["license"] == "mit"
    written(tmp_path / "m.gguf", change=lambda writer: writer.add_license("CC-BY-ND-4.0"))
    assert inlay.load(tmp_path / "m.gguf").about_base["base"]["license"] == "cc-by-nd-4.0"
