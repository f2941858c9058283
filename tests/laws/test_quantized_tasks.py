"""Laws of every task over every scheme: a quantised base is one for all tasks, and its heads are plain and trained."""

import json

import pytest
import torch

import inlay
from inlay import quant, tasks
from inlay.base.quantize import quantize
from inlay.evaluation.score import scores
from inlay.io.checkpoint import open_checkpoint
from inlay.model.changes import replaced
from inlay.modules.frozen import QuantizedLinear
from tests.support import bases
from tests.support import tasks as support

CASES = [
    ("sequence-classification", "llama", {"score"}),
    ("sequence-classification", "bert", {"bert.pooler.dense", "classifier"}),
    ("sequence-classification", "bert_seq", {"bert.pooler.dense", "classifier"}),
    ("token-classification", "llama", {"score"}),
    ("token-classification", "bert", {"classifier"}),
    ("seq2seq", "t5", {"lm_head"}),
    ("embedding", "bert", set()),
    ("embedding", "bert_body", set()),
]
"""(task, model, the linear maps that stay plain)."""

schemes = pytest.mark.parametrize("scheme", quant.names())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))


def _learned():
    """Every case with one of the schemes, so that each task meets all of them: the others are slow. The only seq2seq has all."""
    for number, (task, model, heads) in enumerate(CASES):
        for place, scheme in enumerate(quant.names()):
            marks = [pytest.mark.slow] if (number + place) % 2 and task != "seq2seq" else []
            yield pytest.param(scheme, task, model, heads, marks=marks, id=f"{task}-{model}-{scheme}")


def place_for(tmp_path, task, model):
    """A base that blocks divide, and rows; the labels are those of a head that the base has."""
    own = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}} if model == "bert_seq" else {}
    support.directory(tmp_path / "base", model, support.WIDE, **own)
    bases.jsonl(tmp_path / "rows.jsonl", support.rows(task, 24))
    return tmp_path


def load(place, task, model, **how):
    found = tasks.find(task)
    labels = (
        () if model == "bert_seq" or found.classes is None else found.classes(found.read(place / "rows.jsonl").rows)
    )
    return inlay.load(place / "base", task=task, labels=labels, **how)


@pytest.mark.parametrize(("scheme", "task", "model", "heads"), list(_learned()))
def test_a_task_is_learned_over_it_and_its_heads_are_plain_and_trained(tmp_path, scheme, task, model, heads):
    place = place_for(tmp_path, task, model)
    base = load(place, task, model, quantize=scheme)
    assert base.scheme == scheme
    assert {path for path in base.linears if not isinstance(base.layout.modules[path], QuantizedLinear)} == heads
    start = {head: base.layout.modules[head].state_dict() for head in base.heads}
    settings = dict(max_steps=20, learning_rate=5e-3, batch_size=12, eval_every=20, eval_data=place / "rows.jsonl")
    report = inlay.train(base, place / "rows.jsonl", method=inlay.Lora(r=4), output=place / "mine", **settings)
    assert report.eval_loss < 0.9 * report.eval_loss_before
    again = load(place, task, model, quantize=scheme)
    adapter = again.attach(place / "mine")
    for head, tensors in start.items():
        for name, tensor in tensors.items():
            path, _, last = f"{head}.{name}".rpartition(".")
            assert not torch.equal(replaced(adapter.at(path))[last], tensor)
    rows = again.spec.read(place / "rows.jsonl").rows
    samples = again.spec.prepare(rows, again, 60, "completions", "drop").examples
    assert scores(again, "mine", samples) == report.scores


@schemes
def test_one_quantised_directory_serves_every_task(tmp_path, scheme):
    place = place_for(tmp_path, "embedding", "bert")
    quantize(open_checkpoint(place / "base"), tmp_path / "packed", scheme)
    skipped = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert sorted(skipped["llm_int8_skip_modules"]) == ["cls.predictions.decoder", "cls.predictions.transform.dense"]
    for task in ("sequence-classification", "token-classification"):
        base = inlay.load(tmp_path / "packed", task=task, labels=("a", "b", "c"))
        assert base.scheme == scheme
        assert "classifier" in base.fresh_heads
    assert inlay.load(tmp_path / "packed", task="embedding").heads == []


@schemes
def test_a_task_without_a_decoder_leaves_it_out(tmp_path, scheme):
    place = place_for(tmp_path, "seq2seq", "t5")
    base = inlay.load(place / "base", task="token-classification", labels=("a", "b", "c"), quantize=scheme)
    assert base.scheme == scheme
    assert not any("decoder" in path for path in base.linears)
    assert base.fresh_heads == ["classifier"]
