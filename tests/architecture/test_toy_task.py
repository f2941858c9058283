"""One new file is a new task: its rows are read and learned, its adapter says what it is for, and is measured and asked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import bases

ROOT = Path(__file__).parents[2]

TOY = '''"""Toy: a word is spelt from its last token to its first.

{"word": "..."}

loss = sum over the tokens of the word but its last of -log softmax(model(the tokens after it, backwards))[token]
"""

import dataclasses
import json

import torch

from inlay.data.sources import TRAIN, read
from inlay.errors import DataError, explain
from inlay.tasks.contract import Item, Prepared, TaskSpec


@dataclasses.dataclass(frozen=True)
class Word:
    source: str
    prompt: str

    def content(self):
        return json.dumps(self.prompt)


@dataclasses.dataclass(frozen=True)
class Sample:
    source: str
    input_ids: tuple[int, ...]


def _rows(values, name, unused):
    found = list(values)
    if any("word" not in value for _, value in found):
        raise DataError(explain("a row has no word", found=name, do=\'{"word": "..."}\'))
    return [Word(f"{name}:{number}", value["word"]) for number, value in found]


def _ids(base, text):
    return tuple(base.tokenizer(text, add_special_tokens=False)["input_ids"][::-1])


def _prepare(rows, base, max_length, train_on, too_long, *, may_be_empty=False, progress=lambda done, total: None):
    made = [Sample(row.source, _ids(base, row.prompt)) for row in rows]
    kept = [sample for sample in made if len(sample.input_ids) <= max_length]
    lost = len(made) - len(kept)
    tokens, targets = _num_tokens(kept), _num_targets(kept)
    return Prepared(kept, "word", max_length, len(rows), tokens, targets, num_dropped=lost, num_windowed=0)


def _num_tokens(samples):
    return sum(len(sample.input_ids) for sample in samples)


def _num_targets(samples):
    return sum(len(sample.input_ids) - 1 for sample in samples)


def _parts(base, samples, max_tokens):
    yield from ([sample] for sample in samples)


def _loss_of(base, samples):
    (sample,) = samples
    ids = torch.tensor([sample.input_ids])
    logits = base.model(input_ids=ids, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits.float(), ids[0, 1:], reduction="sum")


def _said(base, items, adapters, max_new_tokens):
    best = [base.model(input_ids=torch.tensor([item.ids]), use_cache=False).logits[0, -1].argmax() for item in items]
    return [{"before": base.tokenizer.decode([int(token)])} for token in best]


SPEC = TaskSpec(
    name="toy",
    unit="token",
    auto_class="AutoModelForCausalLM",
    task_type="CAUSAL_LM",
    keys="word",
    read=lambda source, splits=TRAIN: read(source, _rows, splits),
    prepare=_prepare,
    num_targets=_num_targets,
    num_tokens=_num_tokens,
    parts=_parts,
    step_parts=_parts,
    loss_of=_loss_of,
    asked="word",
    item=lambda base, row: Item(_ids(base, row if isinstance(row, str) else row["word"])),
    said=_said,
)
"""Words, backwards."""
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The package with one file more."""
    place = tmp_path_factory.mktemp("with_toy")
    shutil.copytree(ROOT / "src" / "inlay", place / "inlay", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "inlay" / "tasks" / "toy.py").write_text(TOY)
    return os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def test_the_commands_know_it(environment, tmp_path):
    bases.directory(tmp_path / "base")
    bases.jsonl(tmp_path / "rows.jsonl", [{"word": word} for word in ("stressed", "drawer", "star", "lager") * 8])

    def inlay(*arguments):
        command = [sys.executable, "-m", "inlay", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done

    how = ("--task", "toy", "--max-steps", 25, "--learning-rate", 0.03, "--eval-data", "rows.jsonl", "--json")
    said = inlay("train", "base", "rows.jsonl", "--output", "mine", *how)
    report = json.loads(said.stdout.splitlines()[-1])
    assert report["eval_loss"] < 0.8 * report["eval_loss_before"]
    assert "32 rows of word" in said.stderr
    assert json.loads((tmp_path / "mine" / "inlay.json").read_text())["task"] == {"name": "toy"}
    measured = json.loads(inlay("eval", "base", "rows.jsonl", "--adapter", "mine", "--json").stdout.splitlines()[-1])
    assert measured["adapter"]["loss"] == pytest.approx(report["eval_loss"], rel=1e-4)
    line = inlay("predict", "base", "rows.jsonl", "--adapter", "mine").stdout.splitlines()[0]
    assert json.loads(line).keys() == {"word", "before"}
