"""A package of somebody else's adds one of each of the five kinds: docs/guides/extend.md, built from the page and used."""

import json
import os
import re
from pathlib import Path

import pytest

import inlay
from inlay import plugins
from tests.support import bases, forks, on_pages, packages

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "extend.md"

PROCESS = """
import contextlib, io, shutil
from inlay.cli import main
answers = []
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = shutil.rmtree(command[1]) or 0 if command[0] == "rm" else main(command)
        except SystemExit as end:
            status = end.code
    answers.append([status, out.getvalue(), err.getvalue()])
json.dump(answers, sys.stdout)
"""
"""All commands in one process, which has its own packages; `rm` takes a directory away."""

TRAIN = ["train", "base", "rows.jsonl", "--max-steps", "2", "--json", "--output"]
LEARN = ["train", "base", "words.jsonl", "--eval-data", "words.jsonl", "--learning-rate", "0.02", "--json"]
ANSWER = ["--prompt", "say 3", "--max-new-tokens", "3"]
COMMANDS = {
    "help": ["train", "--method", "direction", "--help"],
    "help of lora": ["train", "--help"],
    "help of compare": ["compare", "--help"],
    "help of merge": ["merge", "--help"],
    "help of quantize": ["quantize", "--help"],
    "help of export": ["export", "--help"],
    "help of predict": ["predict", "--help"],
    "method": [*TRAIN, "mine", "--method", "direction", "--gain", "0.7", "--learning-rate", "0.05"],
    "inspect": ["inspect", "mine"],
    "base's answer": ["generate", "base", "--adapter", "none", *ANSWER],
    "answer": ["generate", "base", "--adapter", "mine", *ANSWER],
    "go on": [*TRAIN, "more", "--from", "mine"],
    "merge": ["merge", "base", "mine", "--output", "whole"],
    "merged answer": ["generate", "whole", *ANSWER],
    "scheme": ["quantize", "base", "--scheme", "fifteen", "--output", "small", "--json"],
    "on small": ["train", "small", "rows.jsonl", "--max-steps", "2", "--json", "--output", "on_small", "--r", "2"],
    "on it": [*TRAIN, "on_it", "--quantize", "fifteen", "--r", "2"],
    "merged small": ["merge", "small", "on_small", "--output", "whole_small", "--quantize", "fifteen", "--force"],
    "task": [*LEARN, "--task", "backwards", "--max-steps", "24", "--batch-size", "4", "--output", "speller"],
    "eval": ["eval", "base", "words.jsonl", "--adapter", "speller", "--json"],
    "predict": ["predict", "base", "words.jsonl", "--adapter", "speller"],
    "initializer": [*TRAIN, "loud", "--initializer", "loudest_rows", "--r", "3"],
    "uniform": [*TRAIN, "quiet", "--r", "3"],
    "export": ["export", "base", "quiet", "--for", "plain_json", "--output", "theirs"],
    "inspect theirs": ["inspect", "theirs"],
    "answer of quiet": ["generate", "base", "--adapter", "quiet", *ANSWER],
    "answer of theirs": ["generate", "base", "--adapter", "theirs", *ANSWER],
    "export back": ["export", "base", "theirs", "--for", "inlay", "--output", "back"],
    "export another": ["export", "base", "mine", "--for", "plain_json", "--output", "not"],
    "in ruins": [*TRAIN, "not", "--method", "zz_ruin"],
    "misspelt method": [*TRAIN, "not", "--method", "directoin"],
    "misspelt format": ["export", "base", "mine", "--for", "plian_json", "--output", "not"],
}
WITHOUT = {
    "method": ["inspect", "mine"],
    "method on a base": ["generate", "base", "--adapter", "mine", *ANSWER],
    "scheme": ["generate", "small", *ANSWER],
    "task": ["predict", "base", "words.jsonl", "--adapter", "speller"],
    "format": ["inspect", "theirs"],
    "another": ["inspect", "quiet"],
}
"""What is asked for where the package is not installed."""


def toys():
    """(files by dotted name, entry points by group) of the package on the page."""
    blocks = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))
    project = blocks.pop("pyproject.toml")
    sections = re.findall(r'^\[project\.entry-points\."(.*?)"\]\n(.*?)(?=^\[|\Z)', project, re.MULTILINE | re.DOTALL)
    points = {group: dict(re.findall(r'^(\w+) = "(.*?)"$', lines, re.MULTILINE)) for group, lines in sections}
    about = [re.search(rf'^{key} = "(.*?)"$', project, re.MULTILINE)[1] for key in ("name", "version")]
    return about, {file.removesuffix(".py").replace("/", "."): code for file, code in blocks.items()}, points


def process(code, *sites, place=ROOT, given=None):
    """The output of a process to its end, in `place`, that finds the packages of `sites`."""
    before = f"import json, os, sys\nsys.path[:0] = {[*map(str, sites)]}\nos.chdir({str(place)!r})\n"
    code = forks.ANEW + before + code
    status, out, err = forks.run(code, given=json.dumps(given).encode(), env=os.environ | {"COLUMNS": "300"})
    assert status == 0, out[-3000:] + err
    return out


def run(place, commands, *sites):
    """name -> (status, standard output, standard error) of commands in a process, with the packages of `sites`."""
    answers = json.loads(process(PROCESS, *sites, place=place, given=list(commands.values())))
    return dict(zip(commands, answers, strict=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory in which the package of the page is installed."""
    site = tmp_path_factory.mktemp("site")
    (name, version), modules, points = toys()
    packages.write(site, name, version, modules, points)
    return site


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a base and rows, where the commands write."""
    place = tmp_path_factory.mktemp("work")
    bases.directory(place / "base")
    bases.jsonl(place / "rows.jsonl", bases.rows(30))
    bases.jsonl(place / "words.jsonl", [{"word": word} for word in ("stressed", "drawer", "star", "lager") * 2])
    return place


@pytest.fixture(scope="module")
def ruin(tmp_path_factory):
    """A directory in which another package is installed, of which nothing can be imported."""
    ruin = tmp_path_factory.mktemp("ruin")
    points = {group: {"zz_ruin": "ruin.zz_ruin"} for group in toys()[2]} | {"inlay.tasks": {"zz-ruin": "ruin.zz_ruin"}}
    packages.write(ruin, "ruin", "9.9", {"ruin.zz_ruin": "raise RuntimeError('it lies in ruins')"}, points)
    return ruin


@pytest.fixture(scope="module")
def said(place, site, ruin):
    """What the commands said."""
    return run(place, COMMANDS, site, ruin)


def test_the_commands_of_the_page_go_through_as_they_stand(site, tmp_path):
    bases.directory(tmp_path / "BASE")
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(30))
    bases.jsonl(tmp_path / "words.jsonl", [{"word": word} for word in ("stressed", "drawer", "star", "lager") * 6])
    shown, commands, known = on_pages.commands(PAGE.read_text("utf-8")), {}, set()
    for i, command in enumerate(shown):
        words = command.arguments
        target = words[words.index("--output") + 1] if "--output" in words else ""
        if target and target in known:  # `mine` is another one in each part of the page
            commands[f"rm {i}"] = ["rm", target]
        known.add(target)
        commands[f"{i} {' '.join(words)}"] = [*words, *(["--max-steps", "1"] if words[0] == "train" else [])]
    said = run(tmp_path, commands, site)
    assert {name: answer for name, answer in said.items() if answer[0]} == {}
    assert len(shown) >= 11


def last(answer):
    """The object in the last line of standard output."""
    return json.loads(answer[1].splitlines()[-1])


def test_the_page_has_one_of_each_kind():
    about, modules, points = toys()
    assert about == ["inlay-toys", "0.2"]
    assert sorted(points) == [f"inlay.{kind}" for kind in ("formats", "initializers", "methods", "schemes", "tasks")]
    assert sorted(modules) == sorted(value for named in points.values() for value in named.values())


def test_the_commands_go_through(said):
    failed = {name: answer for name, answer in said.items() if answer[0]}
    statuses = {name: answer[0] for name, answer in failed.items()}
    assert statuses == {"export another": 1, "in ruins": 1, "misspelt method": 2, "misspelt format": 2}, failed


def test_a_package_that_is_broken_disturbs_only_who_asks_for_it(said):
    assert said["in ruins"][2].startswith(
        "error: the adapter method zz_ruin can't be used as ruin brings it\n"
        "  found: ruin==9.9, ruin.zz_ruin: RuntimeError: it lies in ruins\n"
    )


def test_a_method_is_trained_saved_inspected_and_merged(place, said):
    assert last(said["method"])["trainable_parameters"] == 3 * (4 * 40 + 3 * 48)
    assert "direction gain=0.7" in said["method"][2]
    assert "mine: direction gain=0.7" in said["inspect"][1]
    assert "direction gain=0.7" in said["go on"][2]
    assert said["merged answer"][1] == said["answer"][1] != said["base's answer"][1]
    assert "--gain NUMBER" in said["help"][1]
    assert "What multiplies the change. [default: 1.5]" in said["help"][1]
    record = json.loads((place / "mine" / "inlay.json").read_text())
    assert (record["method"]["name"], record["needs"]) == ("direction", {"method": "inlay-toys==0.2"})
    assert "load in Inlay alone" in (place / "mine" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        (
            "help of lora",
            ("--method direction", "--task backwards", "--quantize fifteen", "--initializer loudest_rows"),
        ),
        ("help of compare", ("--methods direction", "--quantize fifteen")),
        ("help of merge", ("--quantize fifteen",)),
        ("help of quantize", ("--scheme fifteen",)),
        ("help of export", ("--for plain_json",)),
        ("help of predict", ("--task backwards", "--quantize fifteen")),
    ],
)
def test_help_lists_what_exists(said, name, flags):
    text = " ".join(said[name][1].replace("│", " ").split()).replace(", ", ",")
    for flag, toy in map(str.split, flags):
        assert any(toy in choices.split(",") for choices in re.findall(rf"{flag} \{{([\w.,-]+)\}}", text)), flag


def test_an_adapter_that_is_saved_by_hand_names_the_package_of_its_task(tmp_path, monkeypatch):
    origin = plugins.Origin("toys", "0.2")
    monkeypatch.setattr(plugins.Table, "origin", lambda table, name: origin if name == "embedding" else None)
    base = inlay.load(bases.directory(tmp_path / "base"), task="embedding")
    base.attach(inlay.Ia3(), "mine")
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    assert json.loads((tmp_path / "mine" / "inlay.json").read_text())["needs"] == {"task": "toys==0.2"}


def test_a_base_is_quantised_and_trained_on(place, said):
    assert 8 < last(said["scheme"])["bits_per_weight"] < 11
    assert 0.01 < last(said["scheme"])["mean_error"] < 0.15
    config = json.loads((place / "small" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "fifteen"
    assert json.loads((place / "small" / "inlay.json").read_text())["quantized"]["needs"] == "inlay-toys==0.2"
    assert (
        last(said["on small"])["losses"] == last(said["on it"])["losses"] if "losses" in last(said["on it"]) else True
    )
    assert last(said["on small"])["loss"] == last(said["on it"])["loss"]


def test_a_task_is_learned_measured_and_asked(place, said):
    report, measured = last(said["task"]), last(said["eval"])
    assert report["eval_loss"] < 0.8 * report["eval_loss_before"]
    assert "8 rows of word" in said["task"][2]
    record = json.loads((place / "speller" / "inlay.json").read_text())
    assert (record["task"], record["needs"]) == ({"name": "backwards"}, {"task": "inlay-toys==0.2"})
    assert measured["adapter"]["loss"] == pytest.approx(report["eval_loss"], rel=1e-4)
    assert json.loads(said["predict"][1].splitlines()[0]).keys() == {"word", "before"}


def test_an_initializer_starts_an_adapter_that_changes_nothing_yet(site):
    code = """
import torch
from torch import nn
import inlay
torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(11, 7), nn.Linear(7, 5)), torch.randn(3, 11)
before = model(x)
held = inlay.attach(model, inlay.Lora(r=3, initializer="loudest_rows"))
W = model[0].weight if isinstance(model[0], nn.Linear) else held.maps["0"].weight(torch.float32)
longest = W.norm(dim=1).topk(3)
A = next(iter(held.values())).params["0"]["lora_A"]
assert torch.allclose(A, W[longest.indices] / longest.values[:, None])
assert torch.equal(held.module(x), before)
"""
    process(code, site)


def test_an_initializer_is_trained_from(place, said):
    files = [(place / name / "adapter_model.safetensors").read_bytes() for name in ("loud", "quiet")]
    assert len(files[0]) == len(files[1])
    assert files[0] != files[1]
    assert "initializer=loudest_rows" in said["initializer"][2]
    assert "needs" not in json.loads((place / "loud" / "inlay.json").read_text())  # what is kept is LoRA


def test_a_format_is_written_and_read(place, said):
    assert sorted(path.name for path in (place / "theirs").iterdir()) == ["inlay.json", "plain.json"]
    for text in ("theirs: lora r=3", "loads in  toys", "not in    giants (its size)"):
        assert text in said["inspect theirs"][1]
    assert said["answer of theirs"][1] == said["answer of quiet"][1] != ""
    before, after = ((place / name / "adapter_model.safetensors").read_bytes() for name in ("quiet", "back"))
    assert before == after


def test_what_a_format_has_no_place_for_is_refused_by_its_own_words(place, said):
    assert not (place / "not").exists()
    assert "error: this adapter would be another one in the form of plain_json" in said["export another"][2]
    assert "found: Direction has no place in plain.json" in said["export another"][2]


def test_names_are_among_those_that_exist(said):
    assert "hint:  --method direction" in said["misspelt method"][2]
    found = "'plian_json'; it takes adapterhub, inlay, llama.cpp, mlx, ollama, peft, sglang, transformers, vllm, plain_json, zz_ruin\n"
    assert found in said["misspelt format"][2]
    assert "hint:  --for plain_json" in said["misspelt format"][2]


def test_without_the_package_what_is_missing_is_named(place, said, ruin):
    found = run(place, WITHOUT, ruin)
    install = "  hint:  pip install inlay-toys==0.2, if you trust that package: it is the file that names it\n"
    where = {
        "method": ("adapter method", "mine/inlay.json: direction"),
        "method on a base": ("adapter method", "mine/inlay.json: direction"),
        "scheme": ("quantisation scheme", "small/config.json: fifteen"),
        "task": ("task", "inlay.json: backwards"),
    }
    for name, (what, named) in where.items():
        status, _, error = found[name]
        assert status == 1
        assert f"error: this is of a {what} that is not installed\n" in error
        assert f"{named}, which inlay-toys==0.2 brings\n{install}" in error
    assert "error: this directory is not an adapter" in found["format"][2]
    assert found["another"][0] == 0


@pytest.mark.parametrize(
    "needs", ["x; rm -rf ~", "x", "git+https://evil==1", "x==1 --index-url=evil", "\u001b[2J==1", 3, ["a"]]
)
def test_a_package_that_a_file_names_otherwise_is_not_repeated(needs):
    from inlay import methods

    methods.TABLE.check_installed("unheard", needs, "inlay.json")


def test_every_law_holds_for_them(site):
    """Each on one family: what changes with the family is the models' part, and the laws of our own methods see to that."""
    laws = [
        f"tests/laws/{name}.py" for name in ("test_methods", "test_quantized", "test_mixed_methods", "test_schemes")
    ]
    how = ["-v", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    chosen = (
        "(direction and llama and not llama_tied and not nf4 and not int8) or (test_schemes and fifteen)"
        " or (every_method_is_its_rows and llama)"
    )
    out = process(f"import pytest; sys.exit(pytest.main({[*how, *laws, '-k', chosen]}))", site, ROOT)
    assert all(f"{path}::" in out for path in laws)
