"""What is asked of the wrong thing is refused with the right cause, and a hint that can be followed."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

import inlay
from inlay.base import checks
from inlay.cli import commands
from inlay.errors import CompatibilityError, ConfigError, FormatError, TargetError
from inlay.options import peers
from tests.support import bases
from tests.support import tasks as support
from tests.support.command import run


@pytest.mark.parametrize(
    ("model", "task", "hint"),
    [
        ("bert_body", "causal-lm", "--task embedding, or sequence-classification"),
        ("bert_seq", "causal-lm", "--task sequence-classification"),
        ("llama_seq", "causal-lm", "--task sequence-classification"),
        ("bert_token", "causal-lm", "--task token-classification"),
        ("t5", "causal-lm", "--task seq2seq"),
        ("llama", "seq2seq", "--task causal-lm"),
    ],
)
def test_a_base_of_another_task_is_not_called_incomplete_or_too_new(tmp_path, model, task, hint):
    place = support.directory(tmp_path / "base", model)
    with pytest.raises(CompatibilityError) as caught:
        inlay.load(place, task=task)
    said = str(caught.value)
    assert f"made for something else than {task}" in said
    assert hint in said
    assert "fetch it again" not in said
    assert "upgrade" not in said


def test_a_checkpoint_that_lacks_weights_of_its_body_is_incomplete(tmp_path):
    from safetensors.torch import load_file

    for name, task in (("llama", "causal-lm"), ("llama_seq", "causal-lm")):
        file = support.directory(tmp_path / name, name) / "model.safetensors"
        tensors = load_file(file)
        tensors.pop("model.layers.0.self_attn.q_proj.weight")
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(FormatError, match="does not hold all weights"):
            inlay.load(tmp_path / name, task=task)


def test_no_number_is_recommended_as_a_module(tmp_path):
    base = inlay.load(bases.directory(tmp_path / "base"))
    with pytest.raises(TargetError) as caught:
        base.attach(inlay.Lora(r=2, modules_to_save=("zzz",)), "a")
    hint = str(caught.value).splitlines()[-1]
    assert "--modules-to-save lm_head" in hint
    with pytest.raises(TargetError, match=r"--modules-to-save lm_head$"):
        base.attach(inlay.Lora(r=2, modules_to_save=("lm_haed",)), "a")


def test_auto_is_the_device_that_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks.chosen_device("auto") == "cpu"
    assert checks.chosen_device("cpu") == "cpu"
    place = bases.directory(tmp_path / "base")
    status, _, err = run(capsys, "generate", place, "--prompt", "say 3", "--max-new-tokens", 2)
    assert status == 0, err
    assert "device" not in err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert checks.chosen_device("auto") == "cuda"
    with pytest.raises(ConfigError, match="no such device"):
        checks.chosen_device("gpu")


def test_a_file_of_loralib_is_named_for_what_it_is(tmp_path):
    base = inlay.load(bases.directory(tmp_path / "base"))
    tensors = {f"model.layers.0.self_attn.q_proj.lora_{part}": torch.ones(3, 3) for part in "AB"}
    (tmp_path / "theirs").mkdir()
    torch.save(tensors, tmp_path / "theirs" / "lora.pt")
    with pytest.raises(FormatError) as caught:
        base.attach(tmp_path / "theirs")
    said = str(caught.value)
    assert "loralib" in said
    assert "lora.pt" in said
    (tmp_path / "theirs" / "lora.pt").unlink()
    save_file(tensors, tmp_path / "theirs" / "lora.safetensors")
    with pytest.raises(FormatError, match="loralib"):
        base.attach(tmp_path / "theirs")
    shutil.rmtree(tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    with pytest.raises(FormatError, match="no adapter_config"):
        base.attach(tmp_path / "theirs")
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3}))
    save_file(tensors, tmp_path / "theirs" / "adapter_model.safetensors")
    with pytest.raises(FormatError, match="loralib"):
        base.attach(tmp_path / "theirs")


def test_flags_of_other_tools_are_answered_with_ours(tmp_path, capsys):
    place = bases.directory(tmp_path / "base")
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(4))
    train = ["train", place, rows, "--output", tmp_path / "out"]
    status, _, err = run(capsys, *train, "--lr", "1e-4", "--num_train_epochs=3")
    assert status == 2
    assert "there is no flag --lr\n" in err
    assert "there is no flag --num_train_epochs\n" in err
    assert "hint:  --learning-rate 1e-3; --epochs 1" in err
    (tmp_path / "run.yaml").write_text("lora_r: 8\n")
    status, _, err = run(capsys, *train, "--config", tmp_path / "run.yaml")
    assert status == 1
    assert "hint:  --r 16" in err


def test_what_is_typed_for_a_flag_of_another_tool_exists(capsys):
    flags = set()
    for command in commands():
        _, out, _ = run(capsys, command, "--help")
        flags |= set(re.findall(r"--([a-z][a-z-]*)", out))
    assert "learning-rate" in flags
    for hint in peers.OURS.values():
        for flag in re.findall(r"--([a-z][a-z-]*)", hint):
            assert flag in flags, hint
