"""Bad input, as users meet it: each a clear error with something to type, status 1, and nothing lost or half-written."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay.formats.peft import TENSORS
from inlay.io import output
from inlay.io.records import RECORD
from tests.support import bases, disks, forks
from tests.support.command import run
from tests.support.refusals import generate, refused, train


def test_no_such_model(place, capsys):
    refused(capsys, *train(place, model="bass"), says=["no such model", "bass does not exist", "hint: ", "/base"])


def test_no_such_model_on_the_hub(place, capsys):
    arguments = ["train", "nobody/nothing", place / "rows.jsonl", "--output", place / "new"]
    refused(capsys, *arguments, says=["no such model", "nobody/nothing", "on the hub"])


def test_not_a_model(place, capsys):
    refused(capsys, *train(place, model="good"), says=["is not a model", "config.json"])


def test_an_architecture_without_a_language_model(place, capsys):
    config = json.loads((place / "base/config.json").read_text()) | {"model_type": "vit", "architectures": ["ViTModel"]}
    (place / "base/config.json").write_text(json.dumps(config))
    refused(capsys, *train(place), says=["made for something else than causal-lm", "ViTModel"])


def test_a_model_without_a_tokenizer(place, capsys):
    for file in (place / "base").glob("tokenizer*"):
        file.unlink()
    refused(capsys, *train(place), says=["no tokenizer"])


@pytest.mark.parametrize("keep", [4, 60, -8])
def test_a_truncated_weight_file(place, capsys, keep):
    file = sorted((place / "base").glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:keep])
    refused(capsys, *train(place), says=["not a whole safetensors file", file.name])


def _entry(**changes):
    return {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"\xff" * 40, "not JSON"),
        (b"[1]", "not an object"),
        (json.dumps(_entry(data_offsets=[0, 48])).encode(), "48 bytes for shape (2, 3)"),
        (json.dumps(_entry(shape=[2, -3])).encode(), "its entry is not"),
        (json.dumps(_entry(dtype="F99")).encode(), "unknown dtype 'F99'"),
        (json.dumps(_entry(data_offsets=[8, 32])).encode(), "start at"),
        (json.dumps(_entry(data_offsets=[10**18, 10**18 + 24])).encode(), "start at"),
        (json.dumps(_entry() | {"v": _entry()["w"]}).encode(), "start at"),
    ],
)
def test_a_hostile_header(place, capsys, header, says):
    file = place / "other" / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 24)
    refused(capsys, *train(place, model="other"), says=["not a whole safetensors file", says])


def test_a_header_longer_than_the_file(place, capsys):
    file = place / "other" / "model.safetensors"
    file.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    refused(capsys, *train(place, model="other"), says=["claims 1,152,921,504,606,846,976 bytes"])


def test_an_index_that_points_outside(place, capsys):
    index = place / "base" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {key: "../" + value for key, value in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    refused(capsys, *train(place), says=["names files that are not there", "../model"])


def test_a_missing_shard(place, capsys):
    sorted((place / "base").glob("*.safetensors"))[-1].unlink()
    refused(capsys, *train(place), says=["names files that are not there"])


def test_a_checkpoint_without_some_weights(place, capsys):
    file = place / "other" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    refused(
        capsys,
        *train(place, model="other"),
        says=["does not hold all weights", "model.layers.1.mlp.up_proj.weight: missing"],
    )


def test_a_weight_of_another_shape(place, capsys):
    file = place / "other" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 5)
    save_file(tensors, file, metadata={"format": "pt"})
    refused(capsys, *train(place, model="other"), says=["model.layers.1.mlp.up_proj.weight", "(5, 5)"])


def test_a_pickled_model_is_never_opened(place, capsys):
    (place / "other" / "model.safetensors").unlink()
    (place / "other" / "pytorch_model.bin").write_bytes(_bomb(place))
    refused(capsys, *train(place, model="other"), says=["these weights are pickled", "pytorch_model.bin"])
    assert not (place / "exploded").exists()


def test_a_pickled_adapter_is_never_opened(place, capsys):
    (place / "good" / TENSORS).unlink()
    (place / "good" / "adapter_model.bin").write_bytes(_bomb(place))
    refused(capsys, *generate(place, "good"), says=["these weights are pickled", "adapter_model.bin"])
    assert not (place / "exploded").exists()


def _bomb(place):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(place / "exploded"),)

    return pickle.dumps(Bomb())


def test_an_adapter_for_another_base(place, capsys):
    says = ["good was trained on another base", "weights sha256", "--force", "wrong in ways that look right"]
    refused(capsys, *generate(place, "good", model="other"), says=says)
    refused(capsys, "merge", place / "other", place / "good", "--output", place / "new", says=says)
    assert run(capsys, *generate(place, "good", "--force", model="other"))[0] == 0


def test_an_adapter_for_another_tokenizer(place, capsys):
    path = place / "base" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["?"], content["model"]["vocab"]["!"] = (
        content["model"]["vocab"]["!"],
        content["model"]["vocab"]["?"],
    )
    path.write_text(json.dumps(content))
    refused(capsys, *generate(place, "good"), says=["another base", "the tokenizer makes other tokens"])


def test_another_chat_template_is_said(place, capsys):
    (place / "base" / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.warns(UserWarning, match="another chat template"):
        assert run(capsys, *generate(place, "good"))[0] == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite(place, capsys, value):
    file = place / "good" / TENSORS
    tensors = load_file(file)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    refused(capsys, *generate(place, "good"), says=["NaN or infinite", name])


def test_missing_extra_and_misshapen_tensors_are_all_in_one_error(place, capsys):
    file = place / "good" / TENSORS
    tensors = load_file(file)
    names = sorted(tensors)
    del tensors[names[0]]
    tensors[names[2]] = tensors[names[2]][:, :-1].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    short = [name.removeprefix("base_model.model.").removesuffix(".weight") for name in names]
    refused(capsys, *generate(place, "good"), says=[f"{short[0]}: missing", f"{short[2]}: shape"])
    for extra in ("lm_head.base_layer.weight", "lm_head.lora_C.weight"):
        key = f"base_model.model.{extra}"
        save_file(tensors | {key: torch.zeros(2, 2)}, file, metadata={"format": "pt"})
        refused(capsys, *generate(place, "good"), says=[f"{extra}: no tensor of LORA"])


KEYS = [
    ("use_dora", True, "lora_magnitude_vector: missing"),
    ("peft_type", "LOHA", "lora_alpha=32"),
    ("peft_type", "BOFT", "peft_type 'BOFT'; known are"),
    ("brand_new_key", 3, "brand_new_key"),
]


@pytest.mark.parametrize(("key", "value", "says"), KEYS)
def test_keys_that_change_the_meaning(place, capsys, key, value, says):
    path = place / "good" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused(capsys, *generate(place, "good"), says=[says])


def test_an_adapter_of_a_newer_inlay(place, capsys):
    path = place / "good" / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    refused(capsys, *generate(place, "good"), says=["newer Inlay", "99"])


def test_a_rank_larger_than_the_layer(place, capsys):
    refused(capsys, *train(place, "--r", 21), says=["smaller side of this layer", "r=21", "20 inputs"])


def test_a_misspelt_module_beside_a_right_one(place, capsys):
    arguments = train(place, "--target-modules", "q_proj,vproj")
    refused(capsys, *arguments, says=["'vproj' of target_modules", "--target-modules q_proj,v_proj"])


DATA = {
    "empty": ("", ["is empty"]),
    "malformed": ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n', ["rows.jsonl:2", "not JSON"]),
    "no_object": ('{"prompt": "a", "completion": "b"}\n[1]\n', ["rows.jsonl:2", "a list, not an object"]),
    "null": ('{"prompt": "a", "completion": null}\n', ["rows.jsonl:1", "completion is null"]),
    "keys": ('{"promt": "a", "completion": "b"}\n', ["rows.jsonl:1", "did you mean prompt"]),
    "roles": ('{"messages": [{"role": "narrator", "content": "b"}]}\n', ["rows.jsonl:1", "'narrator'"]),
    "mixed": ('{"prompt": "a", "completion": "b"}\n{"text": "a"}\n', ["not all of one form", "rows.jsonl:2"]),
    "unsupervised": (
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": " "}\n',
        ["rows.jsonl:2", "empty answer"],
    ),
    "no_weight": (
        '{"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c", "weight": 0}]}\n',
        ["rows.jsonl:1", "trains on none of its answers", "remove the row"],
    ),
    "no_answer": ('{"messages": [{"role": "user", "content": "b"}]}\n', ["rows.jsonl:1", "no turn of the assistant"]),
    "too_long": (
        json.dumps({"prompt": "a" * 80, "completion": "b"}),
        ["longer than max_length", "the model has 64 positions", "--too-long window"],
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_bad_rows(place, capsys, name):
    content, says = DATA[name]
    (place / "rows.jsonl").write_text(content)
    refused(capsys, *train(place), says=says)


def test_no_such_data(place, capsys):
    refused(capsys, *train(place, rows="row.jsonl"), says=["no such data", "rows.jsonl"])


def test_data_that_is_not_text(place, capsys):
    (place / "rows.jsonl").write_bytes(b"\xff\xfe\x00{")
    refused(capsys, *train(place), says=["not UTF-8", "rows.jsonl"])


def test_data_of_an_unknown_kind(place, capsys):
    (place / "rows.jsonl").rename(place / "rows.docx")
    refused(capsys, *train(place, rows="rows.docx"), says=["not known", ".jsonl"])


def test_a_tokenizer_without_an_end_token(place, capsys):
    bases.tokenizer(eos=False).save_pretrained(place / "other")
    refused(capsys, *train(place, model="other"), says=["no end token", "eos_token"])


def test_an_output_that_exists(place, capsys):
    (place / "new").mkdir()
    (place / "new" / "precious.txt").write_text("mine")
    refused(capsys, *train(place), says=["exists already", "--output"])
    refused(capsys, "merge", place / "base", place / "good", "--output", place / "new", says=["exists already"])
    assert (place / "new" / "precious.txt").read_text() == "mine"


def test_a_disk_with_too_little_room(place, capsys, monkeypatch):
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    refused(capsys, *train(place), says=["disk is full", "are needed"])
    refused(capsys, "merge", place / "base", place / "good", "--output", place / "new", says=["disk is full"])


def test_a_disk_that_fills_while_writing(place, capsys, monkeypatch):
    monkeypatch.setattr(output, "check_space", lambda path, num_bytes: None)
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    with disks.small(place / "small", 16_384) as small:
        merge = ["merge", place / "base", place / "good", "--output", small / "new"]
        status, _, err = run(capsys, *merge)
        assert status == 1
        assert "disk is full" in err
        assert list(small.iterdir()) == []
        status, _, err = run(capsys, *train(place, out="small/new"))
        assert status == 1
        assert "disk is full" in err
        assert list(small.iterdir()) == []
        kept = Path(err.split("kept:")[1].split()[0])  # what was trained is not lost
        assert run(capsys, *generate(kept.parent, kept.name, model="base"))[0] == 0


def _start(place, *extra):
    command = [sys.executable, "-m", "inlay", *map(str, train(place, *extra))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)


def test_control_c_keeps_what_was_learned(place):
    command = train(place, "--max-steps", 100_000, "--eval-every", 5)
    process = forks.Process(forks.INLAY, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stderr:
        if line.startswith("step ") and not line.split()[1].startswith("0/"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was learned so far is kept" in err
    assert json.loads((place / "new" / RECORD).read_text())["training"]["interrupted"] is True
    assert not list(place.glob(".*partial*"))


def test_control_c_before_the_first_step_leaves_nothing(place):
    process = _start(place)
    time.sleep(0.5)  # while it still imports
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert not (place / "new").exists()
    assert not list(place.glob(".*partial*"))


def test_a_diverging_run_says_what_to_do(place, capsys):
    arguments = train(place, "--learning-rate", 1e30, "--max-grad-norm", 1e30, "--max-steps", 30)
    refused(capsys, *arguments, says=["diverged", "--learning-rate"])


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--max-length", 65, "beyond the positions"),
        ("--layers-to-transform", "1,9", "layer 9"),
        ("--target-modules", "(", "not a regular expression"),
        ("--exclude-modules", "nothing", "'nothing' of exclude_modules"),
    ],
)
def test_settings_that_do_not_fit_the_model(place, capsys, flag, value, says):
    refused(capsys, *train(place, flag, value), says=[says])


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--batch-size", 0, "batch_size must be above 0"),
        ("--lora-dropout", 1.5, "probability below 1"),
        ("--r", 0, "at least 1"),
        ("--layers-to-transform", "a-b", "this names no layers"),
        ("--epochs", "many", "--epochs takes a finite number"),
        ("--dtype", "float8", "it takes bfloat16, float16, float32"),
        ("--method", "lorra", "--method lora"),
    ],
)
def test_flags_out_of_their_range_are_usage_errors(place, capsys, flag, value, says):
    refused(capsys, *train(place, flag, value), says=[says], status=2)


def test_a_configuration_with_an_unknown_name(place, capsys):
    (place / "run.yaml").write_text("max-steps: 3\nlerning_rate: 1\n")
    refused(capsys, *train(place, "--config", place / "run.yaml"), says=["lerning_rate", "learning_rate"])


def test_usage_errors_have_status_two(capsys):
    assert run(capsys, "trian")[0] == 2
    assert run(capsys, "train")[0] == 2
    assert run(capsys, "train", "a", "b", "--output", "c", "--no-such-flag")[0] == 2
