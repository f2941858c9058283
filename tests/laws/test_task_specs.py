"""Every task, whatever it is: its value is whole, and what decides its classes is opened and read once."""

import importlib
import sys
from pathlib import Path

import pytest
import transformers

from inlay import tasks
from inlay.data import files
from inlay.evaluation.score import SCORES
from inlay.io import checkpoint
from tests.support import bases
from tests.support import tasks as support
from tests.support.command import run

CLASSES = {"sequence-classification": "bert", "token-classification": "bert"}
"""The tasks that have classes -> a base without a head for them."""


@pytest.mark.parametrize("name", tasks.names())
def test_what_is_said_of_a_task_fits_together(name):
    spec = tasks.find(name)
    assert spec.name == name
    assert hasattr(transformers, spec.auto_class)
    assert set(spec.scores) <= set(SCORES)
    assert bool(spec.scores) == (spec.answered is not None)
    assert bool(spec.heads) == (spec.classes is not None)


def test_the_tasks_with_classes_are_those_that_are_tried():
    assert {name for name in tasks.names() if tasks.find(name).classes} == set(CLASSES)


@pytest.fixture
def counted(monkeypatch):
    """Which bases were opened and which files of rows were read, in order, under whatever name a module calls the functions."""
    for command in (
        "train",
        "eval",
        "predict",
    ):  # imported when they are asked for, they would keep what is put in place here
        importlib.import_module(f"inlay.cli.{command}")
    opened, read = [], []
    original, values = checkpoint.open_checkpoint, files.values

    def opening(source, *given):
        opened.append(Path(source).name)
        return original(source, *given)

    for module in [module for name, module in sys.modules.items() if name.startswith("inlay.")]:
        if getattr(module, "open_checkpoint", None) is original:
            monkeypatch.setattr(module, "open_checkpoint", opening)
    monkeypatch.setattr(files, "values", lambda path: (read.append(path.name), values(path))[1])
    return opened, read


@pytest.mark.parametrize("task", CLASSES)
def test_classes_are_known_from_one_look_at_base_and_rows(tmp_path, capsys, counted, task):
    opened, read = counted
    support.directory(tmp_path / "base", CLASSES[task])
    rows = bases.jsonl(tmp_path / "rows.jsonl", support.rows(task, 24))
    new = ["--max-steps", 1, "--method", "lora", "--output", tmp_path / "mine"]
    for command in (
        ["train", tmp_path / "base", rows, "--task", task, *new],
        ["eval", tmp_path / "base", rows, "--task", task],
        ["eval", tmp_path / "base", rows, "--adapter", tmp_path / "mine"],
        ["predict", tmp_path / "base", rows, "--adapter", tmp_path / "mine"],
    ):
        opened.clear()
        read.clear()
        status, _, err = run(capsys, *map(str, command))
        assert status == 0, err
        assert opened == ["base"], command
        assert read == ["rows.jsonl"], command
