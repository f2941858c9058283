"""An adapter is verified on its base and on copies of it, and refused on every other base of the same shape, soon."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import inlay
from inlay import formats
from inlay.errors import CompatibilityError, FormatError
from inlay.evaluation import golden, verify
from inlay.formats.peft import TENSORS
from inlay.io.checkpoint import open_checkpoint
from tests.support import bases, quantized
from tests.support.command import run, run_json

BASES, EACH = 6, 2


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Bases of one shape, each with adapters whose golden answers were kept."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(home / "cache"))
        for number in range(BASES):
            base = inlay.load(bases.directory(home / f"base{number}", seed=number))
            for seed in range(EACH):
                adapter = base.create(inlay.Lora(r=3), f"{number}{seed}", seed=seed)
                for params in adapter.params.values():
                    params["lora_B"].data.normal_(generator=torch.Generator().manual_seed(seed))
                (home / adapter.name).mkdir()
                record = base.about_base | {golden.KEY: golden.kept(base, adapter.name)}
                base.save(adapter.name, home / adapter.name, record)
                base.detach(adapter.name)
        yield home


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setenv("INLAY_CACHE", str(home / "cache"))


def weights(adapter, model):
    return verify.weights(adapter.name, formats.outline(adapter), open_checkpoint(model))


def changed(home, tmp_path, change):
    """The first adapter with another record."""
    place = tmp_path / "00"
    shutil.copytree(home / "00", place)
    record = json.loads((place / "inlay.json").read_text())
    change(record)
    (place / "inlay.json").write_text(json.dumps(record))
    return place


def test_every_pair_is_told_apart_in_less_than_a_second(home):
    slowest = 0.0
    for number in range(BASES):
        for adapter in sorted(home.glob("[0-9][0-9]")):
            start = time.perf_counter()
            if adapter.name[0] == str(number):
                assert weights(adapter, home / f"base{number}")[0] == "same"
            else:
                with pytest.raises(CompatibilityError, match="was trained on another base"):
                    weights(adapter, home / f"base{number}")
            slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 1


def test_the_right_base_answers_as_it_did(home):
    for number in range(2):
        found = verify.verify(home / f"{number}1", home / f"base{number}")
        assert found.answers == golden.Found(4, 4, 4, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_copy_in_another_dtype_is_recognised_and_that_is_said(home, tmp_path, capsys, dtype):
    copy = shutil.copytree(home / "base0", tmp_path / "copy")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CompatibilityError, match="another base"):
        weights(home / "10", copy)
    said_to_be_in_another_precision(home / "00", copy, capsys)


def test_a_float16_base_is_recognised_in_wider_copies(home, tmp_path):
    for name, dtype in (("half", torch.float16), ("wide", torch.float32), ("brain", torch.bfloat16)):
        copy = shutil.copytree(home / "base0", tmp_path / name)
        tensors = load_file(copy / "model.safetensors")
        save_file({n: t.half().to(dtype) for n, t in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
    (tmp_path / "mine").mkdir()
    base = inlay.load(tmp_path / "half")
    base.save(base.create(inlay.Lora(r=3)).name, tmp_path / "mine", base.about_base)
    for name in ("wide", "brain"):
        assert weights(tmp_path / "mine", tmp_path / name)[0] == "another precision"


def test_a_copy_in_other_files_is_the_same(home, tmp_path):
    inlay.load(home / "base0").model.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert weights(home / "00", tmp_path / "shards")[0] == "same"


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_a_quantised_copy_is_recognised_and_that_is_said(home, tmp_path, capsys, scheme):
    wide = tmp_path / "wide"
    quantized.model("llama").save_pretrained(wide)
    bases.tokenizer().save_pretrained(wide)
    base = inlay.load(wide)
    (tmp_path / "mine").mkdir()
    base.save(base.create(inlay.Lora(r=3)).name, tmp_path / "mine", base.about_base)
    assert run(capsys, "quantize", wide, "--scheme", scheme, "--output", tmp_path / "copy")[0] == 0
    said_to_be_in_another_precision(tmp_path / "mine", tmp_path / "copy", capsys)
    with pytest.raises(CompatibilityError, match="another base"):
        weights(home / "00", tmp_path / "copy")


def said_to_be_in_another_precision(adapter, copy, capsys):
    with pytest.warns(UserWarning, match="on the same weights in another precision"):
        status, out, err = run(capsys, "verify", adapter, "--model", copy)
    assert status == 0, err
    assert "the weights that it was trained on, in another precision; answers differ a little" in out


def test_tensors_that_are_not_the_trained_ones_are_found_by_their_answers(home, tmp_path):
    place = changed(home, tmp_path, lambda record: None)
    shutil.copyfile(home / "01" / TENSORS, place / TENSORS)
    with pytest.raises(CompatibilityError, match="does not answer as it did"):
        verify.verify(place, home / "base0")


def test_what_names_no_base_is_not_verified(home, tmp_path):
    with pytest.raises(CompatibilityError, match="nothing says which base"):
        verify.verify(changed(home, tmp_path, lambda record: record.pop("base")), home / "base0")


EMPTY = {part: [] for part in golden.PARTS}


@pytest.mark.parametrize(
    "kept",
    [
        [],
        {},
        {"prompts": [[1]], "answers": [[1]], "base": []},
        "x",
        {"prompts": [[]]},
        EMPTY,
        {"prompts": [[1]], "answers": [[]], "base": [[]]},
    ],
)
def test_golden_answers_that_are_none_are_refused(home, tmp_path, kept):
    place = changed(home, tmp_path, lambda record: record.update({golden.KEY: kept}))
    with pytest.raises(FormatError, match="golden"):
        verify.verify(place, home / "base0")
    too_large = {part: [[10**6]] for part in golden.PARTS}
    place = changed(home, tmp_path / "b", lambda record: record.update({golden.KEY: too_large}))
    with pytest.raises(FormatError, match="golden"):
        verify.verify(place, home / "base0")


def test_the_command_says_what_it_found(home, tmp_path, capsys):
    found = run_json(capsys, "verify", home / "00", "--model", home / "base0")
    assert found["weights"] == "same"
    assert found["answers"] == {"asked": 4, "same": 4, "base_same": 4, "told_apart": 4}
    status, _, err = run(capsys, "verify", home / "00", "--model", home / "base1")
    assert status == 1
    assert "error: 00 was trained on another base" in err


def test_training_keeps_golden_answers(home, tmp_path, capsys):
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(20))
    arguments = ["train", home / "base0", tmp_path / "rows.jsonl", "--output", tmp_path / "mine", "--max-steps", 2]
    assert run(capsys, *arguments)[0] == 0
    assert len(json.loads((tmp_path / "mine" / "inlay.json").read_text())[golden.KEY]["prompts"]) == 4
    assert run_json(capsys, "verify", tmp_path / "mine", "--model", home / "base0")["answers"]["same"] == 4
