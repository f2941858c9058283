"""Settings of the wrong kind or size, from a file, from the command line and from a program: refused before anything runs."""

import dataclasses
import json
import math

import jaxtyping
import numpy as np
import pytest

import inlay
from inlay import fields, methods
from inlay.base.load import load
from inlay.errors import ConfigError, FormatError
from inlay.formats.peft import CONFIG
from inlay.io.records import RECORD
from inlay.training.settings import Settings
from tests.support.command import run
from tests.support.refusals import generate, refused, train


def with_file(place, text):
    """A training whose settings are all in a file."""
    (place / "run.yaml").write_text(text)
    data = [place / "base", place / "rows.jsonl", "--output", place / "new"]
    return ["train", *data, "--config", place / "run.yaml"]


TAKEN = {
    "max_steps: 1\nr: 2\nlearning_rate: 1e-4": ("learning_rate", 1e-4),
    "max_steps: 1e0\nr: 2": ("max_steps", 1),
    "max_steps: 1\nr: 2.0": ("r", 2),
    "max_steps: 1\nr: 2\nlora_alpha: 3e0": ("lora_alpha", 3),
    "max_steps: 1\nr: 2\nlayers_to_transform: 0-1": ("layers_to_transform", [0, 1]),
    "max_steps: 1\nr: 2\nlayers_to_transform: 1": ("layers_to_transform", [1]),
    "max_steps: 1\nr: 2\nlayers_to_transform: all": ("layers_to_transform", None),
    "max_steps: 1\nr: 2\ntarget-modules: [v_proj, q_proj]": ("target_modules", ["v_proj", "q_proj"]),
}


@pytest.mark.parametrize("text", TAKEN)
def test_a_file_says_it_in_the_ways_that_mean_the_same(place, capsys, text):
    status, _, err = run(capsys, *with_file(place, text))
    assert status == 0, err
    record = json.loads((place / "new" / RECORD).read_text())
    name, value = TAKEN[text]
    assert (record["training"] | record["method"])[name] == value


REFUSED = {
    'r: "4"': ["r='4', not a whole number", "--r 4"],
    "r: null": ["r=None"],
    "r: [4]": ["r=[4]"],
    "r: true": ["r=True"],
    "r: 2.5": ["r=2.5"],
    "max_steps: many": ["max_steps='many', not a whole number", "--max-steps 4"],
    'max_steps: "5"': ["max_steps='5'", "--max-steps 5"],
    "max_steps: 2.5": ["max_steps=2.5"],
    "max_steps: true": ["max_steps=True"],
    "max_steps: 2020-99-99": ["not YAML", "month"],
    'batch_size: "2"': ["batch_size='2'", "--batch-size 2"],
    'lora_dropout: "0.1"': ["lora_dropout='0.1', not a finite number", "--lora-dropout 0.1"],
    "learning_rate: .nan": ["learning_rate=nan, not a finite number"],
    "rank_pattern:": ["rank_pattern=None, not a mapping of names", "--rank-pattern NAME 4"],
    "rank_pattern: [q_proj]": ["rank_pattern=['q_proj']"],
    'rank_pattern: {q_proj: "2"}': ["rank_pattern={'q_proj': '2'}"],
    "alpha_pattern: {q_proj: x}": ["alpha_pattern={'q_proj': 'x'}"],
    "layers_to_transform: a-b": ["this names no layers", "--layers-to-transform 0-5,11"],
    "target_modules: 5": ["target_modules=5, not text or a list, each text"],
    "target_modules: [q_proj, 5]": ["target_modules=['q_proj', 5]"],
    "exclude_modules: null": ["exclude_modules=None"],
    "method: 5": ["no adapter method of that name", "--method lora"],
    "method: [lora]": ["no adapter method of that name", "--method lora"],
    "eval_data: [a, b]": ["eval_data=['a', 'b'], not text"],
    "seed: 1.5": ["seed=1.5"],
    f"seed: {2**63}": ["at most 64 bits"],
    'show_tokens: "1"': ["show_tokens='1'"],
    'json: "no"': ["json='no', not true or false"],
    "train_on: al": ["train_on='al', not 'completions' or 'all'", "--train-on all"],
    "too_long: windw": ["too_long='windw'", "--too-long window"],
    "r: 2\nr: 3": ["gives a name twice", "r twice"],
    "max-steps: 2\nmax_steps: 3": ["gives a name twice", "max_steps twice"],
    "rank_pattern: {q_proj: 1, q_proj: 2}": ["gives a name twice", "q_proj twice"],
    "a: " + "[" * 5000: ["not YAML", "recursion"],
    "- r": ["does not map names to values"],
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:40].replace("\n", " "))
def test_a_file_with_values_of_another_kind(place, capsys, text):
    refused(capsys, *with_file(place, text), says=[*REFUSED[text], "hint: "])


def test_all_values_of_another_kind_are_in_one_error(place, capsys):
    refused(capsys, *with_file(place, 'r: "4"\nlora_alpha: x'), says=["r='4'", "lora_alpha='x'", "--r 4 --lora-alpha"])


FLAGS = [
    ("--lora-alpha", 0, "lora_alpha must be above 0"),
    ("--lora-alpha", -8, "lora_alpha must be above 0"),
    ("--lora-alpha", 1e300, "a number of float32"),
    ("--lora-alpha", "nan", "takes a finite number"),
    ("--lora-alpha", "inf", "takes a finite number"),
    ("--learning-rate", "inf", "takes a finite number"),
    ("--weight-decay", "nan", "takes a finite number"),
    ("--epochs", "inf", "takes a finite number"),
    ("--max-grad-norm", "nan", "takes a finite number"),
    ("--seed", 2**63, "at most 64 bits"),
]


@pytest.mark.parametrize(("flag", "value", "says"), FLAGS)
def test_flags_of_training_out_of_their_range_are_usage_errors(place, capsys, flag, value, says):
    refused(capsys, *train(place, flag, value), says=[says], status=2)


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--max-new-tokens", 0, "max_new_tokens=0, not above 0"),
        ("--max-new-tokens", -2, "max_new_tokens=-2, not above 0"),
        ("--temperature", -1, "temperature=-1"),
        ("--temperature", "nan", "--temperature takes a finite number"),
        ("--temperature", "inf", "--temperature takes a finite number"),
        ("--temperature", 1e-40, "temperature=1e-40"),
        ("--seed", 2**64, "at most 64 bits"),
    ],
)
def test_an_answer_that_can_not_be_made(place, capsys, flag, value, says):
    refused(capsys, *generate(place, "good", flag, value), says=[says], status=2)


@pytest.mark.parametrize("flag", ["--rows", "--max-new-tokens", "--max-length"])
@pytest.mark.parametrize("value", [0, -1])
def test_an_evaluation_of_nothing(place, capsys, flag, value):
    says = [f"{flag[2:].replace('-', '_')} must be above 0"]
    refused(capsys, "eval", place / "base", place / "rows.jsonl", flag, value, says=says, status=2)


def test_an_evaluation_beyond_the_positions(place, capsys):
    arguments = ["eval", place / "base", place / "rows.jsonl", "--max-length", 65]
    refused(capsys, *arguments, says=["beyond the positions", "--max-length 64"])


@pytest.mark.parametrize("value", [0, -1])
def test_a_comparison_of_nothing(place, capsys, value):
    arguments = ["merge", place / "base", place / "good", "--output", place / "new", "--check-rows", value]
    refused(capsys, *arguments, says=["check_rows must be above 0"], status=2)


@pytest.mark.parametrize("device", ["foo", "cuda", "cuda:99", "meta", ""])
def test_a_device_that_is_not_here(place, capsys, monkeypatch, device):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    refused(capsys, *train(place, "--device", device), says=["no such device here", f"'{device}'", "--device cpu"])


@pytest.mark.parametrize("settings", [dict(max_new_tokens=0), dict(temperature=-1.0), dict(temperature=math.nan)])
def test_a_program_is_told_what_a_command_is(home, settings):
    with pytest.raises(ConfigError, match="an answer can't be made with these settings"):
        load(home / "base").generate(["say 3"], **settings)


OTHER_KINDS = {
    "train_on": ("everything", "train_on='everything', not 'completions' or 'all'"),
    "learning_rate": (math.inf, "learning_rate=inf"),
    "max_steps": ("5", "--max-steps 5"),
    "weight_decay": (math.nan, "weight_decay=nan"),
    "epochs": (10**400, "epochs='a number of 1,329 bits'"),
    "max_grad_norm": (math.inf, "max_grad_norm=inf"),
    "seed": (-(2**64), "seed=-18446744073709551616"),
    "batch_size": (True, "batch_size=True"),
}
"""Setting -> (a value of another kind, what is said of it)."""


@pytest.fixture
def unchecked(annotations):
    """Annotations are not checked, as for users: they would see a value of another kind before the function can."""
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_a_program_gives_values_of_another_kind(home, tmp_path, unchecked, name):
    value, says = OTHER_KINDS[name]
    base, settings = inlay.load(home / "base"), {name: value}
    with pytest.raises(inlay.ConfigError) as caught:
        inlay.train(base, home / "rows.jsonl", method=inlay.Lora(), output=tmp_path / "new", **settings)
    assert says in str(caught.value)
    assert len(repr(str(caught.value))) < 300
    assert not (tmp_path / "new").exists()


def test_numbers_and_sets_of_any_library_become_what_json_can_hold():
    given = {
        "r": np.int64(4),
        "lora_alpha": np.float32(7.5),
        "target_modules": {"v_proj", "q_proj"},
        "layers_to_transform": [np.int32(1)],
        "rank_pattern": {"q_proj": np.int8(2)},
    }
    fits = fields.fitted(inlay.Lora, given)
    assert json.loads(json.dumps(fits)) == {
        "r": 4,
        "lora_alpha": 7.5,
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [1],
        "rank_pattern": {"q_proj": 2},
    }
    rate = fields.fitted(Settings, {"learning_rate": np.float32(1e-3)})["learning_rate"]
    assert (type(rate), rate) == (float, float(np.float32(1e-3)))


CONFIGURATIONS = {"settings": Settings, **{name: methods.find(name) for name in methods.names()}}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_settles_its_own_values(name, unchecked):
    given = {"seed": np.int64(3)} if name == "settings" else {"modules_to_save": {"a"}}
    settled = json.loads(json.dumps(dataclasses.asdict(CONFIGURATIONS[name](**given))))
    assert settled["seed"] == 3 if name == "settings" else settled["modules_to_save"] == ["a"]


def test_whole_files_of_settings_survive_the_round_trip(home):
    """What is recorded rebuilds the configuration: nothing in it is of a kind that would be refused."""
    record = json.loads((home / "good" / RECORD).read_text())
    known = {name: value for name, value in record["training"].items() if name in Settings.__dataclass_fields__}
    assert Settings(**fields.fitted(Settings, known)).max_steps == 3
    assert json.loads((home / "good" / CONFIG).read_text())["r"] == 2


def test_a_configuration_that_is_a_date_is_no_mapping(tmp_path):
    from inlay.options.config import read_config

    (tmp_path / "run.yaml").write_text("2020-01-02")
    with pytest.raises(FormatError, match="does not map names to values"):
        read_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(.*)*(.*)*(.*)*x", "matches no linear layer"),
        ("(.|.)*(.|.)*(.|.)*[X-Z]", "without a repeat within a repeat"),
    ],
)
@pytest.mark.parametrize("flag", ["--target-modules", "--rank-pattern"])
def test_a_pattern_that_never_ends_is_stopped(place, capsys, flag, pattern, says):
    value = [pattern] if flag == "--target-modules" else [pattern, 2]
    refused(capsys, *train(place, flag, *value), says=[says])
