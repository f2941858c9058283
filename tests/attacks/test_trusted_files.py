"""What a signature is of is what is read, whatever lies beside it; and a trust rule holds however a source is spelt."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from inlay import formats
from inlay.cli.serve import _named
from inlay.errors import FormatError, InlayError, TrustError
from inlay.hub import oci, sign, trust
from inlay.hub.store import Store
from inlay.serve import files
from inlay.serve.slots import Slots
from tests.attacks.test_other_formats import NAME, written
from tests.support import keys

POLICY = """
- {source: "store://tell@*", signed: enforce, keys: [team.pub]}
- {source: "*", signed: off}
"""
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


def test_an_address_is_spelt_in_one_way():
    for host in ("registry.example.com:443", "registry.example.com.", "Registry.example.com.:443"):
        assert str(oci.parse(f"oci://{host}/a:1")) == "oci://registry.example.com/a:1"
    assert str(oci.parse("oci://localhost:443/a:1")) == "oci://localhost:443/a:1"  # spoken to without TLS
    assert str(oci.parse("oci://[::1]:5000/a:1")) == "oci://[::1]:5000/a:1"
    with pytest.raises(InlayError):
        oci.parse("oci://registry.example.com:0443/a:1")


def test_what_the_store_has_under_a_name_is_not_had_without_its_signature_by_another_way(tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "store"))
    keys.pair(tmp_path, "team")
    held = Store(tmp_path / "store")
    digest, _ = held.add(peft(tmp_path / "a"), "tell@1")
    held.tag("other@1", digest)
    path = held.object(digest)
    (tmp_path / "link").symlink_to(path)
    ways = [f"sha256:{digest}", f"sha256:{digest[:8]}", path, tmp_path / "link", path / "adapter_model.safetensors"]
    assert all(formats.fetched(way) == path for way in ways)
    (tmp_path / "trust.yaml").write_text(POLICY)
    monkeypatch.setenv("INLAY_TRUST", str(tmp_path / "trust.yaml"))
    for way in [*ways, "tell@1", "other@1"]:
        with pytest.raises(TrustError):
            formats.fetched(way)
    assert _named((f"a={tmp_path / 'a'}",)) == {"a": tmp_path / "a"}
    with pytest.raises(TrustError):
        _named((f"a={path}",))
    slots = object.__new__(Slots)
    for directory in (tmp_path / "store", tmp_path / "store" / "objects"):
        slots.directories = (directory,)
        for way in ways[:4] if directory.name == "store" else ways[2:4]:
            with pytest.raises(TrustError):
                slots.allowed(str(way))
    held.remove("tell@1")
    assert formats.fetched(path) == formats.fetched("other@1") == slots.allowed(str(path)) == path


def test_an_object_that_a_damaged_name_may_point_to_is_not_had_under_a_policy(tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "store"))
    held = Store(tmp_path / "store")
    digest, _ = held.add(peft(tmp_path / "a"), "tell@1")
    held.tag("other@1", digest)
    (tmp_path / "store" / "tags" / "tell@1.json").write_text("{")
    assert formats.fetched(f"sha256:{digest}")
    keys.pair(tmp_path / "store", "team")
    (tmp_path / "store" / trust.FILE).write_text(POLICY)
    with pytest.raises(TrustError):
        formats.fetched(f"sha256:{digest}")
    (tmp_path / "store" / trust.FILE).write_text("- {source: '*', signed: off}")
    assert formats.fetched(f"sha256:{digest}")
