"""The header and the names of GGUF files against the `gguf` package and against the converter's own order of rows."""

import gguf
import numpy as np
import pytest
import torch

from inlay.errors import CompatibilityError
from inlay.gguf import names
from inlay.gguf.header import read_header
from inlay.gguf.types import KINDS


def test_every_type_has_the_size_that_the_package_gives_it():
    known = {kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    assert {number: tuple(kind) for number, kind in KINDS.items()} == known


def test_a_file_of_the_package_is_read_as_the_package_reads_it(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.number", 3)
    writer.add_float64("a.real", 0.1)
    writer.add_array("some.words", ["ä", "", "b" * 999])
    writer.add_array("some.numbers", [1, 2, -3])
    writer.add_custom_alignment(64)
    weights = {"x.weight": np.arange(21, dtype=np.float32).reshape(3, 7), "y": np.ones((2, 96), np.float32)}
    writer.add_tensor("x.weight", weights["x.weight"])
    packed = gguf.quants.quantize(weights["y"], gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("y", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_header(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == fields
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.kind, found.entry.start) == (tensor.tensor_type.name, tensor.data_offset)
        assert found.shape == tuple(reversed(tensor.shape.tolist()))
        assert path.read_bytes()[found.entry.start : found.entry.stop] == tensor.data.tobytes()


@pytest.mark.parametrize("name", names.ARCHITECTURES)
def test_names_are_those_of_the_package_and_go_both_ways(name):
    known = names.ARCHITECTURES[name]
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    theirs = gguf.get_tensor_name_map(number, 12)
    assert len(known.modules) >= 9
    outside = ("token_embd", "output_norm", "output")
    for file_name in (f"{module}.weight" for module in (*outside, *(f"blk.11.{m}" for m in known.modules))):
        ours = known.transformers_name(file_name)
        assert theirs.get_name(ours, try_suffixes=(".weight",)) == file_name
        assert known.file_name(ours) == file_name


@pytest.mark.parametrize(
    "strange", ["blk.0.ffn_gate_exps.weight", "blk.00.attn_q.weight", "rope_freqs.weight", "blk.0.attn_q.weight.scale"]
)
def test_a_tensor_that_is_not_known_is_refused_by_name(strange):
    with pytest.raises(CompatibilityError, match="it is not known what this tensor"):
        names.ARCHITECTURES["llama"].transformers_name(strange)


def test_an_architecture_that_is_not_known_is_refused_by_name():
    with pytest.raises(CompatibilityError, match="gptj"):
        names.architecture("gptj")
    with pytest.raises(CompatibilityError, match="gpt_neox"):
        names.architecture_of("gpt_neox")
    assert names.architecture_of("mistral").name == "llama"


def test_rows_undo_the_order_of_the_converter():
    heads, half, width = 3, 5, 7
    weight = torch.randn(heads * 2 * half, width)
    theirs = weight.view(heads, 2, half, width).transpose(1, 2).reshape(weight.shape)  # as its `permute` does
    assert torch.equal(theirs[names.rows(len(weight), heads)], weight)
    assert torch.equal(weight[names.file_rows(len(weight), heads)], theirs)
    assert not torch.equal(theirs, weight)
    for wrong in (0, -1, 4, 30):
        with pytest.raises(CompatibilityError, match="no whole heads"):
            names.rows(len(weight), wrong)


def test_rows_are_turned_where_the_architecture_has_them_so():
    llama = names.ARCHITECTURES["llama"]
    assert llama.turned_by("blk.3.attn_q.weight") == "attention.head_count"
    assert llama.turned_by("blk.3.attn_k.bias") == "attention.head_count_kv"
    assert llama.turned_by("blk.3.attn_v.weight") is None
    assert names.ARCHITECTURES["qwen2"].turned_by("blk.3.attn_q.weight") is None
