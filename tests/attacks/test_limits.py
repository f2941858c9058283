"""What a small download can cost: limits before anything is read, and each thing said once."""

import json
import time

import pytest
import torch

from inlay import names
from inlay.errors import ConfigError, FormatError
from inlay.fields import MAX_SHOWN, shown
from inlay.formats.peft import CONFIG, TENSORS
from inlay.io import json_files, safetensors
from inlay.io.records import RECORD
from inlay.options.config import read_config
from inlay.options.types import layers
from tests.support.command import run
from tests.support.refusals import generate, refused, train


def change(path, **values):
    """Write other values into a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def grown(path, size=8_000_000_000):
    """The file with zeros behind it, which take no room on the disk."""
    with path.open("ab") as file:
        file.truncate(size)


def header(path, text, size=0):
    """A safetensors file with this header, and `size` bytes of zeros behind it."""
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


SPARSE = ["good/adapter_config.json", "good/inlay.json", "base/config.json", "base/tokenizer.json", "base/tokenizer_config.json", "base/generation_config.json", "base/chat_template.jinja", "base/vocab.json", "base/model.safetensors.index.json", "base/special_tokens_map.json"]  # fmt: skip


@pytest.mark.parametrize("name", SPARSE)
def test_a_file_of_8_gb_is_not_read(place, capsys, name):
    (place / name).touch()
    grown(place / name)
    start = time.monotonic()
    refused(capsys, *generate(place, "good"), says=["larger than any of", f"{name}: 8,000,000,000 bytes; at most 1"])
    assert time.monotonic() - start < 30


def test_a_configuration_of_8_gb_is_not_read(place, capsys):
    (place / "run.yaml").write_text("r: 4\n")
    grown(place / "run.yaml")
    refused(
        capsys, *train(place, "--config", place / "run.yaml"), says=["8,000,000,000 bytes; at most 200,000 are read"]
    )


def test_no_more_is_read_of_a_file_that_grows(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("{}" + " " * 100)
    assert json_files.read_json(path, 102) == {}
    with pytest.raises(FormatError, match="102 bytes; at most 101"):
        json_files.read_json(path, 101)

    class Small:
        st_size, st_mode = 2, path.stat().st_mode

    monkeypatch.setattr(type(path), "stat", lambda self, **how: Small)
    with pytest.raises(FormatError, match="102 bytes; at most 101"):  # it was 2 when it was asked
        json_files.read_json(path, 101)


def test_what_is_no_file_is_not_waited_for(place, capsys):
    import os

    os.mkfifo(place / "base" / "special_tokens_map.json")
    refused(capsys, *generate(place, "good"), says=["special_tokens_map.json: no regular file"])


def test_a_header_beyond_the_limit_is_not_parsed(place, capsys, monkeypatch):
    header(place / "good" / TENSORS, b"{" + b" " * safetensors.MAX_HEADER_BYTES + b"}")
    refused(
        capsys,
        *generate(place, "good"),
        says=["its header has 25,000,002 bytes, more than the 25,000,000 that are read"],
    )


ODD = {
    "name twice": (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', 8, "the name 'a' stands twice"),
    "dtype twice": (b'{"a": {"dtype": "F32", "shape": [2], "dtype": "F16", "data_offsets": [0, 4]}}', 4, "the name 'dtype' stands twice"),
    "length beyond all": (b'{"a": {"dtype": "F32", "shape": [0, 1000000000000000000000000], "data_offsets": [0, 0]}}', 0, "its entry is not"),
    "a million dimensions": (b'{"a": {"dtype": "F32", "shape": [' + b"1," * 999_999 + b'1], "data_offsets": [0, 4]}}', 4, "its entry is not"),
    "a long dtype": (b'{"a": {"dtype": "' + b"F" * 1_000_000 + b'", "shape": [1], "data_offsets": [0, 4]}}', 4, "unknown dtype 'FFF"),
    "many wrong entries": (json.dumps({f"m{i}": 1 for i in range(1000)}).encode(), 0, "and 990 more"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("file", ["good/adapter_model.safetensors", "other/model.safetensors"])
def test_a_header_that_says_what_can_not_be(place, capsys, what, file):
    text, size, words = ODD[what]
    header(place / file, text, size)
    _, err = refused(capsys, *generate(place, "good", model="other" if "other" in file else "base"), says=[words])
    assert len(err) < 5000


@pytest.mark.parametrize("name", ["evil", "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])
def test_a_tensor_that_does_not_fit_is_refused_before_it_is_read(place, capsys, monkeypatch, name):
    entry = {"dtype": "F32", "shape": [2, 5 * 10**8], "data_offsets": [0, 4 * 10**9]}
    header(place / "good" / TENSORS, json.dumps({name: entry}).encode(), 4 * 10**9)
    monkeypatch.setattr(torch, "from_file", None)  # nothing is read
    refused(
        capsys,
        *generate(place, "good"),
        says=["evil: no tensor of LORA" if name == "evil" else "layers.0.self_attn.k_proj: no tensors"],
    )


def test_a_file_larger_than_the_memory_is_said_to_be(tmp_path, monkeypatch):
    header(
        tmp_path / "a", json.dumps({"a": {"dtype": "U8", "shape": [10**6], "data_offsets": [0, 10**6]}}).encode(), 10**6
    )
    monkeypatch.setattr(safetensors.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(RuntimeError, match="larger than the memory"):
        safetensors.read_tensors(tmp_path / "a")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_no_factors(place, capsys, dtype):
    from safetensors.torch import load_file, save_file

    tensors = load_file(place / "good" / TENSORS)
    key = sorted(tensors)[0]
    save_file(tensors | {key: tensors[key].to(dtype)}, place / "good" / TENSORS)
    refused(capsys, *generate(place, "good"), says=[f"{key}: holds whole numbers ({dtype})"])


@pytest.mark.parametrize("name", ["good/adapter_config.json", "good/inlay.json", "base/config.json"])
def test_a_name_twice_in_a_file_is_refused(place, capsys, name):
    text = (place / name).read_text().lstrip()
    first = next(iter(json.loads(text)))
    (place / name).write_text(f"{{{json.dumps(first)}: 1,{text[1:]}")
    refused(capsys, *generate(place, "good"), says=["says one thing twice", f"{name}: the name '{first}' stands twice"])


PATTERNS = {
    "many patterns": ({"rank_pattern": {f"m{i}": 4 for i in range(10_500)}}, "rank_pattern: 10,500; at most"),
    "many regular expressions": ({"alpha_pattern": {f"m{i}.*": 4 for i in range(10_500)}}, "alpha_pattern: 10,500; at most"),
    "many names": ({"target_modules": [f"m{i}" for i in range(10_500)]}, "target_modules: 10,500; at most"),
    "names in a text": ({"target_modules": "a," * 100_000}, "target_modules: 100,000; at most"),
    "brackets": ({"target_modules": "(" * 5000 + "q" + ")" * 5000}, "brackets within brackets"),
    "a long expression": ({"target_modules": "(q|k)" * 100_000}, "500,000 characters"),
    "no expression": ({"target_modules": "(q"}, "missing )"),
    "a repeat of a repeat": ({"target_modules": "((((a{1,9999}){1,9999}){1,9999}){1,9999}){1,9999}q"}, ""),
    "brackets in a pattern": ({"rank_pattern": {"(" * 5000 + "q" + ")" * 5000: 4}}, "a key of rank_pattern is not a regular expression"),
}  # fmt: skip


@pytest.mark.parametrize("what", PATTERNS)
def test_patterns_that_take_forever(place, capsys, what):
    values, words = PATTERNS[what]
    change(place / "good" / CONFIG, **values)
    start = time.monotonic()
    _, err = refused(capsys, *generate(place, "good"), says=[words])
    assert time.monotonic() - start < 30
    assert len(err) < 5000


@pytest.mark.parametrize(
    "key",
    [
        "q",
        "q_proj",
        "attn.q_proj",
        "a.q_proj",
        "self.attn",
        "self_attn.q.proj",
        "q-proj",
        "proj",
        "layers.0",
        "x.layers.0.self_attn.q_proj",
    ],
)
@pytest.mark.parametrize(
    "path",
    ["q", "layers.0.self_attn.q_proj", "layers.0.self_attn", "x.layers.0.self_attn.q_proj", "aq_proj", "q-proj", ""],
)
def test_a_plain_pattern_is_the_regular_expression_that_it_is(key, path):
    assert names.matches_end(key, path) == names.matches(rf"(.*\.)?({key})", path)


def test_a_pattern_for_every_module_is_compiled_once():
    paths = [
        f"model.layers.{i}.self_attn.{name}" for i in range(80) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    keys = [path.replace(".", r"\.") for path in paths]
    names._compiled.cache_clear()
    start = time.process_time()
    assert sum(names.matches_end(key, path) for key in keys for path in paths[::8]) == len(paths[::8])
    assert sum(names.matches_end(path, other) for path in paths for other in paths) == len(paths)
    assert names._compiled.cache_info().misses == len(keys)
    assert time.process_time() - start < 10


def laughs(depth=9, width=10):
    lines = [f"r: &a0 [{', '.join('x' * width)}]"]
    keys = [
        "lora_alpha",
        "lora_dropout",
        "max_steps",
        "epochs",
        "batch_size",
        "learning_rate",
        "max_length",
        "seed",
        "weight_decay",
    ]
    return "\n".join([*lines, *(f"{keys[i]}: &a{i + 1} [{', '.join([f'*a{i}'] * width)}]" for i in range(depth))])


YAML = {
    "billion laughs": (laughs(), "unfolds without bounds"),
    "a list within itself": ("r: &a [*a]", "unfolds without bounds"),
    "merges of merges": ("a: &a0 {" + ", ".join(f"k{i}: 1" for i in range(100)) + "}\n" + "\n".join(f"b{i}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 50)}]}}" for i in range(6)), ""),
    "a merge of itself": ("a: &a {<<: *a}", ""),
    "brackets": ("[" * 5000, "is not YAML"),
    "a long key": ("? [" + "a, " * 10_000 + "]\n: 1", ""),
    "a range": ("layers_to_transform: '0-20000000000'", "this names no layers"),
    "ranges": ("layers_to_transform: '" + ",".join(["0-99999"] * 1000) + "'", "this names no layers"),
    "a strange digit": ("layers_to_transform: '²'", "this names no layers"),
    "a strange method": ("method: [[[lora]]]", "no adapter method of that name"),
    "a date": ("r: 2026-13-45", "is not YAML"),
    "binary": ("r: !!binary x", "is not YAML"),
    "an object": ("r: !!python/object/apply:os.system [ls]", "is not YAML"),
    "a set": ("r: !!set {a, b}", "r="),
    "many names": ("\n".join(f"k{i}: 1" for i in range(5_000)), "no setting"),
}  # fmt: skip


@pytest.mark.parametrize("what", YAML)
def test_a_configuration_that_unfolds_or_is_none(place, capsys, what):
    text, words = YAML[what]
    (place / "run.yaml").write_text(text)
    start = time.monotonic()
    _, err = refused(capsys, *train(place, "--config", place / "run.yaml"), says=[words])
    assert time.monotonic() - start < 30
    assert len(err) < 5000


def test_an_honest_configuration_may_use_aliases_and_merges(tmp_path):
    (tmp_path / "run.yaml").write_text("r: &r 4\nlora_alpha: *r\n<<: {seed: 3}\n")
    assert read_config(tmp_path / "run.yaml") == {"r": 4, "lora_alpha": 4, "seed": 3}


def test_layers_are_counted_up_to_a_bound():
    assert layers("0-2,7") == (0, 1, 2, 7)
    for text in ("0-100001", "9999999999", "-1", "a", ""):
        with pytest.raises(ConfigError):
            layers(text)


def test_a_value_is_shown_without_being_written_out():
    value = ["x"]
    for _ in range(60):
        value = [value] * 10
    within = []
    within.append(within)
    for huge in (value, within, "a" * 10**7, 10**10_000, {1: value}, {"k" * 10**6: 1}, (value,), [set(range(10**5))]):
        assert len(shown(huge)) <= MAX_SHOWN + 3
    assert shown({"a": [1, 2.5, None, "b"], "c": (True,)}) == "{'a': [1, 2.5, None, 'b'], 'c': (True,)}"


def test_a_record_of_another_kind_is_said_before_a_tensor_is_read(place, capsys, monkeypatch):
    change(place / "good" / RECORD, format="x")
    monkeypatch.setattr(torch, "from_file", None)
    refused(capsys, *generate(place, "good"), says=["written by a newer Inlay"])
    assert run(capsys, "inspect", place / "good")[0] == 1
