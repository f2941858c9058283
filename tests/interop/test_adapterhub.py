"""Bottleneck adapters in AdapterHub's form: theirs say here what they say there, ours are written as theirs are, byte for byte.

The files in adapterhub/ are the library's own; adapterhub_golden.py made them, and lets it read what we write.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import inlay
from inlay import formats
from inlay.base.attach import attach
from inlay.base.load import load
from inlay.errors import CompatibilityError, FormatError, InlayError
from inlay.formats import adapterhub
from tests.interop import adapterhub_golden as golden
from tests.support import bases, models, pages
from tests.support.command import run
from tests.support.refusals import generate

LOGITS = 1e-5
CONFIG, TENSORS = adapterhub.CONFIG, adapterhub.TENSORS
SAID = load_file(golden.LOGITS)


def _said_here(case):
    return golden.logits(attach(golden.model(golden.model_type(case)), golden.GOLDEN / case).module)


@pytest.fixture
def file(tmp_path):
    """A directory of theirs, to be broken: bert-houlsby, whose configuration and tensors are changed by the functions."""
    folder = tmp_path / "theirs"
    shutil.copytree(golden.GOLDEN / "bert-houlsby", folder)
    return folder


def _change(folder, **values):
    """Set fields of the configuration; names that are none of BnConfig's stand outside of it."""
    config = json.loads((folder / CONFIG).read_text())
    for key, value in values.items():
        (config if key in config or key == "stranger" else config["config"])[key] = value
    (folder / CONFIG).write_text(json.dumps(config))


def _refused(folder, error=CompatibilityError):
    """What is said of it, the same with a model and without one."""
    with pytest.raises(error) as here:
        attach(golden.model("bert"), folder)
    with pytest.raises(error) as there:
        formats.read(folder)
    assert str(here.value) == str(there.value)
    return str(here.value)


@pytest.mark.parametrize("case", golden.CASES)
def test_theirs_say_here_what_they_say_there(case):
    assert (_said_here(case) - SAID[case]).abs().max() <= LOGITS
    plain = golden.logits(golden.model(golden.model_type(case)))
    assert (plain - SAID[f"{golden.model_type(case)}-base"]).abs().max() <= LOGITS
    assert (plain - SAID[case]).abs().max() > 1000 * LOGITS


@pytest.mark.parametrize("case", golden.CASES)
def test_what_is_written_is_what_the_library_writes(case, tmp_path):
    held = attach(golden.model(golden.model_type(case)), golden.GOLDEN / case, golden.NAME)
    held.save(golden.NAME, tmp_path, {"made": "here"}, form="adapterhub")
    assert (tmp_path / TENSORS).read_bytes() == (golden.GOLDEN / case / TENSORS).read_bytes()
    ours, theirs = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path, golden.GOLDEN / case))
    assert ours.pop("model_name") == type(held.module).__name__
    assert theirs.pop("model_name") == ""  # the base was made of a configuration alone
    assert ours == theirs
    assert formats.read(tmp_path).record["made"] == "here"


def test_every_family_has_a_file():
    assert {golden.model_type(case) for case in golden.CASES} == set(adapterhub.FAMILIES)


def test_a_body_without_a_head_takes_them_too(tmp_path):
    whole, body = golden.model("bert"), golden.model("bert").bert
    attach(whole, golden.GOLDEN / "bert-houlsby", "it")
    held = attach(body, golden.GOLDEN / "bert-houlsby", "it")
    ids = torch.tensor([[4, 9, 3]])
    assert torch.equal(body(ids).last_hidden_state, whole.bert(ids).last_hidden_state)
    held.save("it", tmp_path, {}, form="adapterhub")
    assert next(iter(load_file(tmp_path / TENSORS))).startswith("encoder.layer.0.")
    assert formats.read(tmp_path).params.keys() == formats.read(golden.GOLDEN / "bert-houlsby").params.keys()


CONFIGS = [
    ("original_ln_before", True),  # SeqBnConfig
    ("original_ln_after", False),
    ("residual_before_ln", "post_add"),
    ("ln_before", True),
    ("ln_after", True),
    ("use_gating", True),
    ("phm_layer", True),  # Compacter
    ("inv_adapter", "nice"),
    ("leave_out", [1]),
    ("cross_adapter", True),
    ("reduction_factor", {"0": 2, "default": 4}),
    ("reduction_factor", None),
    ("scaling", "learned"),
    ("scaling", "channel"),
    ("non_linearity", "gelu_new"),
    ("non_linearity", 5),
    ("output_adapter", False),
    ("mh_adapter", 3),
    ("is_parallel", True),
    ("architecture", "lora"),
    ("architecture", "union"),
    ("something_new", 1),
]


@pytest.mark.parametrize(("key", "value"), CONFIGS)
def test_what_we_do_not_do_is_refused_by_name(file, key, value):
    _change(file, **{key: value})
    message = _refused(file)
    assert f"config.{key}={json.dumps(value)}" in message
    assert "DoubleSeqBnConfig()" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bart"),
        ("model_type", 3),
        ("version", "3.2.1"),
        ("hidden_size", None),
        ("hidden_size", True),
        ("name", 5),
        ("model_name", [1]),
        ("stranger", 2),
    ],
)
def test_a_file_about_something_else(file, key, value):
    _change(file, **{key: value})
    assert f"{key}={json.dumps(value)}" in _refused(file)


def test_everything_wrong_is_in_one_message(file):
    _change(file, use_gating=True, ln_after=True, model_type="bart")
    message = _refused(file)
    assert all(text in message for text in ("use_gating", "ln_after", "bart"))


@pytest.mark.parametrize(("key", "value"), [("scaling", float("nan")), ("scaling", 1e999), ("reduction_factor", 0)])
def test_numbers_that_are_none(file, key, value):
    _change(file, **{key: value})
    with pytest.raises(InlayError, match=key):
        formats.read(file)


@pytest.mark.parametrize("config", ["pfeiffer", None, 3, []])
def test_a_configuration_that_is_none(file, config):
    whole = json.loads((file / CONFIG).read_text())
    (file / CONFIG).write_text(json.dumps(whole | {"config": config}))
    assert "mh_adapter" in _refused(file)


@pytest.mark.parametrize(
    "settings", [{"dropout": 0.3, "init_weights": "houlsby"}, {"adapter_residual_before_ln": True}]
)
def test_what_changes_nothing_is_read(file, settings):
    _change(file, **settings)
    assert torch.equal(golden.logits(attach(golden.model("bert"), file).module), _said_here("bert-houlsby"))


KEY = "bert.encoder.layer.1.output.adapters.task.adapter_up.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop(KEY), f"{KEY}: missing"),
        (lambda tensors: tensors.update({KEY: tensors[KEY].T.contiguous()}), "shape (2, 8), not (8, 2)"),
        (lambda tensors: tensors[KEY].fill_(float("nan")), "holds NaN"),
        (lambda tensors: tensors[KEY].fill_(float("inf")), "holds NaN or infinite"),
        (lambda tensors: tensors.update({KEY: tensors[KEY].int()}), "whole numbers"),
        (lambda tensors: tensors.update({f"{KEY}s": torch.ones(1)}), f"{KEY}s: no tensor of this adapter"),
        (
            lambda tensors: tensors.update({KEY.replace("task", "two"): tensors[KEY].clone()}),
            "two.adapter_up.weight: no",
        ),
        (lambda tensors: tensors.update({KEY.removeprefix("bert."): tensors.pop(KEY)}), "missing"),
        (lambda tensors: tensors.update({KEY.replace("1", "999999"): tensors[KEY].clone()}), "layer.2.attention"),
        (lambda tensors: tensors.clear(), "missing"),
    ],
)
def test_tensors_that_are_not_those_of_the_adapter(file, change, says):
    tensors = load_file(file / TENSORS)
    change(tensors)
    save_file(tensors, file / TENSORS)
    message = _refused(file, FormatError)
    assert says in message


def test_a_pickle_is_not_read(file):
    (file / TENSORS).rename(file / "pytorch_adapter.bin")
    assert "pytorch_adapter.bin" in _refused(file, FormatError)


@pytest.mark.parametrize("name", adapterhub.BESIDE)
def test_a_head_or_an_interface_beside_it(file, name):
    (file / name).write_text("{}")
    assert f"{name} beside it" in _refused(file)


def test_a_model_of_another_kind_with_the_same_shapes():
    with pytest.raises(CompatibilityError, match=r"model_type 'bert'; this base's is 'electra'"):
        attach(golden.model("electra"), golden.GOLDEN / "bert-houlsby")
    with pytest.raises(CompatibilityError, match="this base's is None"):
        attach(torch.nn.Sequential(torch.nn.Linear(8, 8)), golden.GOLDEN / "bert-houlsby")


def test_a_model_of_other_sizes():
    config = golden.MODELS["bert"][1].to_dict()
    small = type(golden.model("bert"))(type(golden.MODELS["bert"][1])(**config | {"num_hidden_layers": 1}))
    with pytest.raises(CompatibilityError, match=r"encoder\.layer\.1"):
        attach(small, golden.GOLDEN / "bert-houlsby")


@pytest.mark.parametrize(
    ("method", "kind", "says"),
    [
        (inlay.Lora(r=2), "llama", "method lora"),
        (inlay.Bottleneck(layer_norm=True), "llama", "layer_norm=True"),
        (inlay.Bottleneck(placement="parallel"), "llama", "placement='parallel': on llama"),
        (inlay.Bottleneck(placement="parallel"), "gpt2", "placement='parallel': on gpt2"),
        (inlay.Bottleneck(modules_to_save="lm_head"), "llama", "lm_head: no place"),
    ],
)
def test_what_the_library_would_not_compute_is_not_written(method, kind, says, tmp_path):
    with pytest.raises(CompatibilityError) as error:
        attach(golden.model(kind), method, "it").save("it", tmp_path, {}, form="adapterhub")
    assert says in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_the_library_does_not_know_is_not_written(tmp_path):
    held = attach(models.model("qwen2"), inlay.Bottleneck(), "it")
    with pytest.raises(CompatibilityError, match="model_type 'qwen2'; known are bert"):
        held.save("it", tmp_path, {}, form="adapterhub")


@pytest.mark.parametrize("size", range(1, 21))
def test_every_size_comes_back(size, tmp_path):
    held = attach(models.model("llama"), inlay.Bottleneck(bottleneck_size=size), "it")
    models.randomize(held["it"], seed=6)
    held.save("it", tmp_path, {}, form="adapterhub")
    factor = json.loads((tmp_path / CONFIG).read_text())["config"]["reduction_factor"]
    assert int(20 // factor) == size
    held.attach(tmp_path, "again")
    ids = models.tokens(2, 9)
    with torch.no_grad(), held.using("it"):
        wanted = held.module(ids).logits
    with torch.no_grad(), held.using("again"):
        assert torch.equal(held.module(ids).logits, wanted)


def test_the_commands(tmp_path, capsys):
    """An adapter of ours becomes one of theirs, is shown, and answers as before."""
    base = load(bases.directory(tmp_path / "base"), dtype="float32")
    models.randomize(base.attach(inlay.Bottleneck(bottleneck_size=3), "mine"), seed=6)
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    command = ["export", tmp_path / "base", tmp_path / "mine", "--for", "adapterhub", "--output", tmp_path / "v1.2"]
    status, out, err = run(capsys, *command)
    assert (status, out, "for adapterhub" in err) == (0, "", True)
    config = json.loads((tmp_path / "v1.2" / CONFIG).read_text())
    assert (config["name"], config["model_class"], config["model_name"]) == (
        "v1-2",
        "LlamaForCausalLM",
        str(tmp_path / "base"),
    )
    assert "loads in  inlay, adapters (AdapterHub)" in run(capsys, "inspect", tmp_path / "v1.2")[1]
    answers = [run(capsys, *generate(tmp_path, name)) for name in ("mine", "v1.2")]
    assert [status for status, _, _ in answers] == [0, 0]
    assert answers[0][1] == answers[1][1]
    status, _, err = run(capsys, *command)
    assert (status, "nothing is overwritten" in err) == (1, True)
    command = ["export", tmp_path / "base", tmp_path / "v1.2", "--for", "inlay", "--output", tmp_path / "back"]
    assert run(capsys, *command)[0] == 0
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert [(tmp_path / "back" / name).read_bytes() for name in names[1:]] == [
        (tmp_path / "mine" / name).read_bytes() for name in names[1:]
    ]


def table():
    """What the page about the exchange says of it."""
    about = json.loads((golden.GOLDEN / "bert-houlsby" / CONFIG).read_text())
    lines = [
        "## AdapterHub",
        "",
        f"Bottleneck adapters as `{about['version'].replace('.', ' ', 1)}` writes them, its files as `tests/interop/adapterhub` has",
        "them: the largest difference of a logit here from what the library said, in float32, relative to the largest logit or 1.",
        "What Inlay writes is the same, byte for byte, but for model_name; that the library reads it is checked by hand, with",
        "`python tests/interop/adapterhub_golden.py write DIR` and, where `adapters` is installed, `... check DIR`.",
        "",
        "| model | placement | difference |",
        "|---|---|---|",
    ]
    for case in golden.CASES:
        difference = (_said_here(case) - SAID[case]).abs().max() / SAID[case].abs().max().clamp(min=1)
        lines.append(f"| {golden.model_type(case)} | {case.rpartition('-')[2]} | {pages.band(difference)} |")
    return lines
