"""Adapters of other programs from strangers: pickles that run code, archives that lie, numbers and names that can't be."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from inlay import formats, pickled
from inlay.errors import CompatibilityError, FormatError, InlayError
from tests.support.refusals import generate, refused

gguf = pytest.importorskip("gguf")

NAME = "model.layers.0.self_attn.q_proj"


class Runs:
    """What a pickle may hold: a call of anything."""

    def __init__(self, called, *given):
        self.called, self.given = called, given

    def __reduce__(self):
        return self.called, self.given


def good():
    return {f"{NAME}.lora_A": torch.ones(2, 5), f"{NAME}.lora_B": torch.ones(5, 2)}


def archive(path, program, *, name="archive/data.pkl", storages=(), how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as made:
        made.writestr(name, program)
        for key, data in storages:
            made.writestr(key, data)
    return path


def test_plain_tensors_are_read_as_torch_reads_them(tmp_path):
    shared = torch.randn(4, 5)
    tensors = {
        "a": torch.nn.Parameter(shared),
        "b": shared[1:3],
        "c": torch.randn(3).half(),
        "d": torch.randn(2).bfloat16(),
    }
    torch.save(tensors, tmp_path / "x.bin")
    found = pickled.read_tensors(tmp_path / "x.bin")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "called",
    [
        lambda place: Runs(os.mkdir, str(place / "run")),
        lambda place: Runs(eval, f"__import__('os').mkdir({str(place / 'run')!r})"),
        lambda place: Runs(getattr, "abc", "upper"),
        lambda place: Runs(torch.load, str(place / "x.bin")),
        lambda place: Runs(
            torch._utils._rebuild_tensor_v2, Runs(os.mkdir, str(place / "run")), 0, (2,), (1,), False, {}
        ),
    ],
)
def test_a_pickle_that_calls_something_is_refused_and_nothing_is_run(tmp_path, protocol, called):
    archive(tmp_path / "x.bin", pickle.dumps({f"{NAME}.lora_A": called(tmp_path)}, protocol))
    with pytest.raises(FormatError, match="not plain tensors"):
        pickled.read_tensors(tmp_path / "x.bin")
    assert not (tmp_path / "run").exists()


PROGRAMS = [
    b"",
    b".",
    b"\x80\x02}q\x00.garbage"[:5],
    b"\x80\x02" + b"(" * 100_000 + b".",
    b"\x80\x02u.",
    b"\x80\x02K\x01K\x02s.",
    b"\x80\x02h\x05.",
    b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    b"\x80\x02cinlay.pickled\n_DICT\n)R.",
    b"\x80\x02X\xff\xff\xff\x7fabc.",
    b"\x80\x02]K\x01a.",
    b"\x80\x02}X\x01\x00\x00\x00aX\x01\x00\x00\x00bs.",
    pickle.dumps({"a": 1}),
    pickle.dumps([1, 2]),
    pickle.dumps(b"bytes"),
    b"cos\nsystem\n(S'true'\ntR.",
]


NESTED = b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 40
"""t = (t, t), forty times: its hash and its text take 2^40 steps."""

WIDE = b"\x80\x02(" + b"K\x01" * 1_000 + b"tq\x00"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (NESTED + b"}h\x00K\x01s.", "tuples that no tensor needs"),
        (NESTED + b"h\x00\x93.", "tuples that no tensor needs"),
        (WIDE + b".", "tuples that no tensor needs"),
        (b"\x80\x02}K\x01K\x02s.", "a key or a name that is no text"),
        (b"\x80\x04K\x01K\x02\x93.", "a key or a name that is no text"),
    ],
    ids=["nested key", "nested name", "wide", "key", "name"],
)
def test_a_program_that_takes_for_ever_is_refused(tmp_path, program, says):
    with pytest.raises(FormatError, match=says):
        pickled.read_tensors(archive(tmp_path / "x.bin", program))


def test_a_storage_that_many_tensors_name_is_refused(tmp_path):
    numbers = torch.randn(1_000)
    torch.save({f"{number}": numbers for number in range(2)}, tmp_path / "tied.bin")
    assert len(pickled.read_tensors(tmp_path / "tied.bin")) == 2
    torch.save({f"{number}": numbers for number in range(100)}, tmp_path / "x.bin")
    with pytest.raises(FormatError, match="hold 400,000 bytes, more than 2 times"):
        pickled.read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_anything_else_is_refused(tmp_path, program):
    with pytest.raises(FormatError):
        pickled.read_tensors(archive(tmp_path / "x.bin", program))


def saved(tmp_path):
    """The parts of a good file: the program, and the storages by their names."""
    torch.save(good(), tmp_path / "good.bin")
    with zipfile.ZipFile(tmp_path / "good.bin") as parts:
        content = {name: parts.read(name) for name in parts.namelist()}
    program = next(name for name in content if name.endswith("data.pkl"))
    return content.pop(program), [
        (name.replace(program.partition("/")[0], "archive"), data) for name, data in content.items()
    ]


LIES = {
    "compressed": dict(how=zipfile.ZIP_DEFLATED),
    "no program": dict(name="archive/other.pkl"),
    "a program above": dict(name="../data.pkl/x"),
    "shorter": dict(change=lambda key, data: (key, data[:-4] if "/data/" in key else data)),
    "longer": dict(change=lambda key, data: (key, data + b"0000" if "/data/" in key else data)),
    "elsewhere": dict(change=lambda key, data: (key.replace("archive/data/", "../data/"), data)),
    "big-endian": dict(change=lambda key, data: (key, b"big" if key.endswith("byteorder") else data)),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_is_refused(tmp_path, lie):
    program, storages = saved(tmp_path)
    how = dict(LIES[lie])
    change = how.pop("change", lambda key, data: (key, data))
    path = archive(tmp_path / "x.bin", program, storages=[change(*one) for one in storages], **how)
    with pytest.raises(FormatError):
        pickled.read_tensors(path)


def test_an_archive_with_a_name_twice_or_cut_short_is_refused(tmp_path):
    program, storages = saved(tmp_path)
    archive(tmp_path / "x.bin", program, storages=storages)
    assert pickled.read_tensors(tmp_path / "x.bin").keys() == good().keys()
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(tmp_path / "twice.bin", program, storages=[*storages, storages[-1]])
    (tmp_path / "short.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-30])
    for name in ("twice.bin", "short.bin"):
        with pytest.raises(FormatError):
            pickled.read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (None, {}, "nothing says which lora_alpha"),
        ({}, {}, "nothing says which lora_alpha"),
        ({"lora_alpha": "8"}, {}, "says what can't be"),
        ({"lora_alpha": 0}, {}, "says what can't be"),
        ({"lora_alpha": float("nan")}, {}, "says what can't be"),
        ({"lora_alpha": 8, "enable_lora": "yes"}, {}, "says what can't be"),
        ({"lora_alpha": 8}, {f"{NAME}.lora_A": torch.full((2, 5), torch.nan)}, "NaN"),
        ({"lora_alpha": 8}, {f"{NAME}.lora_A": torch.ones(3, 5)}, "do not go together"),
        ({"lora_alpha": 8, "enable_lora": [True] * 4}, {f"{NAME}.lora_A": torch.ones(8, 5)}, "do not go together"),
        ({"lora_alpha": 8}, {f"{NAME}.lora_A": torch.ones(2)}, "1 dimensions"),
        ({"lora_alpha": 8}, {f"{NAME}.weight": torch.ones(5, 5)}, "no tensor of a layer of loralib"),
        ({"lora_alpha": 8}, {"lora_A": torch.ones(2, 5)}, "no tensor of a layer of loralib"),
        ({"lora_alpha": 8}, {"other.lora_A": torch.ones(2, 5)}, "one factor without the other"),
    ],
)
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_broken_adapter_of_loralib(tmp_path, config, changes, says, form):
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = good() | changes
    if form == "bin":
        torch.save(tensors, tmp_path / "lora.bin")
    else:
        save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(FormatError, match=says):
        formats.read(tmp_path)


MLX = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 3.0, "dropout": 0.0}}


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [
        ({"fine_tune_type": "full"}, {}, "fine_tune_type='full'"),
        ({"fine_tune_type": 5}, {}, "says what can't be"),
        ({"lora_parameters": {"rank": 2}}, {}, "has no scale"),
        ({"lora_parameters": {"rank": 2, "alpha": 4}}, {}, "lora_parameters.alpha"),
        ({"lora_parameters": [2]}, {}, "says what can't be"),
        ({"lora_parameters": {"rank": 10**30, "scale": 1.0}}, {}, "says what can't be"),
        ({"lora_parameters": {"rank": 1e300, "scale": 1.0}}, {}, "says what can't be"),
        ({"lora_parameters": {"rank": 0, "scale": 1.0}}, {}, "of rank 2"),
        ({"lora_parameters": {"rank": -2, "scale": 1.0}}, {}, "of rank 2"),
        ({"lora_parameters": {"rank": 2, "scale": 0.0}}, {}, "lora_alpha must be above 0"),
        ({"lora_parameters": {"rank": 2, "scale": float("nan")}}, {}, "says what can't be|lora_alpha"),
        ({"lora_parameters": {"rank": 2, "scale": float("inf")}}, {}, "says what can't be|lora_alpha"),
        ({}, {f"{NAME}.lora_a": torch.ones(5, 3)}, "of rank 2 and 3"),
        ({}, {f"{NAME}.lora_a": torch.full((5, 2), torch.inf)}, "NaN or infinite"),
        ({}, {f"{NAME}.m": torch.ones(5)}, "no tensor of a linear layer's Lora"),
        ({}, {f"{NAME}.weight": torch.ones(5, 5)}, "no tensor of a linear layer's Lora"),
        ({}, {"x.lora_a": torch.ones(5, 2)}, "x.lora_b: missing"),
        ({}, {"x.lora_a": torch.ones(3, 5, 2), "x.lora_b": torch.ones(3, 2, 5)}, "3 dimensions"),
        ({"fine_tune_type": "dora"}, {}, "m: missing"),
    ],
)
def test_a_broken_adapter_of_mlx(tmp_path, config, tensors, says):
    (tmp_path / "adapter_config.json").write_text(json.dumps(MLX | config))
    own = {f"{NAME}.lora_a": torch.ones(5, 2), f"{NAME}.lora_b": torch.ones(2, 5)}
    save_file(own | tensors, tmp_path / "adapters.safetensors")
    with pytest.raises((FormatError, CompatibilityError), match=says):
        formats.read(tmp_path)


def test_an_adapter_of_mlx_of_layers_that_the_base_does_not_have(place, capsys):
    (place / "theirs").mkdir()
    (place / "theirs" / "adapter_config.json").write_text(json.dumps(MLX))
    save_file(
        {"model.layers.9.x.lora_a": torch.ones(5, 2), "model.layers.9.x.lora_b": torch.ones(2, 5)},
        place / "theirs" / "adapters.safetensors",
    )
    refused(capsys, *generate(place, "theirs"), says=["no layer of that name", "model.layers.9.x"])


def written(path, *, kind="adapter", type="lora", alpha=4.0, architecture="llama", tensors=None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", kind)
    writer.add_string("adapter.type", type)
    if isinstance(alpha, float):
        writer.add_float32("adapter.lora.alpha", alpha)
    elif alpha is not None:
        writer.add_string("adapter.lora.alpha", alpha)
    own = {"blk.0.attn_v.weight.lora_a": torch.ones(2, 5), "blk.0.attn_v.weight.lora_b": torch.ones(5, 2)}
    for name, tensor in (own | (tensors or {})).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_lora_of_llama_cpp_of_alpha_0_has_a_scaling_of_1(tmp_path):
    written(tmp_path / "x.gguf", alpha=0.0)
    assert formats.read(tmp_path).method.scaling == 1
    written(tmp_path / "x.gguf", alpha=4.0)
    assert formats.read(tmp_path).method.scaling == 2


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"kind": "model"}, "general.type is 'model'"),
        ({"type": "control_vector"}, "adapter.type is 'control_vector'"),
        ({"alpha": None}, "adapter.lora.alpha is None"),
        ({"alpha": "8"}, "adapter.lora.alpha is '8'"),
        ({"alpha": float("nan")}, "adapter.lora.alpha is nan"),
        ({"alpha": float("inf")}, "adapter.lora.alpha is inf"),
        ({"alpha": -1.0}, "adapter.lora.alpha is -1.0"),
        ({"architecture": "mamba"}, "general.architecture is 'mamba'"),
        ({"tensors": {"blk.0.attn_v.weight.lora_a": torch.ones(3, 5)}}, "ranks 3 and 2"),
        ({"tensors": {"blk.0.attn_v.weight.lora_a": torch.ones(2, 3, 5)}}, "no factor of a linear layer"),
        ({"tensors": {"blk.0.attn_v.weight.lora_a": torch.full((2, 5), torch.nan)}}, "NaN or infinite"),
        ({"tensors": {"blk.1.attn_v.weight.lora_a": torch.ones(2, 5)}}, "one factor without the other"),
        ({"tensors": {"blk.0.attn_v.weight": torch.ones(5, 5)}}, "no factor of a linear layer"),
        ({"tensors": {"blk.0.attn_v.weight.lora_a": torch.ones(2, 5, dtype=torch.int32)}}, "I32"),
    ],
)
def test_a_broken_lora_of_llama_cpp(tmp_path, how, says):
    written(tmp_path / "x.gguf", **how)
    with pytest.raises(InlayError, match=says):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {"blk.9.attn_v.weight.lora_a": torch.ones(2, 20), "blk.9.attn_v.weight.lora_b": torch.ones(12, 2)},
            "no layer of that name",
        ),
        (
            {"blk.0.ssm_in.weight.lora_a": torch.ones(2, 20), "blk.0.ssm_in.weight.lora_b": torch.ones(12, 2)},
            "not known what this tensor",
        ),
        (
            {"blk.0.attn_q.weight.lora_a": torch.ones(2, 20), "blk.0.attn_q.weight.lora_b": torch.ones(7, 2)},
            "no whole heads",
        ),
        ({}, "shape"),
    ],
)
def test_a_lora_of_llama_cpp_that_is_not_of_this_base(place, capsys, tensors, says):
    (place / "theirs").mkdir()
    written(place / "theirs" / "x.gguf", tensors=tensors)
    refused(capsys, *generate(place, "theirs"), says=[says])


def test_several_files_of_llama_cpp_in_one_directory_are_refused(tmp_path):
    written(tmp_path / "x.gguf")
    written(tmp_path / "y.gguf")
    with pytest.raises(InlayError, match="several GGUF files"):
        formats.read(tmp_path)
    with pytest.raises(InlayError, match="several GGUF files"):
        formats.read(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").unlink()
    assert formats.read(tmp_path / "x.gguf").form == "gguf"
