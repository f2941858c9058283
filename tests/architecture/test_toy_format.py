"""One new file is a new format of adapters: it is found, read, attached, trained on, inspected and exported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import bases

ROOT = Path(__file__).parents[2]

TOY = '''"""Toy: the tensors of plain LoRA as text, the layers numbered in the order of their names."""

import json

import torch

from inlay.formats.contract import AdapterFile, Format, ModelFacts
from inlay.methods.lora import Lora


class Toy(Format):
    """toy.json"""

    files = ("toy.json",)
    tensors = "toy.json"

    def detect(self, directory):
        return (directory / "toy.json").exists()

    def read(self, directory, *, outline):
        found = json.loads((directory / "toy.json").read_text())
        params = {
            layer: {name: torch.tensor(numbers, device="meta" if outline else "cpu") for name, numbers in own.items()}
            for layer, own in found["layers"].items()
        }
        method = Lora(r=found["r"], lora_alpha=found["alpha"])
        return AdapterFile(method=method, params=params, model=ModelFacts(name=found["base"]))

    def placed(self, file, model):
        every = sorted(path for path, layer in model.layers.items() if layer.kind == "linear" and "layers" in path)
        return AdapterFile(
            method=file.method,
            params={every[int(number)]: own for number, own in file.params.items()},
            model=model,
            record=file.record,
        )

    def problems(self, file):
        return [] if type(file.method) is Lora else [f"{type(file.method).__name__} has no place in toy.json"]

    def write(self, directory, file):
        layers = [{name: tensor.tolist() for name, tensor in file.params[path].items()} for path in sorted(file.params)]
        about = {"base": file.model.name, "r": file.method.r, "alpha": file.method.lora_alpha}
        (directory / "toy.json").write_text(json.dumps({**about, "layers": dict(enumerate(layers))}))

    def readers(self, directory):
        return {"toys": [], "giants": ["its size"]}
'''


PROCESS = """
import contextlib, io, json, sys
from inlay.cli import main
answers = []
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    answers.append([status, out.getvalue(), err.getvalue()])
json.dump(answers, sys.stdout)
"""
"""All commands in one process, because each one's imports take seconds."""

ANSWER = ["--prompt", "say 3", "--max-new-tokens", "3"]
COMMANDS = {
    "train": ["train", "base", "rows.jsonl", "--output", "mine", "--r", "3", "--max-steps", "2"],
    "export": ["export", "base", "mine", "--format", "toy", "--output", "theirs"],
    "inspect": ["inspect", "theirs"],
    "answer of mine": ["generate", "base", "--adapter", "mine", *ANSWER],
    "answer of theirs": ["generate", "base", "--adapter", "theirs", *ANSWER],
    "export back": ["export", "base", "theirs", "--format", "peft", "--output", "back"],
    "go on": ["train", "base", "rows.jsonl", "--from", "theirs", "--output", "more", "--max-steps", "1", "--json"],
    "train another": ["train", "base", "rows.jsonl", "--output", "ia3", "--method", "ia3", "--max-steps", "1"],
    "export another": ["export", "base", "ia3", "--format", "toy", "--output", "not"],
    "misspelt": ["export", "base", "mine", "--format", "tyo", "--output", "not"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the package and one file more, beside it a base, rows, and what the commands made of them."""
    place = tmp_path_factory.mktemp("with_toy")
    shutil.copytree(ROOT / "src" / "inlay", place / "inlay", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "inlay" / "formats" / "toy.py").write_text(TOY)
    bases.directory(place / "base")
    bases.jsonl(place / "rows.jsonl", bases.rows(30))
    environment = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    given = json.dumps(list(COMMANDS.values()))
    command = [sys.executable, "-c", PROCESS]
    done = subprocess.run(command, env=environment, input=given, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    (place / "answers.json").write_text(done.stdout)
    return place


@pytest.fixture
def said(place):
    """What the commands said, by name: status, standard output and standard error."""
    return dict(zip(COMMANDS, json.loads((place / "answers.json").read_text()), strict=True))


def test_a_new_file_is_a_format(place, said):
    assert {name: status for name, (status, _, _) in said.items() if status} == {"export another": 1, "misspelt": 1}
    assert sorted(path.name for path in (place / "theirs").iterdir()) == ["inlay.json", "toy.json"]
    for text in ("theirs: lora r=3", "loads in  toys", "not in    giants (its size)"):
        assert text in said["inspect"][1]
    assert said["answer of mine"][1] == said["answer of theirs"][1] != ""
    assert json.loads(said["go on"][1].splitlines()[-1])["steps"] == 1


def test_what_it_wrote_is_what_it_was_given(place, said):
    assert said["export back"][0] == 0
    before, after = ((place / name / "adapter_model.safetensors").read_bytes() for name in ("mine", "back"))
    assert before == after


def test_what_it_has_no_place_for_is_refused_by_its_own_words(place, said):
    assert not (place / "not").exists()
    assert "error: this adapter would be another one in the form of toy" in said["export another"][2]
    assert "found: Ia3 has no place in toy.json" in said["export another"][2]


def test_its_name_is_among_those_that_exist(said):
    assert "'tyo'; the formats are adapterhub, loralib, peft, toy\n" in said["misspelt"][2]
    assert "hint:  --format toy" in said["misspelt"][2]
