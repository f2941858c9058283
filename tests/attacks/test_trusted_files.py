"""What a signature is of is what is read, whatever lies beside it; and a trust rule holds however a source is spelt."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from inlay import formats
from inlay.errors import FormatError
from inlay.hub import sign
from inlay.serve import files
from tests.attacks.test_other_formats import NAME, written
from tests.support import keys

PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}


def peft(place, value=1.0):
    place.mkdir()
    (place / "adapter_config.json").write_text(json.dumps(PEFT))
    pair = {"lora_A.weight": torch.full((2, 5), value), "lora_B.weight": torch.full((5, 2), value)}
    save_file({f"base_model.model.{NAME}.{n}": t for n, t in pair.items()}, place / "adapter_model.safetensors")
    return place


def loralib(place):
    place.mkdir()
    (place / "adapter_config.json").write_text('{"lora_alpha": 8}')
    tensors(place / "lora.bin", 1.0)
    return place


def tensors(path, value):
    torch.save({f"{NAME}.lora_A": torch.full((2, 5), value), f"{NAME}.lora_B": torch.full((5, 2), value)}, path)


def read(place):
    """(The format, the one value that its factors have.)"""
    file = formats.read(place)
    values = {value for pair in file.params.values() for tensor in pair.values() for value in tensor.unique().tolist()}
    return file.form, values


@pytest.mark.filterwarnings("ignore:hidden files are left out")
@pytest.mark.parametrize(
    ("made", "evil"),
    [
        (peft, lambda place: written(place / ".x.gguf")),
        (peft, lambda place: tensors(place / ".a.bin", 7.0)),
        (loralib, lambda place: tensors(place / ".a.bin", 7.0)),
        (loralib, lambda place: written(place / ".x.gguf")),
    ],
)
def test_a_hidden_file_is_not_read_in_the_place_of_what_is_signed(tmp_path, made, evil):
    place = made(tmp_path / "a")
    private, public = keys.pair(tmp_path, "team")
    sign.sign(place, private)
    before, served = read(place), files.files_of(place)
    evil(place)
    assert sign.required(place, [public], "it")
    assert read(place) == before == (made.__name__, {1.0})
    assert files.files_of(place).keys() == served.keys()
    assert formats.fetched(place, [public]) == place


def test_a_hidden_file_is_no_adapter_of_its_own(tmp_path):
    written(tmp_path / ".x.gguf")
    with pytest.raises(FormatError, match="not an adapter"):
        formats.read(tmp_path)
    with pytest.raises(FormatError, match="not an adapter"):
        formats.read(tmp_path / ".x.gguf")


@pytest.mark.parametrize(
    "config",
    [PEFT, {"fine_tune_type": "lora"}, {"lora_parameters": {}}, {"config": {}, "model_type": "llama", "name": "a"}],
)
def test_a_copy_for_llama_cpp_does_not_decide_what_is_read(tmp_path, config):
    """A trust policy fetches all files of a repository, and without one those that are read alone: both read the same."""
    place = peft(tmp_path / "a")
    (place / "adapter_config.json").write_text(json.dumps(config))
    (place / "adapter.safetensors").touch()
    form = formats.detect(place)
    written(place / "x.gguf")
    assert formats.detect(place) == form != "gguf"


def test_another_file_than_the_one_that_is_named_is_not_read(tmp_path):
    place = peft(tmp_path / "a")
    written(place / "x.gguf")
    assert read(place / "adapter_model.safetensors") == ("peft", {1.0})
    with pytest.raises(FormatError, match="another file than the one that is named"):
        formats.read(place / "x.gguf")
    os.remove(place / "adapter_config.json")
    with pytest.raises(FormatError, match="another file than the one that is named"):
        formats.read(place / "adapter_model.safetensors")
    assert formats.read(place / "x.gguf").form == "gguf"
