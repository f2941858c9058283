"""Models and adapters from strangers, whose files hold what no writer writes: each a clear error, nothing run, nothing left."""

import json

import pytest

from inlay.formats.peft import CONFIG, TENSORS
from inlay.io.records import RECORD
from tests.support.command import run
from tests.support.refusals import generate, refused, train

DEEP = "[" * 200_000


def change(path, **values):
    """Write other values into a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CONFIGS = [
    ("r", "4"),
    ("r", True),
    ("r", 0),
    ("r", 1e300),
    ("lora_alpha", "32"),
    ("lora_alpha", 1e300),
    ("lora_alpha", float("nan")),
    ("lora_alpha", 0),
    ("lora_alpha", None),
    ("lora_dropout", [0]),
    ("use_rslora", "yes"),
    ("rank_pattern", [1]),
    ("rank_pattern", {"q_proj": "2"}),
    ("rank_pattern", {"(": 2}),
    ("alpha_pattern", {"q_proj": None}),
    ("target_modules", 5),
    ("target_modules", [5]),
    ("exclude_modules", {"a": 1}),
    ("layers_to_transform", "all"),
    ("base_model_name_or_path", 5),
]


@pytest.mark.parametrize(("key", "value"), CONFIGS)
def test_an_adapter_whose_configuration_has_values_of_another_kind(place, capsys, key, value):
    change(place / "good" / CONFIG, **{key: value})
    for arguments in (generate(place, "good"), ["inspect", place / "good"]):
        refused(capsys, *arguments, says=["this adapter says what can't be", CONFIG, "hint: "])


def test_an_adapter_whose_pattern_never_ends(place, capsys):
    change(place / "good" / CONFIG, target_modules="(.|.)*(.|.)*(.|.)*[X-Z]")
    refused(capsys, *generate(place, "good"), says=["takes too long"])


RECORDS = [
    ("base", "x"),
    ("base", None),
    ("base", {"weights": 5}),
    ("data", [1]),
    ("training", "yesterday"),
    ("training", {"eval_loss": "low"}),
]


@pytest.mark.parametrize(("key", "value"), RECORDS)
def test_a_record_with_values_of_another_kind(place, capsys, key, value):
    change(place / "good" / RECORD, **{key: value})
    for arguments in (generate(place, "good"), ["inspect", place / "good"]):
        refused(capsys, *arguments, says=["this adapter says what can't be", RECORD])


@pytest.mark.parametrize("record", [{}, {"training": {"steps": 3}}, {"training": {"eval_loss": 1}, "data": {}}])
def test_a_record_may_lack_any_key(place, capsys, record):
    (place / "good" / RECORD).write_text(json.dumps({"format": 1} | record))
    assert run(capsys, *generate(place, "good"))[0] == 0
    status, out, err = run(capsys, "inspect", place / "good", "--json")
    assert status == 0, err
    assert "trained   " in out


@pytest.mark.parametrize("name", [CONFIG, RECORD])
def test_an_adapter_of_brackets(place, capsys, name):
    (place / "good" / name).write_text(DEEP)
    refused(capsys, *generate(place, "good"), says=["not JSON", name])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_model_of_brackets(place, capsys, name):
    (place / "base" / name).write_text(DEEP)
    refused(capsys, *train(place), says=["not JSON", name])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [DEEP, "[]", "{}", "5"])
def test_a_tokenizer_of_brackets(place, capsys, name, content):
    (place / "base" / name).write_text(content)
    if (name, content) == ("tokenizer_config.json", "{}"):
        refused(capsys, *train(place), says=["no end token"])
    else:
        refused(capsys, *train(place), says=["no tokenizer that transformers can read"])


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
HEADERS = [
    (DEEP, "not JSON"),
    (json.dumps({"w": ENTRY | {"dtype": []}}), "its entry is not"),
    (json.dumps({"w": ENTRY | {"dtype": {}}}), "its entry is not"),
    (json.dumps({"w": ENTRY | {"shape": [True, 6]}}), "its entry is not"),
    (json.dumps({"w": ENTRY | {"data_offsets": [False, 24]}}), "its entry is not"),
    (json.dumps({"w": 5}), "its entry is not"),
]


@pytest.mark.parametrize(("header", "says"), HEADERS, ids=range(len(HEADERS)))
@pytest.mark.parametrize("what", ["model", "adapter"])
def test_a_header_with_values_of_another_kind(place, capsys, header, says, what):
    file = place / "other" / "model.safetensors" if what == "model" else place / "good" / TENSORS
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 24)
    arguments = train(place, model="other") if what == "model" else generate(place, "good")
    refused(capsys, *arguments, says=["not a whole safetensors file", says])


@pytest.mark.parametrize("weight_map", [["a"], None, {"w": ["a"]}, {"w": 5}, {"w": "a" * 300}, {}])
def test_an_index_that_maps_nothing(place, capsys, weight_map):
    change(place / "base" / "model.safetensors.index.json", weight_map=weight_map)
    refused(capsys, *train(place), says=["names files that are not there", "fetch the model again"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "64"),
        ("hidden_size", -20),
        ("num_attention_heads", 7),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("max_position_embeddings", "64"),
        ("rope_scaling", "x"),
        ("model_type", ["llama"]),
        ("vocab_size", 10**12),
    ],
)
def test_an_architecture_that_can_not_be_built(place, capsys, key, value):
    change(place / "other" / "config.json", **{key: value})
    said = {-20: "what its model can't be", 10**12: "what its model can't be", "['llama']": "values of another kind"}
    wrong = said.get(value if isinstance(value, int) else str(value), "no causal language model of this directory")
    refused(capsys, *train(place, model="other"), says=[wrong, "hint: "])


@pytest.mark.parametrize("config", [{"quant_method": "gptq", "bits": 4}, "x"])
def test_a_base_quantised_in_another_way_is_refused_by_name(place, capsys, config):
    change(place / "other" / "config.json", quantization_config=config)
    says = ["can't be read", config["quant_method"] if isinstance(config, dict) else "None", "--quantize nf4"]
    refused(capsys, *train(place, model="other"), says=says)


def test_a_base_that_says_it_is_quantised_and_is_not(place, capsys):
    change(place / "other" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    refused(capsys, *train(place, model="other"), says=["has no quantised weight", "config.json", "hint: "])


@pytest.mark.parametrize("value", ["x", ["x"], 1.5, {"a": 1}])
def test_an_end_token_that_is_no_token(place, capsys, value):
    (place / "other" / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    refused(capsys, *generate(place, "good", "--force", model="other"), says=["special token", "eos_token_id"])


@pytest.mark.parametrize("name", ["~nosuch/model", "a" * 300, "~nosuch", f"{'a' * 300}/b/c"])
def test_a_name_that_no_file_can_have(place, capsys, name):
    data, out = place / "rows.jsonl", place / "new"
    refused(capsys, "train", name, data, "--output", out, says=["no such model", "hint: "])
    refused(capsys, "train", place / "base", name, "--output", out, says=["no such data", "hint: "])
    refused(capsys, "generate", place / "base", "--prompt", "a", "--adapter", name, says=["no such adapter"])
