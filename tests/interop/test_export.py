"""What is exported for an engine does what the adapter does, by that engine's own rule; and what others keep is read back.

The rules of the engines are written here from their sources, in float64, with nothing of ours.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import inlay
from inlay import formats
from inlay.cli import serve
from inlay.errors import CompatibilityError
from inlay.export import engines
from inlay.training import going_on
from tests.support import adapters, bases, models
from tests.support.command import run

gguf = pytest.importorskip("gguf")

KINDS = {
    "plain": inlay.Lora(r=3, lora_alpha=5),
    "rslora": inlay.Lora(r=3, lora_alpha=5, use_rslora=True),
    "patterns": inlay.Lora(r=3, lora_alpha=5, rank_pattern={"v_proj": 2}, alpha_pattern={"down_proj": 7}),
    "few": inlay.Lora(r=3, lora_alpha=5, target_modules=("q_proj", "up_proj"), use_rslora=True),
}


@pytest.fixture(params=KINDS)
def made(request, tmp_path):
    """(base, the directory of an adapter)"""
    base = inlay.load(bases.directory(tmp_path / "base"), dtype="float32")
    models.randomize(base.attach(KINDS[request.param], "mine"), seed=3, std=0.2)
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    return base, tmp_path


def of_peft(directory, *, by_pattern=True):
    """delta W of each layer that changes; without patterns, as SGLang has it: lora_alpha / r of the configuration."""
    config = json.loads((directory / "adapter_config.json").read_text())
    found = adapters.changes(directory)
    if not by_pattern:
        tensors = load_file(directory / "adapter_model.safetensors")
        for path in found:
            A, B = (tensors[f"base_model.model.{path}.lora_{part}.weight"].astype(np.float64) for part in "AB")
            found[path] = config["lora_alpha"] / config["r"] * B @ A
    return {path: change for path, change in found.items() if change.any()}


def of_mlx(directory):
    """scale (lora_a lora_b)^T"""
    scale = json.loads((directory / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    tensors = load_file(directory / "adapters.safetensors")
    paths = {name.rpartition(".")[0] for name in tensors}
    return {
        path: scale * (tensors[f"{path}.lora_a"].astype(np.float64) @ tensors[f"{path}.lora_b"].astype(np.float64)).T
        for path in paths
    }


def of_gguf(directory, config):
    """(alpha / rank) B A, read by the `gguf` package; the rows of q and k from neighbours to halves."""
    reader = gguf.GGUFReader(directory / "adapter.gguf")
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    assert bytes(reader.fields["general.type"].parts[-1]) == b"adapter"
    tensors = {one.name: np.asarray(one.data, np.float64) for one in reader.tensors}
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    found = {}
    for name in tensors:
        if not name.endswith(".lora_a"):
            continue
        _, number, module = name.removesuffix(".weight.lora_a").split(".")
        A, B = tensors[name], tensors[name.replace("lora_a", "lora_b")]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(module)
        if heads:
            B = B.reshape(heads, -1, 2, B.shape[1]).swapaxes(1, 2).reshape(B.shape)
        found[f"model.layers.{number}.{names[module]}"] = alpha / len(A) * (B @ A)
    return found


@pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang", "mlx", "llama.cpp"])
def test_an_engine_does_what_the_adapter_does(made, capsys, engine):
    base, place = made
    status, _, err = run(
        capsys, "export", place / "base", place / "mine", "--for", engine, "--output", place / "theirs"
    )
    assert status == 0, err
    wanted = of_peft(place / "mine")
    readers = {
        "mlx": of_mlx,
        "llama.cpp": lambda directory: of_gguf(directory, base.model.config),
        "sglang": lambda directory: of_peft(directory, by_pattern=False),
    }
    found = readers.get(engine, of_peft)(place / "theirs")
    assert found.keys() == wanted.keys()
    for path, change in wanted.items():
        np.testing.assert_allclose(found[path], change, atol=1e-6 * np.abs(change).max())


@pytest.mark.parametrize("engine", ["vllm", "sglang", "mlx", "llama.cpp"])
def test_what_was_exported_answers_here_as_before(made, capsys, engine):
    base, place = made
    assert run(capsys, "export", place / "base", place / "mine", "--for", engine, "--output", place / "theirs")[0] == 0
    assert base.attach(place / "theirs").name == "theirs"
    ids = models.tokens(2, 9)
    torch.testing.assert_close(base.logits(ids, "theirs"), base.logits(ids, "mine"), rtol=0, atol=2e-5)
    assert not torch.allclose(base.logits(ids, "theirs"), base.logits(ids, None), atol=1e-2)
    assert run(capsys, "inspect", place / "theirs")[0] == 0


def test_a_plain_adapter_is_written_to_the_bit(tmp_path):
    base = inlay.load(bases.directory(tmp_path / "base"), dtype="float32")
    models.randomize(base.attach(KINDS["plain"], "mine"), seed=3, std=0.2)
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    file = formats.read(tmp_path / "mine")
    same = engines.plain(file)
    assert (same.method.r, same.method.lora_alpha) == (3, 5)
    assert all(
        torch.equal(same.params[path][key], file.params[path][key]) for path in file.params for key in file.params[path]
    )


def test_sglang_gets_the_layers_that_belong_together(tmp_path, capsys):
    base = inlay.load(bases.directory(tmp_path / "base"), dtype="float32")
    models.randomize(base.attach(KINDS["few"], "mine"), seed=3)
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    run(capsys, "export", tmp_path / "base", tmp_path / "mine", "--for", "sglang", "--output", tmp_path / "theirs")
    names = {path.rpartition(".")[2] for path in formats.read(tmp_path / "theirs").params}
    assert names == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (inlay.Dora(r=2), ["DoRA", "inlay convert"]),
        (inlay.Ia3(), ["another method than LoRA", "inlay convert"]),
        (inlay.Lora(r=2, bias="lora_only"), ["biases", "inlay merge"]),
        (inlay.Lora(r=2, modules_to_save=("lm_head",)), ["whole modules", "inlay merge"]),
        (inlay.Lora(r=2, target_modules=("embed_tokens", "q_proj")), ["inlay merge"]),
        (inlay.Prompt(num_virtual_tokens=3), ["another method than LoRA", "inlay serve"]),
    ],
)
@pytest.mark.parametrize("engine", ["sglang", "mlx", "llama.cpp", "ollama"])
def test_what_an_engine_can_not_do_is_refused(tmp_path, method, says, engine):
    base = inlay.load(bases.directory(tmp_path / "base"), dtype="float32")
    models.randomize(base.attach(method, "mine"), seed=3)
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    (tmp_path / "theirs").mkdir()
    with pytest.raises(CompatibilityError, match=f"{engine} can't do what this adapter does") as caught:
        engines.write(tmp_path / "theirs", formats.read(tmp_path / "mine"), engine)
    assert all(text in str(caught.value) for text in says), str(caught.value)
    assert not any((tmp_path / "theirs").iterdir())


def test_an_adapter_of_another_base_is_not_exported(tmp_path, capsys):
    base = inlay.load(bases.directory(tmp_path / "base"), dtype="float32")
    base.attach(KINDS["plain"], "mine")
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    other = bases.directory(tmp_path / "other", "gpt2")
    status, _, err = run(capsys, "export", other, tmp_path / "mine", "--for", "vllm", "--output", tmp_path / "theirs")
    assert (status, "does not fit other" in err) == (1, True)


def test_dora_of_mlx_is_read(tmp_path):
    """m / |W + scale (ab)^T| (W + scale (ab)^T) x, row by row."""
    base = inlay.load(bases.directory(tmp_path / "base"), dtype="float32")
    models.randomize(base.attach(inlay.Dora(r=2, lora_alpha=3, target_modules="q_proj"), "mine"), seed=3, std=0.2)
    kept = base.adapters["mine"].params
    (tmp_path / "theirs").mkdir()
    tensors = {}
    for path, params in kept.items():
        tensors |= {
            f"{path}.lora_a": params["lora_A"].T.contiguous().detach().numpy(),
            f"{path}.lora_b": params["lora_B"].T.contiguous().detach().numpy(),
            f"{path}.m": params["lora_magnitude_vector"].detach().numpy(),
        }
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "theirs" / "adapters.safetensors")
    config = {"fine_tune_type": "dora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 1.5, "dropout": 0.0}}
    (tmp_path / "theirs" / "adapter_config.json").write_text(json.dumps(config))
    base.attach(tmp_path / "theirs")
    ids = models.tokens(2, 9)
    torch.testing.assert_close(base.logits(ids, "theirs"), base.logits(ids, "mine"), rtol=0, atol=1e-5)


def test_a_merged_linear_of_loralib_is_one_change(tmp_path):
    """delta W has a block B_i A_i for each map that is adapted, and zeros for the others: loralib's zero_pad of a grouped conv1d."""
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(4, 5, generator=generator), torch.randn(6, 2, generator=generator)
    torch.save({"h.0.c_attn.lora_A": A, "h.0.c_attn.lora_B": B}, tmp_path / "lora.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 7, "enable_lora": [True, False, True]}))
    file = formats.read(tmp_path)
    pair = file.params["h.0.c_attn"]
    found = file.method.scaling * pair["lora_B"] @ pair["lora_A"]
    blocks = torch.nn.functional.conv1d(A[None], B[:, :, None], groups=2)[0] * 7 / 2
    wanted = torch.zeros(9, 5)
    wanted[:3], wanted[6:] = blocks[:3], blocks[3:]
    torch.testing.assert_close(found, wanted)


def test_a_merged_linear_of_which_one_map_is_adapted_has_the_rows_of_all(tmp_path):
    A, B = torch.ones(2, 5), torch.ones(3, 2)
    torch.save({"h.0.c_attn.lora_A": A, "h.0.c_attn.lora_B": B}, tmp_path / "lora.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 7, "enable_lora": [False, True, False]}))
    found = formats.read(tmp_path).params["h.0.c_attn"]["lora_B"]
    assert torch.equal(found, torch.cat([torch.zeros(3, 2), B, torch.zeros(3, 2)]))


def test_training_that_goes_on_knows_files_of_every_form(tmp_path):
    torch.save({"h.0.c_attn.lora_A": torch.ones(2, 5), "h.0.c_attn.lora_B": torch.ones(3, 2)}, tmp_path / "lora.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 7}))
    before = going_on.about(tmp_path)["sha256"]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    assert going_on.about(tmp_path)["sha256"] != before


def test_a_server_takes_an_adapter_by_the_name_of_its_file(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.gguf").write_bytes(b"GGUF")
    assert serve._named((f"a={tmp_path}/x/a.gguf",)) == {"a": tmp_path / "x"}
