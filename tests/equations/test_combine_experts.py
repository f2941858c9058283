"""Experts that are one parameter are combined one by one, against the files' own tensors in float64."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import inlay
from inlay import formats
from inlay.base.load import load
from inlay.combine.combine import combine
from inlay.combine.ways import find
from inlay.errors import CompatibilityError
from tests.equations.test_combine import EXACT
from tests.support import adapters, bases, models
from tests.support.command import run

TARGETS = "down_proj,gate_up_proj,q_proj"
METHODS = {
    "one": inlay.Lora(r=3, lora_alpha=7, target_modules=TARGETS),
    "two": inlay.Lora(r=2, lora_alpha=5, use_rslora=True, target_modules=TARGETS),
    "down": inlay.Lora(r=2, lora_alpha=5, target_modules="down_proj,q_proj"),
    "heads": inlay.Lora(r=2, lora_alpha=3, target_modules="q_proj"),
}
WEIGHTS = {"one": 1.0, "two": -0.4, "heads": 0.7}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    base = load(bases.directory(home / "base", "mixtral"), dtype="float32")
    for number, (name, method) in enumerate(METHODS.items()):
        models.randomize(base.attach(method, name), seed=6 + number)
        (home / name).mkdir()
        base.save(name, home / name, base.about_base)
        base.detach(name)
    return home


def changes(directory, count):
    """(place, number of the expert) -> its change, by PEFT's rule for them; of what is no expert's the number is 0."""
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors, found = load_file(directory / "adapter_model.safetensors"), {}
    for key in [key for key in tensors if key.endswith("lora_A.weight")]:
        A, B = tensors[key].astype(np.float64), tensors[key.replace("lora_A", "lora_B")].astype(np.float64)
        place = key.removeprefix(adapters.PREFIX).removesuffix(".lora_A.weight")
        own = count if ".experts" in place else 1
        A, B = A.reshape(own, -1, A.shape[1]), B.reshape(len(B), -1, own)
        for i in range(own):
            found[place, i] = adapters.scaling(config, place) * (B[:, :, i] @ A[i])
    return found


@pytest.mark.parametrize("how", [{"how": "cat"}, {"how": "svd", "r": 2}, {"how": "dare", "r": 7, "drop": 0.0}])
def test_each_expert_is_combined_by_itself(home, tmp_path, how):
    base = load(home / "base", dtype="float32")
    count = base.model.config.num_local_experts
    files, settings = {name: formats.read(home / name) for name in WEIGHTS}, dict(how)
    found = combine(files, WEIGHTS, find(settings.pop("how"), settings))
    (tmp_path / "out").mkdir()
    formats.write(tmp_path / "out", found.file)
    each = [
        {key: weight * change for key, change in changes(home / name, count).items()}
        for name, weight in WEIGHTS.items()
    ]
    made = changes(tmp_path / "out", count)
    assert {place for place, _ in made} == {*found.modules}
    assert sum(".experts" in place for place, _ in made) == 3 * 2 * count
    off = size = 0.0
    for key in made:
        matrices = [own[key] for own in each if key in own]
        wanted = sum(matrices)
        if how["how"] == "svd":
            wanted = adapters.best(wanted, 2)
        off, size = off + np.square(made[key] - wanted).sum(), size + np.square(wanted).sum()
    assert off <= EXACT**2 * size
    base.attach(tmp_path / "out")
    for path in found.file.parameters:
        assert base.adapters["out"].params[path]["lora_A"].shape[0] == count


def test_the_model_says_the_same_with_an_adapter_that_was_doubled_and_halved(home, tmp_path, capsys):
    base = load(home / "base", dtype="float32")
    tokens = torch.tensor([[5, 9, 11, 20, 7]])
    base.attach(home / "one")
    before = base.logits(tokens, "one")
    assert run(capsys, "combine", home / "one", "--weights", 2, "--output", tmp_path / "twice")[0] == 0
    assert (
        run(capsys, "combine", tmp_path / "twice", "--weights", 0.5, "--how", "svd", "--output", tmp_path / "once")[0]
        == 0
    )
    base.attach(tmp_path / "twice")
    base.attach(tmp_path / "once")
    assert (base.logits(tokens, "twice") - before).abs().max() > 1e-2
    assert (base.logits(tokens, "once") - before).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("names", "says"),
    [(("one", "down"), "different parameters of several maps")],
)
def test_experts_that_can_not_be_told_apart_are_refused(home, names, says):
    files = {name: formats.read(home / name) for name in names}
    with pytest.raises(CompatibilityError, match=says):
        combine(files, dict.fromkeys(names, 1.0), find("cat", {}))


def test_intruders_of_experts_are_not_looked_for(home, tmp_path, capsys):
    more = ["--shrink-intruders", 0.5, "--model", home / "base", "--output", tmp_path / "out"]
    status, _, err = run(capsys, "combine", home / "one", *more)
    assert status == 1
    assert "looked for in linear layers alone" in err
    status, _, err = run(capsys, "diff", home / "one", home / "two")
    assert status == 1
    assert "parameters of several maps" in err
