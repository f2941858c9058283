"""Adapters made of adapters, against sums of full matrices in float64."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import inlay
from inlay import formats
from inlay.base.load import load
from inlay.combine.combine import combine
from inlay.combine.ways import WAYS, find
from inlay.errors import CompatibilityError, ConfigError, UnknownNameError
from tests.support import adapters, bases, models
from tests.support.command import run, run_json

EXACT = 1e-6
"""How far the result may be from the sum of full matrices in float64: factors of float32, rounded once, are off by 2^-24."""

ROUNDED = 1e-5
"""Likewise where the whole change was made in float32, and a decomposition of it came to a rank."""

METHODS = {
    "plain": inlay.Lora(r=3, lora_alpha=7),
    "rslora": inlay.Lora(r=5, lora_alpha=3, use_rslora=True, target_modules="q_proj,down_proj"),
    "patterns": inlay.Lora(
        r=3, lora_alpha=5, rank_pattern={"q_proj": 2, r"layers\.1\..*": 4}, alpha_pattern={"v_proj": 11}
    ),
    "some": inlay.Lora(r=3, lora_alpha=2, target_modules="q_proj,v_proj", layers_to_transform=(0, 2)),
    "adalora": inlay.Adalora(init_r=4, target_r=2, lora_alpha=5),
    "tables": inlay.Lora(r=3, lora_alpha=5, target_modules="embed_tokens,up_proj"),
    "saved": inlay.Lora(r=3, lora_alpha=5, target_modules="q_proj", modules_to_save="norm"),
    "biases": inlay.Lora(r=3, lora_alpha=5, target_modules="q_proj,v_proj", bias="lora_only"),
    "tokens": inlay.Lora(r=3, lora_alpha=5, target_modules="q_proj", trainable_token_indices=(5, 9)),
    "dora": inlay.Dora(r=3, lora_alpha=5),
    "loha": inlay.Loha(r=2),
    "prompt": inlay.Prompt(num_virtual_tokens=3),
}
PLAIN = ("plain", "rslora", "patterns", "some", "tables")


def saved(base, place, names, twice=()):
    """An adapter of each method of these names, with generic values, in `place`; of those in `twice` another one beside it."""
    for number, name in enumerate([*names, *twice]):
        own = name if number < len(names) else f"{name}-2"
        models.randomize(base.attach(METHODS[name], own), seed=6 + number)
        (place / own).mkdir()
        base.save(own, place / own, {})
        base.detach(own)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    base = load(bases.directory(home / "base"), dtype="float32")
    saved(base, home, METHODS, twice=("plain", "saved", "biases", "tokens"))
    return home


def made(home, out, weights, how="cat", **settings):
    """(what was combined of the adapters of these names and weights, what the files that were written do to each weight)."""
    files = {name: formats.read(home / name) for name in weights}
    found = combine(files, weights, find(how, settings))
    out.mkdir()
    formats.write(out, found.file)
    return found, adapters.changes(out)


def wanted(home, weights):
    return adapters.total(*((weight, adapters.changes(home / name)) for name, weight in weights.items()))


CASES = [
    {"plain": 1.0},
    {"plain": -0.7},
    {"plain": 0.3, "plain-2": 1.7},
    {"plain": 1.0, "rslora": -0.4},
    {"rslora": 0.6, "patterns": 1.1, "some": 0.9, "plain": -1.3},
    {"tables": 2.0, "some": 1.5},
]


@pytest.mark.parametrize("weights", CASES, ids=lambda weights: "+".join(weights))
def test_the_sum_is_exact(home, tmp_path, weights):
    found, changes = made(home, tmp_path / "out", weights)
    assert adapters.distance(changes, wanted(home, weights)) < EXACT
    assert found.error == 0


@pytest.mark.parametrize("r", [2, 5, None])
@pytest.mark.parametrize("weights", CASES, ids=lambda weights: "+".join(weights))
def test_the_best_of_a_rank_is_that_of_the_full_matrix(home, tmp_path, weights, r):
    found, changes = made(home, tmp_path / "out", weights, "svd", r=r)
    total = wanted(home, weights)
    best = {path: adapters.best(change, found.modules[path].r) for path, change in total.items()}
    assert adapters.distance(changes, best) < EXACT
    assert found.error == pytest.approx(adapters.distance(best, total), abs=EXACT)
    assert all(module.r <= (r or 5) for module in found.modules.values())


def test_of_all_ranks_the_best_is_the_sum(home, tmp_path):
    found, changes = made(home, tmp_path / "out", CASES[4], "svd", r=40)
    assert adapters.distance(changes, wanted(home, CASES[4])) < EXACT
    assert found.error < EXACT


def test_factors_that_are_shared_add_up(home, tmp_path):
    """Those of one adapter and of another one with the same A; and of any adapter with itself."""
    assert (
        adapters.distance(made(home, tmp_path / "once", {"plain": -2.5}, "linear")[1], wanted(home, {"plain": -2.5}))
        < EXACT
    )
    file = formats.read(home / "plain")
    shared = {path: {**module, "lora_B": -module["lora_B"] + 0.1} for path, module in file.params.items()}
    other = formats.read(home / "plain")
    other.params.update(shared)
    found = combine({"one": file, "other": other}, {"one": 0.3, "other": 1.1}, find("linear", {}))
    assert found.error < EXACT
    (tmp_path / "other").mkdir()
    formats.write(tmp_path / "other", other)
    (tmp_path / "out").mkdir()
    formats.write(tmp_path / "out", found.file)
    total = adapters.total((0.3, adapters.changes(home / "plain")), (1.1, adapters.changes(tmp_path / "other")))
    assert adapters.distance(adapters.changes(tmp_path / "out"), total) < EXACT


def test_factors_of_adapters_apart_are_said_to_be_off(home, tmp_path):
    weights = {"plain": 0.3, "plain-2": 1.7}
    found, changes = made(home, tmp_path / "out", weights, "linear")
    assert found.error == pytest.approx(adapters.distance(changes, wanted(home, weights)), rel=1e-5)
    assert found.error > 0.1


SPREAD = {"plain": 0.8, "rslora": -1.4, "plain-2": 1.1}
"""Three adapters, of which one leaves most modules alone."""


@pytest.mark.parametrize("space", ["core", "full"])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_ties_is_the_algorithm_of_its_paper(home, tmp_path, space, density):
    changes = made(home, tmp_path / "out", SPREAD, "ties", r=28, density=density, space=space)[1]
    own = {name: adapters.changes(home / name) for name in SPREAD}
    expected = {}
    for path, change in changes.items():
        matrices = [own[name].get(path, np.zeros_like(change)) for name in SPREAD]
        if space == "core":
            U, V = adapters.reference([home / name for name in SPREAD], path)
            matrices = [U.T @ matrix @ V for matrix in matrices]
        expected[path] = adapters.ties(matrices, SPREAD.values(), density)
        if space == "core":
            expected[path] = U @ expected[path] @ V.T
    assert adapters.distance(changes, expected) < (EXACT if space == "core" else ROUNDED)


def test_ties_of_one_adapter_thrice_is_that_adapter(home, tmp_path):
    files = {name: formats.read(home / "plain") for name in ("a", "b", "c")}
    found = combine(files, dict.fromkeys(files, 1.0), find("ties", {"density": 1.0}))
    (tmp_path / "out").mkdir()
    formats.write(tmp_path / "out", found.file)
    assert adapters.distance(adapters.changes(tmp_path / "out"), wanted(home, {"plain": 1.0})) < EXACT


@pytest.mark.parametrize("space", ["core", "full"])
def test_dare_that_drops_nothing_is_the_sum(home, tmp_path, space):
    changes = made(home, tmp_path / "out", SPREAD, "dare", r=28, drop=0, space=space)[1]
    assert adapters.distance(changes, wanted(home, SPREAD)) < ROUNDED


def test_dare_drops_so_many_entries_and_makes_up_for_them(home, tmp_path):
    changes = made(home, tmp_path / "out", {"plain": 0.8}, "dare", r=28, drop=0.3, space="full")[1]
    own = wanted(home, {"plain": 0.8})
    ratios = np.concatenate([(changes[path] / own[path]).ravel() for path in own])
    dropped = np.abs(ratios) < 1e-2
    assert np.allclose(ratios[~dropped], 1 / 0.7, atol=1e-2)
    assert dropped.mean() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("space", ["core", "full"])
def test_the_mean_of_all_draws_is_the_sum(home, space):
    files, path = {name: formats.read(home / name) for name in SPREAD}, "model.layers.1.self_attn.q_proj"
    for file in files.values():
        for other in [other for other in file.params if other != path]:
            del file.params[other]
    num, total = 400, 0
    for seed in range(num):
        tensors = combine(
            files, SPREAD, find("dare", {"drop": 0.5, "r": 28, "space": space, "seed": seed})
        ).file.params[path]
        total = total + (tensors["lora_B"] @ tensors["lora_A"]).double().numpy() / num
    expected = wanted(home, SPREAD)[path]
    assert np.linalg.norm(total - expected) < 3 * np.sqrt(3 / num) * np.linalg.norm(expected)


def test_what_is_drawn_depends_on_the_seed_and_the_module_alone(home, tmp_path):
    first = made(home, tmp_path / "a", {"plain": 1.0}, "dare")[1]
    again = made(home, tmp_path / "b", {"plain": 1.0}, "dare")[1]
    assert adapters.distance(first, again) == 0
    files = {"plain": formats.read(home / "plain")}
    alone = {path: dict(tensors) for path, tensors in list(files["plain"].params.items())[-1:]}
    only = {"plain": dataclasses.replace(files["plain"], params=alone)}
    for path, tensors in combine(only, {"plain": 1.0}, find("dare", {})).file.params.items():
        assert torch.equal(tensors["lora_A"], formats.read(tmp_path / "a").params[path]["lora_A"])
    other = combine(files, {"plain": 1.0}, find("dare", {"seed": 1})).file.params
    assert any(
        not torch.equal(other[key]["lora_A"], formats.read(tmp_path / "a").params[key]["lora_A"]) for key in other
    )


@pytest.mark.parametrize("weights", [{"plain": 0.3, "plain-2": 0.9}, {"plain": 1.0, "rslora": 1.0}], ids="+".join)
def test_slerp_goes_along_the_great_circle(home, tmp_path, weights):
    changes = made(home, tmp_path / "out", weights, "slerp", r=8)[1]
    one, other = (adapters.changes(home / name) for name in weights)
    first, second = weights.values()
    t = second / (first + second)
    expected = {path: adapters.slerp(one[path], other[path], t) for path in one.keys() & other.keys()}
    expected |= {path: (1 - t) * one[path] for path in one.keys() - other.keys()}
    assert adapters.distance(changes, expected) < EXACT


def test_slerp_between_an_adapter_and_its_opposite_is_straight(home):
    files = {name: formats.read(home / "plain") for name in ("one", "other")}
    for tensors in files["other"].params.values():
        tensors["lora_B"] = -tensors["lora_B"]
    found = combine(files, {"one": 1.0, "other": 3.0}, find("slerp", {}))
    for path, tensors in found.file.params.items():
        own = files["one"].params[path]
        expected = -0.5 * files["one"].method.scaling * own["lora_B"].double() @ own["lora_A"].double()
        assert (
            tensors["lora_B"].double() @ tensors["lora_A"].double() - expected
        ).abs().max() < EXACT * expected.abs().max()


@pytest.mark.parametrize(
    ("weights", "says"), [({"plain": 1.0}, "between 2"), ({"plain": 1.0, "plain-2": -1.0}, "above 0")]
)
def test_slerp_is_between_two(home, tmp_path, weights, says):
    with pytest.raises(ConfigError, match=says):
        made(home, tmp_path / "out", weights, "slerp")


@pytest.mark.parametrize("name", ["saved", "biases", "tokens"])
def test_what_replaces_the_base_is_averaged(home, tmp_path, name):
    weights = {name: 0.3, f"{name}-2": 0.7}
    changes = made(home, tmp_path / "out", weights)[1]
    assert adapters.distance(changes, wanted(home, weights)) < EXACT
    one, other = (formats.read(home / each).params for each in weights)
    whole = [(path, key) for path in one for key in one[path] if not key.startswith("lora_")]
    assert whole
    for path, key in whole:
        mean = 0.3 * one[path][key].double() + 0.7 * other[path][key].double()
        assert (formats.read(tmp_path / "out").params[path][key].double() - mean).abs().max() < EXACT
    with pytest.raises(CompatibilityError, match="replace the base's"):
        made(home, tmp_path / "no", {name: 1.0, f"{name}-2": 1.0})


@pytest.mark.parametrize("name", ["saved", "biases", "tokens"])
def test_ties_does_not_know_the_signs_of_what_replaces_the_base(home, tmp_path, name):
    """Its mean of two layers at the weights 1 and 1 is that of the tensors at 0.5 and 0.5: no weights fit both."""
    for weight in (0.5, 1.0):
        with pytest.raises(CompatibilityError, match="ties of these tensors is not known") as caught:
            made(home, tmp_path / "out", {name: weight, f"{name}-2": weight}, "ties")
        assert "--how svd" in caught.value.hint


def test_a_module_that_is_saved_whole_in_one_of_them_stays(home, tmp_path):
    found, _ = made(home, tmp_path / "out", {"saved": 1.0, "plain": 0.5})
    assert torch.equal(
        found.file.params["model.norm"]["weight"], formats.read(home / "saved").params["model.norm"]["weight"]
    )


@pytest.mark.parametrize(
    "weights", [*CASES, {"saved": 0.3, "saved-2": 0.7}, {"biases": 1.0}, {"tokens": 1.0}], ids="+".join
)
@pytest.mark.parametrize("how", ["cat", "svd"])
def test_the_model_with_the_result_says_what_the_sum_says(home, tmp_path, weights, how):
    """Loaded again, it fits the base that it came from, and its logits are those of the sum of the changes."""
    settings = {"r": 60} if how == "svd" else {}
    made(home, tmp_path / "out", weights, how, **settings)
    base = load(home / "base", dtype="float32")
    result = base.attach(tmp_path / "out", "out")
    ids = models.tokens(2, 9)
    changes = wanted(home, weights)
    assert {path for path in result.params if "lora_A" in result.params[path]} == changes.keys()
    if not any(name.split("-")[0] in ("saved", "biases", "tokens", "tables") for name in weights):
        with torch.no_grad():
            said = base.logits(ids, "out")
            for path, change in changes.items():
                base.maps[path].stored.add_(torch.from_numpy(change).float())
            assert (said - base.logits(ids, None)).abs().max() < 1e-4 * said.abs().max()


def test_an_adapter_of_parts_of_a_decomposition_is_made_plain(home, tmp_path):
    found, changes = made(home, tmp_path / "out", {"adalora": 0.5})
    file = formats.read(home / "adalora")
    assert isinstance(found.file.method, inlay.Lora)
    for path, tensors in file.params.items():
        factors = file.method.factors(tensors)
        expected = 0.5 * factors.scaling * factors.B.double() @ factors.A.double()
        assert np.abs(changes[path] - expected.numpy()).max() < EXACT * expected.abs().max()


@pytest.mark.parametrize(
    ("other", "do"),
    [
        ("dora", "inlay convert BASE ADAPTER --output DIR"),
        ("loha", "inlay convert BASE ADAPTER --output DIR"),
        ("prompt", "none can be made of prompt"),
    ],
)
def test_changes_that_do_not_add_up_are_refused(home, tmp_path, other, do):
    with pytest.raises(CompatibilityError, match=f"its method is {other}") as caught:
        made(home, tmp_path / "out", {"plain": 1.0, other: 1.0})
    assert do in caught.value.hint


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf, 1e300])
def test_weights_that_are_none_are_refused(home, tmp_path, weight):
    with pytest.raises(ConfigError, match="weight"):
        made(home, tmp_path / "out", {"plain": 1.0, "plain-2": weight})


def test_adapters_of_different_shapes_are_refused(home):
    files = {name: formats.read(home / "plain") for name in ("one", "other")}
    path = "model.layers.1.mlp.up_proj"
    tensors = files["other"].params[path]
    files["other"].params[path] = {**tensors, "lora_B": tensors["lora_B"][:-1]}
    files["other"].model.layers[path].sizes["out"] -= 1
    with pytest.raises(CompatibilityError, match=r"different shapes\n.*up_proj: .*27.* in other, .*28.* in one"):
        combine(files, {"one": 1.0, "other": 1.0}, find("cat", {}))


RECORDS = [
    ({"base": {"weights": "a" * 64}}, {"base": {"weights": "b" * 64}}, "different bases"),
    ({"base": {"weights": "a" * 64, "quantized_from": "c" * 64}}, {"base": {"weights": "c" * 64}}, ""),
    ({"base": {"tokenizer": "a" * 64}}, {"base": {"tokenizer": "b" * 64}}, "different tokenizers"),
    ({"base": {"weights": "a" * 64}}, {}, ""),
    (
        {"task": {"name": "seq", "labels": ["a", "b"]}},
        {"task": {"name": "seq", "labels": ["b", "a"]}},
        "different tasks",
    ),
]


@pytest.mark.parametrize(("one", "other", "says"), RECORDS)
def test_adapters_of_different_bases_are_refused(home, one, other, says):
    files = {name: formats.read(home / "plain") for name in ("one", "other")}
    for name, record in {"one": one, "other": other}.items():
        files[name].record.clear()
        files[name].record.update(record)
    if not says:
        assert combine(files, {"one": 1.0, "other": 1.0}, find("cat", {})).file.record["base"] == one["base"]
        return
    with pytest.raises(CompatibilityError, match=says) as caught:
        combine(files, {"one": 1.0, "other": 1.0}, find("cat", {}))
    assert [line.partition(":")[0] for line in caught.value.found] == ["one", "other"]


NAMES = [
    ("meta-llama/Meta-Llama-3-8B", "mistralai/Mistral-7B-v0.1", {}, {}, True),
    ("meta-llama/Meta-Llama-3-8B", "mistralai/Mistral-7B-v0.1", {"base": {"weights": "a" * 64}}, {}, True),
    ("acme/Tiny-1B", "acme/Renamed-1B", *[{"base": {"weights": "a" * 64}}] * 2, False),
    ("meta-llama/Meta-Llama-3-8B", "unsloth/Meta-Llama-3-8B-bnb-4bit", {}, {}, False),
    ("meta-llama/Meta-Llama-3-8B", "/models/mine", {}, {}, False),
    ("meta-llama/Meta-Llama-3-8B", None, {}, {}, False),
]


def named(home, names, records):
    """One adapter twice, of bases of these names."""
    files = {name: formats.read(home / "plain") for name in ("one", "other")}
    for name, base, record in zip(files, names, records, strict=True):
        own = files[name]
        files[name] = dataclasses.replace(own, model=own.model._replace(name=base), record=dict(record))
    return files


@pytest.mark.parametrize(("one", "other", "first", "second", "refused"), NAMES)
def test_adapters_that_name_different_bases_are_refused_where_no_record_says_more(
    home, one, other, first, second, refused
):
    files = named(home, (one, other), (first, second))
    if not refused:
        assert combine(files, {"one": 1.0, "other": 1.0}, find("cat", {})).file.model.name == one
        return
    with pytest.raises(CompatibilityError, match="name different bases") as caught:
        combine(files, {"one": 1.0, "other": 1.0}, find("cat", {}))
    assert [*caught.value.found] == [f"one: {one}", f"other: {other}"]


def test_a_setting_that_a_way_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="cat has no such setting"):
        find("cat", {"r": 3})
    with pytest.raises(ConfigError, match="--how dare"):
        find("svd", {"seed": 5})
    with pytest.raises(UnknownNameError, match="--how svd"):
        find("sdv", {})
    assert all(find(name, {}) for name in WAYS)


def test_the_command(home, tmp_path, capsys):
    arguments = ["combine", home / "plain", home / "rslora", "--weights", "1,-0.5", "--how", "svd", "--r", 4]
    report = run_json(capsys, *arguments, "--output", tmp_path / "out")
    changes, total = adapters.changes(tmp_path / "out"), wanted(home, {"plain": 1.0, "rslora": -0.5})
    assert report["relative_error"] == pytest.approx(adapters.distance(changes, total), abs=EXACT)
    assert {path: module["r"] for path, module in report["modules"].items()} == {
        path: min(4, adapters.rank(change)) for path, change in total.items()
    }
    record = json.loads((tmp_path / "out" / "inlay.json").read_text())["combined"]
    assert record["of"] == [{"name": "plain", "weight": 1.0}, {"name": "rslora", "weight": -0.5}]


def test_what_is_broken_or_missing_is_refused_and_nothing_is_left(home, tmp_path, capsys):
    out = ("--output", tmp_path / "out")
    shutil.copytree(home / "plain", tmp_path / "broken")
    tensors = load_file(tmp_path / "broken" / "adapter_model.safetensors")
    tensors[next(iter(tensors))][0, 0] = math.nan
    save_file(tensors, tmp_path / "broken" / "adapter_model.safetensors")
    wrong = {
        "holds NaN or infinite values": [home / "plain", tmp_path / "broken"],
        "there is no such adapter": [home / "plain", home / "plane"],
        "each adapter needs one weight\n  found: 3 for 2\n  hint:  --weights 1,1": [
            home / "plain",
            home / "rslora",
            "--weights",
            "1,2,3",
        ],
        "cat has no such setting\n  found: --seed": [home / "plain", "--seed", 5],
        "these weights are no numbers": [home / "plain", "--weights", "half"],
        "cat has no such setting\n  found: --r; it has none\n  hint:  leave it out, or --how svd": [
            home / "plain",
            "--r",
            3,
        ],
    }
    status, _, err = run(capsys, "combine", *out)
    assert (status, err.split("\n")[0]) == (2, "error: ADAPTER ... must be given")
    for says, arguments in wrong.items():
        status, _, err = run(capsys, "combine", *arguments, *out)
        assert status == 1
        assert says in err
        assert [*tmp_path.iterdir()] == [tmp_path / "broken"]
