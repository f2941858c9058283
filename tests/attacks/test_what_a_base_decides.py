"""What the files of a base may not decide: how answers are made, which code computes them, what is left out of them."""

import json

import pytest
import torch

import inlay
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
