"""Which layers an adapter changes: every way of naming them, and that no name is passed over in silence."""

import pytest
from torch import nn

import inlay
from inlay.errors import ConfigError, TargetError
from inlay.formats._peft_forms import short_names
from inlay.layout import targets
from tests.support import models

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
PATHS = [
    f"model.layers.{layer}.{part}.{name}"
    for layer in range(3)
    for part, names in (("self_attn", ATTENTION), ("mlp", MLP))
    for name in names
]
"""The linear layers of the small Llama, but for its head."""


@pytest.fixture(scope="module")
def llama():
    return models.model("llama")


def resolved(model, **fields):
    method = inlay.Lora(r=3, lora_alpha=5, **fields)
    return targets.resolve(method, targets.linear_modules(model), targets.output_head(model))


def refusal(model, **fields):
    """The message with which these fields are refused, its hint apart."""
    with pytest.raises(TargetError) as error:
        resolved(model, **fields)
    found, _, hint = str(error.value).partition("\n  hint:  ")
    return found, hint


def matching(*ends):
    return [path for path in PATHS if path.endswith(ends)]


@pytest.mark.parametrize("family", models.CONFIGS)
def test_all_linear_is_every_linear_layer_but_the_output_head(family):
    model = models.model(family)
    head = model.get_output_embeddings()
    every = [path for path, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
    chosen = resolved(model)
    assert [path for path in every if path not in chosen] == [targets.output_head(model)]
    assert model.get_submodule(targets.output_head(model)) is head
    assert set(chosen) < set(every)


def test_the_head_is_adapted_where_it_is_named(llama):
    assert resolved(llama, target_modules="q_proj,lm_head") == [*matching("q_proj"), "lm_head"]


def test_a_module_without_a_head_is_adapted_whole():
    assert resolved(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))) == ["0", "2"]


@pytest.mark.parametrize(
    ("target_modules", "wanted"),
    [
        ("q_proj", matching("q_proj")),
        ("v_proj, q_proj", matching("q_proj", "v_proj")),  # in the model's order
        (("down_proj", "k_proj"), matching("down_proj", "k_proj")),
        ("self_attn.q_proj", matching("q_proj")),
        ("model.layers.1.mlp.up_proj", [PATHS[7 + 5]]),
        ("1.mlp.up_proj,layers.2.mlp.up_proj", [PATHS[7 + 5], PATHS[14 + 5]]),
        (r".*\.(q|v)_proj", matching("q_proj", "v_proj")),
        (r"model\.layers\.[02]\.mlp\..*", [p for p in PATHS if ".mlp." in p and ".1." not in p]),
    ],
    ids=str,
)
def test_names_and_regular_expressions_choose_what_they_say(llama, target_modules, wanted):
    assert resolved(llama, target_modules=target_modules) == wanted


@pytest.mark.parametrize(
    ("exclude_modules", "gone"),
    [
        ("o_proj", matching("o_proj")),
        (("o_proj", "mlp.up_proj"), matching("o_proj", "up_proj")),
        (r".*\.mlp\..*", matching(*MLP)),
        ("model.layers.2.self_attn.q_proj", [PATHS[14]]),
    ],
    ids=str,
)
def test_what_is_excluded_is_left_out(llama, exclude_modules, gone):
    assert resolved(llama, exclude_modules=exclude_modules) == [path for path in PATHS if path not in gone]
    assert resolved(llama, exclude_modules=exclude_modules, target_modules=(*ATTENTION, *MLP)) == [
        path for path in PATHS if path not in gone
    ]


def test_layers_are_counted_from_zero_and_narrow_whatever_is_named(llama):
    assert resolved(llama, layers_to_transform=(2, 0)) == PATHS[:7] + PATHS[14:]
    assert resolved(llama, target_modules="up_proj", layers_to_transform=(1,)) == [PATHS[7 + 5]]


def test_part_of_a_name_names_nothing(llama):
    found, _ = refusal(llama, target_modules="proj,q_proj")
    assert "'proj' of target_modules" in found
    refusal(llama, target_modules="attn.q_proj")
    refusal(llama, target_modules="q_proj|v_proj")  # an expression is for the whole path


@pytest.mark.parametrize(
    ("fields", "problem", "hint"),
    [
        (dict(target_modules="q_proj,vproj"), "'vproj' of target_modules", "--target-modules q_proj,v_proj"),
        (dict(target_modules=("kproj", "mlp.upproj")), "'mlp.upproj' of target_modules", "--target-modules k_proj,up_proj"),
        (dict(target_modules="q_proj, v_prj"), "'v_prj' of target_modules", "--target-modules q_proj,v_proj"),
        (dict(exclude_modules="o_proj,downproj"), "'downproj' of exclude_modules", "--exclude-modules o_proj,down_proj"),
        (dict(target_modules=r".*\.qproj"), r"the regular expression '.*\\.qproj'", "--target-modules all-linear"),
        (dict(target_modules="q_proj|v_proj"), "the regular expression", "--target-modules '.*(q_proj|v_proj)'"),
        (dict(layers_to_transform=(0, 3)), "layer 3", "--layers-to-transform 0-2"),
        (dict(target_modules="query"), "'query' of target_modules", "--target-modules all-linear"),
        (dict(exclude_modules=r".*"), "nothing is left to adapt", "exclude fewer"),
    ],
    ids=str,
)  # fmt: skip
def test_a_name_that_matches_nothing_is_refused_with_what_to_type_even_where_others_match(llama, fields, problem, hint):
    found, said = refusal(llama, **fields)
    assert problem in found
    assert "its linear layers are q_proj (3), k_proj (3)" in found
    assert hint in said


def test_everything_that_matches_nothing_is_in_one_message(llama):
    found, hint = refusal(
        llama, target_modules="q_proj,vproj", exclude_modules="oproj", layers_to_transform=(9,), rank_pattern={"up": 2}
    )
    for problem in ("'vproj' of target_modules", "'oproj' of exclude_modules", "layer 9", "'up' of rank_pattern"):
        assert problem in found
    assert hint == "--target-modules q_proj,v_proj --exclude-modules o_proj --layers-to-transform 0-2"


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_an_expression_that_is_none_is_refused(llama, field):
    with pytest.raises(TargetError, match=f"{field} is not a regular expression"):
        resolved(llama, **{field: "(q_proj"})


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_is_no_expression_is_refused(field):
    with pytest.raises(ConfigError, match=f"a key of {field} is not a regular expression"):
        inlay.Lora(**{field: {"(q_proj": 2}})


def test_patterns_give_some_modules_another_rank_and_alpha(llama):
    method = inlay.Lora(
        r=3,
        lora_alpha=5,
        rank_pattern={r"layers\.1\.mlp\.up_proj": 2, "up_proj": 4, "mlp.down_proj": 6},
        alpha_pattern={"up_proj": 11},
    )
    held = inlay.attach(llama, method)
    adapter = held["default"]
    wanted = {path: (3, 5) for path in PATHS}
    wanted |= dict.fromkeys(matching("up_proj"), (4, 11)) | dict.fromkeys(matching("down_proj"), (6, 5))
    wanted[PATHS[7 + 5]] = (2, 11)  # the first pattern that matches decides
    assert {path: (m.r, m.lora_alpha) for path in adapter.params if (m := adapter.method.for_module(path))} == wanted
    assert {path: len(params["lora_A"]) for path, params in adapter.params.items()} == {
        p: r for p, (r, _) in wanted.items()
    }
    held.release()


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_for_modules_that_are_not_adapted_is_refused(llama, field):
    found, _ = refusal(llama, target_modules="q_proj,v_proj", **{field: {"v_proj": 2, "up_proj": 4}})
    assert "'up_proj' of rank_pattern or alpha_pattern" in found
    assert "'v_proj'" not in found


def test_a_foreign_file_may_name_modules_that_this_model_does_not_have(llama):
    method = inlay.Lora(target_modules=("q_proj", "c_attn"), rank_pattern={"c_attn": 2})
    assert targets.resolve(method, targets.linear_modules(llama), "lm_head", strict=False) == matching("q_proj")


@pytest.mark.parametrize(
    "target_modules", ["q_proj,lm_head", r".*[02]\.mlp.*", "all-linear", "model.layers.1.mlp.up_proj"]
)
def test_the_short_names_choose_the_same_modules_again(llama, target_modules):
    every = [path for path, _ in llama.named_modules()]
    chosen = resolved(llama, target_modules=target_modules)
    short = tuple(short_names(chosen, every))
    assert resolved(llama, target_modules=short) == chosen
    assert all("." not in name for name in short) == (target_modules in ("q_proj,lm_head", "all-linear"))
