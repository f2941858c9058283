"""Changes of any kind as a LoRA, and adapters out of checkpoints, against full matrices in float64."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import inlay
from inlay.base.load import load
from tests.equations.test_combine import EXACT
from tests.support import adapters, bases, models
from tests.support.command import run, run_json

METHODS = {
    "lora": inlay.Lora(r=3, lora_alpha=7, use_rslora=True),
    "adalora": inlay.Adalora(init_r=4, target_r=2, lora_alpha=5),
    "vera": inlay.Vera(r=4),
    "dora": inlay.Dora(r=3, lora_alpha=5, modules_to_save="norm"),
    "loha": inlay.Loha(r=2),
    "lokr": inlay.Lokr(r=2),
    "oft": inlay.Oft(),
    "ia3": inlay.Ia3(),
}
PRODUCTS = ("lora", "adalora", "vera", "loha")


def merged(base, name, paths):
    """What an adapter adds to each weight, by its merge in float64."""
    with torch.no_grad():
        return {
            path: (weight - base.maps[path].weight(torch.float64)).numpy()
            for path in paths
            for weight in [changed(base, name, path)]
        }


def changed(base, name, path):
    """The weight at `path` with the adapter's change: its rows for inputs that have a single one."""
    linear = base.maps[path]
    adapter = base.adapters[name]
    method = adapter.method
    method = method.for_module(path) if hasattr(method, "for_module") else method
    shared = method.share(adapter.shared, linear.one) if adapter.shared else {}
    tensors = {key: tensor.double() for key, tensor in {**shared, **adapter.params[path]}.items()}
    return method.merge(tensors, linear.weight(torch.float64), None)[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    bases.directory(home / "base")
    return home


@pytest.mark.parametrize("name", METHODS)
def test_the_model_says_the_same_with_the_converted_adapter(home, tmp_path, capsys, name):
    """At full rank nothing is lost; at a low one, no more than is said."""
    base = load(home / "base", dtype="float32")
    models.randomize(base.attach(METHODS[name], name), seed=6, std=0.1)
    (tmp_path / name).mkdir()
    base.save(name, tmp_path / name, {})
    more = [] if name in PRODUCTS else ["--r", 20]
    report = run_json(capsys, "convert", home / "base", tmp_path / name, "--output", tmp_path / "out", *more)
    assert report["relative_error"] < EXACT
    assert isinstance(base.attach(tmp_path / "out", "out").method, inlay.Lora)
    ids = models.tokens(2, 9)
    with torch.no_grad():
        said, wanted, plain = (base.logits(ids, which) for which in ("out", name, None))
    assert (said - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (wanted - plain).abs().max() > 1e-2
    low = run_json(capsys, "convert", home / "base", tmp_path / name, "--output", tmp_path / "low", "--r", 2)
    changes = adapters.changes(tmp_path / "low")
    total = merged(base, name, changes)
    best = {path: adapters.best(change, 2) for path, change in total.items()}
    assert adapters.distance(changes, best) < 1e-5
    assert low["relative_error"] == pytest.approx(adapters.distance(best, total), abs=1e-5)


def test_prompts_are_no_changes_of_layers(home, tmp_path, capsys):
    base = load(home / "base", dtype="float32")
    base.attach(inlay.Prompt(num_virtual_tokens=3), "prompt")
    (tmp_path / "prompt").mkdir()
    base.save("prompt", tmp_path / "prompt", {})
    status, _, err = run(capsys, "convert", home / "base", tmp_path / "prompt", "--output", tmp_path / "out")
    assert status == 1
    assert "no changes that a LoRA could hold\n  found: prompt: prompt" in err


def test_experts_are_no_layers_of_a_plain_lora(tmp_path, capsys):
    base = load(bases.directory(tmp_path / "base", "mixtral"), dtype="float32")
    models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5, target_modules="down_proj,q_proj"), "experts"), seed=6)
    (tmp_path / "experts").mkdir()
    base.save("experts", tmp_path / "experts", {})
    status, _, err = run(capsys, "convert", tmp_path / "base", tmp_path / "experts", "--output", tmp_path / "out")
    assert status == 1
    assert "changes parameters of several maps\n  found: experts: model.layers.0.mlp.experts.down_proj" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["extract", "convert"])
@pytest.mark.parametrize("r", [0, -1])
def test_a_rank_that_is_none_is_refused_before_anything_is_read(tmp_path, capsys, command, r):
    places = (tmp_path / "base", tmp_path / "other", "--output", tmp_path / "out")
    status, _, err = run(capsys, command, *places, f"--r={r}")
    assert status == 1
    assert f"r must be at least 1\n  found: r={r}" in err


def tuned(base, place, change):
    """A copy of a base whose tensors are what `change(name, tensor)` makes of them."""
    shutil.copytree(base, place)
    tensors = load_file(place / "model.safetensors")
    changed = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
    save_file(changed, place / "model.safetensors", metadata={"format": "pt"})
    return tensors, changed


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_what_was_learned_is_taken_out(tmp_path, capsys, family):
    """Of embeddings that are the head too, for both."""
    bases.directory(tmp_path / "base", family)
    generator = torch.Generator().manual_seed(4)

    def change(name, tensor):
        if "k_proj" in name:
            return tensor
        return tensor + 0.1 * torch.randn(tensor.shape, generator=generator)

    before, after = tuned(tmp_path / "base", tmp_path / "tuned", change)
    full = run_json(capsys, "extract", tmp_path / "base", tmp_path / "tuned", "--r", 28, "--output", tmp_path / "full")
    assert full["relative_error"] < EXACT
    base, ids = load(tmp_path / "base", dtype="float32"), models.tokens(2, 9)
    wanted = load(tmp_path / "tuned", dtype="float32").logits(ids, None)
    base.attach(tmp_path / "full", "full")
    with torch.no_grad():
        assert (base.logits(ids, "full") - wanted).abs().max() < 1e-4 * wanted.abs().max()
    low = run_json(capsys, "extract", tmp_path / "base", tmp_path / "tuned", "--r", 3, "--output", tmp_path / "low")
    changes = adapters.changes(tmp_path / "low")
    names = {path: f"{path}.weight" if f"{path}.weight" in after else "model.embed_tokens.weight" for path in changes}
    total = {path: (after[name].double() - before[name].double()).numpy() for path, name in names.items()}
    total = {path: change if "embed" not in path else change.T for path, change in total.items()}
    assert not any("k_proj" in path for path in changes)
    best = {path: adapters.best(change, 3) for path, change in total.items()}
    assert adapters.distance(changes, best) < 1e-5
    assert low["relative_error"] == pytest.approx(adapters.distance(changes, total), rel=1e-4)
    assert np.isfinite(low["relative_error"])


def test_a_checkpoint_that_is_not_of_the_base_is_refused(home, tmp_path, capsys):
    bases.directory(tmp_path / "other", "qwen3")
    extract = ["extract", home / "base", "--output", tmp_path / "out"]
    status, _, err = run(capsys, *extract, tmp_path / "other")
    assert status == 1
    assert "was not made of the other" in err
    status, _, err = run(capsys, *extract, home / "base")
    assert status == 1
    assert "do not differ" in err
    assert not (tmp_path / "out").exists()
