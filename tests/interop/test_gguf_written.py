"""A merged model as a GGUF file: its numbers, read by the `gguf` package, and what it says when it is read back as a base."""

import json

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer

import inlay
from inlay.errors import CompatibilityError
from inlay.export import ollama
from inlay.gguf import vocabulary, writing
from inlay.io.checkpoint import open_checkpoint
from inlay.text.template import render
from tests.support import bases, gguf_models, models
from tests.support.command import run
from tests.support.paths import DATA
from tests.templates.families import FAMILIES, tokenizer

gguf = pytest.importorskip("gguf")

BITS = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127}
"""How far a number may be off, as part of it, or of the largest of its block."""


def directory(path, architecture="llama", tied=True):
    """A model directory whose tokenizer a GGUF file can say."""
    made = gguf_models.model(architecture, tied)
    made.save_pretrained(path)
    tokens, merges = gguf_models.byte_tokens()
    own = {
        "tokens": tokens,
        "merges": merges,
        "model": "gpt2",
        "pre": "gpt-2",
        "eos_token_id": 0,
        "token_type": [3] * 3 + [1] * (len(tokens) - 3),
    }
    from inlay.gguf.tokenizer import files

    values = {f"tokenizer.ggml.{key}": value for key, value in own.items()} | {
        "tokenizer.chat_template": gguf_models.TEMPLATE
    }
    for name, content in files(values).items():
        (path / name).write_text(content)
    return path


@pytest.mark.parametrize("kind", writing.KINDS)
@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]
)
def test_a_merged_file_says_what_base_and_adapter_say(tmp_path, capsys, architecture, tied, kind):
    base = inlay.load(directory(tmp_path / "base", architecture, tied), dtype="float32")
    models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "mine"), seed=3, std=0.1)
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    status, _, err = run(
        capsys, "merge", tmp_path / "base", tmp_path / "mine", "--gguf", kind, "--output", tmp_path / "new"
    )
    assert status == 0, err
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["README.md", "inlay.json", "model.gguf"]
    back = inlay.load(tmp_path / "new" / "model.gguf", dtype="float32")
    ids = models.tokens(2, 9)
    wanted, found = base.logits(ids, "mine"), back.logits(ids, None)
    assert (wanted - found).abs().max() < 40 * BITS[kind] * wanted.abs().max()
    assert (wanted - base.logits(ids, None)).abs().max() > 4 * (wanted - found).abs().max()
    text = "the 12 theatres\n\n don't"
    assert back.tokenizer(text)["input_ids"] == base.tokenizer(text)["input_ids"]
    assert back.tokenizer.chat_template == base.tokenizer.chat_template


def test_matrices_are_rounded_once_and_norms_not_at_all(tmp_path):
    path = directory(tmp_path / "base")
    checkpoint = open_checkpoint(path)
    writing.write(checkpoint, tmp_path / "x.gguf", "q8_0", writing.described(checkpoint))
    made = {one.name: one for one in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    state = transformers.AutoModelForCausalLM.from_pretrained(path).state_dict()
    weight = state["model.layers.1.self_attn.v_proj.weight"].numpy()
    assert (
        made["blk.1.attn_v.weight"].data.tobytes()
        == gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0).tobytes()
    )
    q, heads = state["model.layers.0.self_attn.q_proj.weight"].numpy(), gguf_models.HEADS
    q = q.reshape(heads, 2, -1, q.shape[1]).swapaxes(1, 2).reshape(q.shape)
    assert (
        made["blk.0.attn_q.weight"].data.tobytes() == gguf.quants.quantize(q, gguf.GGMLQuantizationType.Q8_0).tobytes()
    )
    np.testing.assert_array_equal(made["output_norm.weight"].data, state["model.norm.weight"].numpy())
    assert "output.weight" not in made


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0}}, "rope_parameters"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window is 16"),
    ],
)
def test_what_a_file_can_not_say_is_refused(tmp_path, change, says):
    path = directory(tmp_path / "base")
    config = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompatibilityError, match=says):
        writing.described(open_checkpoint(path))


@pytest.mark.parametrize("name", ["byte_fallback"])
def test_a_tokenizer_of_scores_makes_the_same_tokens(name):
    size = Tokenizer.from_file(str(DATA / name / "tokenizer.json")).get_vocab_size()
    found = vocabulary.values(DATA / name, size + 3)
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.tokens"][-1] == f"[PAD{size + 2}]"


def test_a_tokenizer_that_no_file_can_say_is_refused(tmp_path):
    place = bases.directory(tmp_path / "base")
    content = json.loads((place / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (place / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CompatibilityError, match=r"tokenizer|no way of cutting"):
        vocabulary.values(place, 1000)


WRITTEN = (
    "chatml",
    "llama-3",
    "llama-3 as it first was",
    "mistral tekken",
    "qwen-2.5",
    "always open, with a newline at its end",
)
"""The families of templates that put fixed texts around messages."""


def in_ollama(template, messages):
    """What Ollama's language makes of the few expressions that are written, and what Go does with the rest of it."""
    start, _, rest = template.partition("{{- range $i, $_ := .Messages }}")
    made = [*strings(start)]
    body, _, answer = rest.partition("{{- if and $last")
    for number, message in enumerate(messages):
        branch = body.partition(f'eq .Role "{message["role"]}" }}}}')[2].partition("{{- ")[0]
        before, _, after = branch.partition("{{ .Content }}")
        made += [*strings(before), message["content"], *strings(after)]
        if number == len(messages) - 1 and message["role"] != "assistant":
            made += strings(answer.partition("}}")[2])
    return "".join(made)


def strings(text):
    return [json.JSONDecoder().raw_decode(part)[0] for part in text.split("{{ ")[1:] if part.startswith('"')]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_modelfile_says_what_the_chat_template_says_or_is_refused(tmp_path, family):
    own = tokenizer(FAMILIES[family])
    checkpoint = open_checkpoint(directory(tmp_path / "base"))
    if family not in WRITTEN:
        with pytest.raises(CompatibilityError, match=r"inlay export --for llama\.cpp"):
            ollama.modelfile(checkpoint, own, "adapter.gguf")
        return
    text = ollama.modelfile(checkpoint, own, "adapter.gguf")
    template = text.partition('TEMPLATE """')[2].partition('"""')[0]
    default = text.partition('SYSTEM """')[2].partition('"""')[0]
    assert text.startswith(f"FROM {tmp_path / 'base'}\nADAPTER ./adapter.gguf\n")
    talk = [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "two."},
        {"role": "user", "content": "three?"},
    ]
    for messages in (talk[:1], talk, [{"role": "system", "content": "four"}, *talk]):
        wanted = render(own, messages, add_generation_prompt=True)
        if default and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": default}, *messages]
        assert in_ollama(template, messages) == wanted


def test_a_modelfile_of_no_weights_or_of_no_end_is_refused(tmp_path):
    own, place = tokenizer(FAMILIES["chatml"]), directory(tmp_path / "base")
    checkpoint = open_checkpoint(place)
    own.eos_token = None
    with pytest.raises(CompatibilityError, match="no token ends an answer"):
        ollama.modelfile(checkpoint, own, "adapter.gguf")
    (place / "model.safetensors").unlink()
    with pytest.raises(CompatibilityError, match="names the weights of its base"):
        ollama.modelfile(checkpoint, own, "adapter.gguf")
