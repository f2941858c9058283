"""What the files of a base may not decide: how answers are made, which code computes them, what is left out of them."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inlay
from inlay.errors import CompatibilityError, FormatError
from inlay.io import configuration
from tests.support.command import run


def change(path, **values):
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (before | values).items() if value is not ...}))


def ask(place):
    return ["generate", place / "base", "--prompt", "say 3", "--max-new-tokens", 2]


SETTINGS = [
    {"repetition_penalty": 7.0},
    {"no_repeat_ngram_size": 1},
    {"num_beams": 3, "early_stopping": True},
    {"num_beams": 4, "num_return_sequences": 2},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"do_sample": True, "temperature": 9.0, "top_p": 0.9},
    {"min_new_tokens": 9},
    {"max_length": 3},
    {"max_time": 0.0},
    {"stop_strings": [" ", "a"]},
    {"return_dict_in_generate": True, "output_scores": True},
    {"prompt_lookup_num_tokens": 3},
    {"suppress_tokens": list(range(3, 60))},
    {"begin_suppress_tokens": list(range(3, 60))},
    {"bad_words_ids": [[number] for number in range(3, 60)]},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": 2},
    {"sequence_bias": [[[9], 50.0]]},
    {"guidance_scale": 3.0},
    {"cache_implementation": "static"},
    {"token_healing": True},
    {"watermarking_config": {"bias": 30.0}},
    {"exponential_decay_length_penalty": [1, 9.0]},
]
"""Settings of generation_config.json that would make other answers, or none."""


@pytest.fixture(scope="module")
def greedy(home):
    """What the base answers by itself."""
    return inlay.load(home / "base").generate(["say 3", "say 14 and 7"], max_new_tokens=7)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_generation_settings_of_a_file_do_not_change_the_likeliest_tokens(place, greedy, settings):
    change(place / "base" / "generation_config.json", **settings)
    base = inlay.load(place / "base")
    assert base.generate(["say 3", "say 14 and 7"], max_new_tokens=7) == greedy
    base.attach(place / "good", "good")
    mixed = base.generate(["say 3", "say 14 and 7"], [None, "good"], max_new_tokens=7)
    assert mixed[0] == greedy[0]


def test_generation_settings_in_the_configuration_do_not_either(place, greedy):
    (place / "base" / "generation_config.json").unlink()
    change(place / "base" / "config.json", num_beams=3, repetition_penalty=7.0, no_repeat_ngram_size=1)
    assert inlay.load(place / "base").generate(["say 3", "say 14 and 7"], max_new_tokens=7) == greedy


def test_the_roles_of_tokens_in_the_settings_are_followed(place):
    change(place / "base" / "generation_config.json", num_beams=4, eos_token_id=[2, 5])
    assert inlay.load(place / "base").end_tokens == [2, 5]


@pytest.mark.parametrize(
    "name", ["flash_attention_2", "flash_attention_3", "flex_attention", "eager", "nobody/kernel:f"]
)
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_the_attention_that_a_file_names_is_not_the_one_that_computes(place, greedy, key, name):
    change(place / "base" / "config.json", **{key: name}, experts_implementation="nobody/experts")
    config = configuration.read(place / "base")
    assert (config._attn_implementation, config._experts_implementation) == (None, None)
    base = inlay.load(place / "base")
    assert base.model.config._attn_implementation == "sdpa"
    assert base.generate(["say 3", "say 14 and 7"], max_new_tokens=7) == greedy


def test_code_beside_a_base_does_not_run(place, capsys):
    (place / "base" / "modeling_mine.py").write_text("raise SystemExit('ran')")
    change(place / "base" / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine", "AutoConfig": "x.C"})
    change(place / "base" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_mine.T", None]})
    status, out, err = run(capsys, *ask(place))
    assert status == 0, err
    assert "ran" not in out
    change(place / "base" / "config.json", model_type="mine")
    status, _, err = run(capsys, *ask(place))
    assert status == 1
    assert "no causal language model of this directory" in err


def test_settings_that_can_not_be_read_are_refused_in_words(place, capsys):
    (place / "base" / "generation_config.json").write_text("[1, 2")
    status, _, err = run(capsys, *ask(place))
    assert (status, "Traceback" in err) == (0, False) or "error: " in err


def test_the_answers_of_the_cases_differ_where_settings_are_followed(home, greedy):
    """The settings above are such that a model which follows them says something else."""
    base = inlay.load(home / "base")
    ids = torch.tensor([base.tokenizer("say 3")["input_ids"]])
    plain = base.model.generate(input_ids=ids, max_new_tokens=7, do_sample=False)
    other = base.model.generate(input_ids=ids, max_new_tokens=7, do_sample=False, repetition_penalty=7.0)
    assert plain.tolist() != other.tolist()


def rewrite(place, **tensors):
    """Put these tensors into the weights of a base of one file, beside those that it has."""
    file = place / "other" / "model.safetensors"
    save_file(load_file(file) | tensors, file, {"format": "pt"})


def test_weights_of_more_layers_than_the_configuration_has_are_refused(place, capsys):
    change(place / "other" / "config.json", num_hidden_layers=2)
    status, _, err = run(capsys, "generate", place / "other", "--prompt", "a")
    assert status == 1
    for text in ("more layers than its configuration says", "num_hidden_layers", "hint: "):
        assert text in err, err
    change(place / "other" / "config.json", num_hidden_layers=4)
    status, _, err = run(capsys, "generate", place / "other", "--prompt", "a")
    assert status == 1
    assert "the rest would be random" in err


def test_weights_of_biases_that_the_configuration_does_not_have_are_refused(place, capsys):
    change(place / "other" / "config.json", attention_bias=False)
    status, _, err = run(capsys, "generate", place / "other", "--prompt", "a")
    assert status == 1
    assert "q_proj.bias is not used" in err


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        "model.layers.0.mlp.up_proj.SCB",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    ],
)
def test_weights_that_would_change_a_layer_are_refused(place, name):
    """Scales of weights that the configuration does not call quantised, norms of another architecture, an adapter."""
    rewrite(place, **{name: torch.ones(4)})
    with pytest.raises(FormatError, match=rf"leaves out(.|\n)*{name} is not used"):
        inlay.load(place / "other")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64])
def test_weights_that_are_whole_numbers_are_refused(place, dtype):
    """What they are multiplied with is written nowhere."""
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite(place, **{name: torch.ones(20, 28).to(dtype)})
    with pytest.raises(FormatError, match=rf"whole numbers for weights(.|\n)*{name}"):
        inlay.load(place / "other")


def test_the_form_of_answers_that_a_configuration_asks_for_is_not_followed(place):
    wanted = inlay.load(place / "other").generate(["say 3"], max_new_tokens=3)
    change(place / "other" / "config.json", return_dict=False)
    assert inlay.load(place / "other").generate(["say 3"], max_new_tokens=3) == wanted


def test_weights_that_a_model_has_no_place_for_are_passed_over(place):
    extra = {
        "vision_tower.layers.0.weight": torch.ones(3),
        "score.weight": torch.ones(2, 20),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "model.layers.0.self_attn.masked_bias": torch.ones(1),
        "model.layers.0.mlp.up_proj.total_ops": torch.ones(1),
    }
    wanted = inlay.load(place / "other").generate(["say 3"], max_new_tokens=3)
    rewrite(place, **extra)
    assert inlay.load(place / "other").generate(["say 3"], max_new_tokens=3) == wanted


def test_a_tokenizer_that_needs_a_package_names_it(place, capsys, monkeypatch):
    (place / "other" / "tokenizer.json").unlink()
    (place / "other" / "tokenizer.model").write_bytes(b"a model of sentencepiece")
    change(place / "other" / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, find=importlib.util.find_spec: None if name == "sentencepiece" else find(name),
    )
    status, _, err = run(capsys, "generate", place / "other", "--prompt", "a")
    assert status == 1
    assert "pip install sentencepiece" in err


def without_record(place, named):
    (place / "good" / "inlay.json").unlink()
    change(place / "good" / "adapter_config.json", base_model_name_or_path=named)


@pytest.mark.parametrize("command", ["generate", "merge"])
def test_an_adapter_that_names_another_base_is_not_used_without_a_word(place, capsys, command):
    without_record(place, "acme/quite-another-8B")
    flags = {
        "generate": ["--prompt", "a", "--adapter", place / "good"],
        "merge": [place / "good", "--output", place / "m"],
    }
    with pytest.warns(UserWarning, match="acme/quite-another-8B.*nothing tells whether they are the same"):
        status, _, err = run(capsys, command, place / "base", *flags[command])
    assert status == 0, err


@pytest.mark.parametrize("named", [None, "", "base", "acme/base", "BASE"])
def test_an_adapter_that_names_this_base_or_none_is_used(place, named):
    without_record(place, named)
    inlay.load(place / "base").attach(place / "good")  # a warning would be an error


def test_two_names_on_the_hub_that_differ_are_refused_and_forms_of_one_are_said(place):
    base = inlay.load(place / "base")
    base.checkpoint = dataclasses.replace(base.checkpoint, name="acme/Tiny-1B", reference="acme/Tiny-1B")
    without_record(place, "acme/Tiny-2B")
    with pytest.raises(CompatibilityError, match=r"names another base\n.*acme/Tiny-2B.*acme/Tiny-1B"):
        base.attach(place / "good")
    change(place / "good" / "adapter_config.json", base_model_name_or_path="others/tiny-1b-bnb-4bit")
    with pytest.warns(UserWarning, match="others/tiny-1b-bnb-4bit"):
        base.attach(place / "good")


CHANGES = {
    "num_attention_heads": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 5},
    "rms_norm_eps": {"rms_norm_eps": 0.1},
    "hidden_act": {"hidden_act": "relu"},
    "rope_theta": {"rope_parameters": {"rope_theta": 77.0, "rope_type": "default"}},
    "eos_token_id": {"eos_token_id": 5},
}


@pytest.mark.parametrize("name", ["rms_norm_eps", "hidden_act", "rope_theta", "eos_token_id"])
def test_a_base_of_the_same_weights_that_computes_something_else_is_refused_by_name(place, capsys, name):
    change(place / "base" / "config.json", **CHANGES[name])
    status, _, err = run(capsys, *ask(place), "--adapter", place / "good")
    assert status == 1
    assert name in err
    assert "--force" in err
    status, _, err = run(capsys, *ask(place), "--adapter", place / "good", "--force")
    assert status == 0, err


def test_a_record_of_before_means_what_it_meant(place, capsys):
    record = json.loads((place / "good" / "inlay.json").read_text())
    (place / "good" / "inlay.json").write_text(json.dumps({key: record[key] for key in record if key != "computes"}))
    change(place / "base" / "config.json", **CHANGES["rms_norm_eps"])
    status, _, err = run(capsys, *ask(place), "--adapter", place / "good")
    assert status == 0, err


def test_an_adapter_names_its_base_so_that_it_is_found(place):
    config = json.loads((place / "good" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).is_absolute()
    assert (Path(config["base_model_name_or_path"]) / "config.json").is_file()
    assert "base_model:" not in (place / "good" / "README.md").read_text()
