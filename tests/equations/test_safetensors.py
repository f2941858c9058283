"""Tensors out of safetensors files: the same bits as the format's own library, and a base that stays in its file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import inlay
from inlay.errors import FormatError
from inlay.io.safetensors import TORCH_DTYPES, read_tensors
from tests.support import bases, models
from tests.support.tolerances import assert_close

MAPS = Path("/proc/self/maps")


def raw(path, header, data):
    """A file with exactly this header, however it is aligned."""
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_every_dtype_and_shape_is_read_as_the_formats_own_library_reads_it(tmp_path):
    generator = torch.Generator().manual_seed(3)
    wanted = {
        f"{name}.{i}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for name, dtype in TORCH_DTYPES.items()
        for i, shape in enumerate([(), (3,), (2, 5), (0, 4)])
    }
    save_file(wanted, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")
    theirs = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(theirs)
    for name, tensor in theirs.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].double(), tensor.double())


@pytest.mark.parametrize("padding", range(4))
def test_a_tensor_that_no_boundary_holds_is_read_all_the_same(tmp_path, padding):
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    wanted = torch.tensor([1.5, -7.25])
    data = bytes([1, 2, 3]) + wanted.numpy().tobytes()
    found = read_tensors(raw(tmp_path / "x.safetensors", json.dumps(header) + " " * padding, data))
    assert found["a"].tolist() == [1, 2, 3]
    assert torch.equal(found["b"], wanted)


def test_a_dtype_that_torch_does_not_compute_in_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [3], "data_offsets": [0, 3]}})
    with pytest.raises(FormatError, match="a: F8_E8M0"):
        read_tensors(raw(tmp_path / "x.safetensors", header, bytes(3)))


def test_what_becomes_of_an_adapters_file_changes_nothing(tmp_path):
    save_file({"a": torch.ones(9)}, tmp_path / "x.safetensors")
    found = read_tensors(tmp_path / "x.safetensors")["a"]
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.write(bytes(50))
        file.truncate(60)
    assert torch.equal(found, torch.ones(9))


def backing(tensor):
    """The file whose mapping in this process holds the tensor's bytes, or nothing."""
    for line in MAPS.read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        start, stop = (int(address, 16) for address in addresses.split("-"))
        if start <= tensor.data_ptr() < stop:
            return path
    return ""


@pytest.mark.skipif(not MAPS.exists(), reason="this system does not list a process's mappings")
def test_a_base_in_the_dtype_of_its_files_is_their_own_pages(tmp_path):
    for family, shards in (("llama", "20KB"), ("llama_tied", "5GB"), ("gpt2", "5GB")):
        models.model(family, torch.bfloat16).save_pretrained(tmp_path / family, max_shard_size=shards)
        bases.tokenizer().save_pretrained(tmp_path / family)
        base = inlay.load(tmp_path / family, dtype="bfloat16")
        files = {str(file) for file in base.checkpoint.files}
        assert {backing(parameter) for parameter in base.model.parameters()} == files
        assert base.is_mapped
        wider = inlay.load(tmp_path / family, dtype="float32")
        linears = {path: linear for path, linear in wider.linears.items() if linear.stored.dim() == 2}
        assert {backing(linear.stored) for linear in linears.values()} <= files
        assert wider.is_mapped
        narrower = inlay.load(tmp_path / family, dtype="float16")
        assert not files & {backing(parameter) for parameter in narrower.model.parameters()}
        assert not narrower.is_mapped


@pytest.mark.parametrize("family", models.CONFIGS)
def test_computing_in_a_wider_dtype_than_the_file_has_is_computing_with_a_converted_copy(tmp_path, family):
    models.model(family, torch.bfloat16).save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    base, ids = inlay.load(tmp_path / "base", dtype="float32"), models.tokens(2, 9)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = converted(input_ids=ids).logits
    found = base.logits(ids, None)
    assert found.dtype == torch.float32
    assert_close(found, wanted, torch.float32, terms=3 * 7 * 28)


@pytest.mark.parametrize("family", models.CONFIGS)
def test_a_checkpoint_of_several_dtypes_is_converted_without_loss(tmp_path, family):
    built = models.model(family, torch.bfloat16)
    with torch.no_grad():
        for name, module in built.named_modules():
            if "norm" in name or "ln_" in name:
                module.float()
                module.weight.add_(1e-4)  # a value that bfloat16 does not hold
    built.save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    base = inlay.load(tmp_path / "base", dtype="float32")
    assert not base.is_mapped
    for name, parameter in built.named_parameters():
        assert torch.equal(base.model.get_parameter(name), parameter.float())
