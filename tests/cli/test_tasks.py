"""`--task` of train and eval, from the shell to the last line of JSON."""

import json

import pytest
import torch
import transformers

from inlay.model.load import load
from inlay.training import tasks
from inlay.training.tasks._padded import inputs
from tests.support import bases
from tests.support import tasks as support
from tests.support.command import run, run_json

CASES = [
    ("sequence-classification", "bert", {"accuracy", "matthews", "macro_f1"}),
    ("token-classification", "bert", {"f1", "accuracy"}),
    ("seq2seq", "t5", {"bleu", "rouge_l"}),
    ("embedding", "llama", {"recall@1", "recall@5"}),
]


def place_for(tmp_path, task, model):
    own = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}} if model == "llama_seq" else {}
    gain = 1 if model == "t5" else 3  # T5 does not scale its attention: large weights make noise of float32 larger
    support.directory(tmp_path / "base", model, gain=gain, **own)
    bases.jsonl(tmp_path / "rows.jsonl", support.rows(task, 30))
    return tmp_path


def train(place, task, *more):
    flags = ["--task", task, "--output", place / "mine", "--max-steps", 6, "--r", 2, "--batch-size", 6]
    return ["train", place / "base", place / "rows.jsonl", *flags, *more]


@pytest.mark.parametrize(("task", "model", "scores"), CASES)
def test_a_task_is_trained_and_evaluated(tmp_path, capsys, task, model, scores):
    place = place_for(tmp_path, task, model)
    report = run_json(capsys, *train(place, task, "--eval-data", place / "rows.jsonl", "--learning-rate", 1e-2))
    assert set(report["scores"]) == scores
    assert report["supervised_tokens"] > 0
    record = json.loads((place / "mine" / "inlay.json").read_text())
    assert record["task"]["name"] == task
    assert record["training"]["scores"] == report["scores"]
    arguments = ["eval", place / "base", place / "rows.jsonl", "--task", task, "--adapter", place / "mine"]
    found = run_json(capsys, *arguments)
    assert {name: found["adapter"][name] for name in scores} == report["scores"]
    assert found["adapter"]["loss"] == pytest.approx(report["eval_loss"], rel=1e-5)
    assert set(found["base"]) == {"loss", *scores}
    status, out, err = run(capsys, *arguments)
    assert status == 0
    assert all(name in out for name in scores)
    assert ("starts fresh" in err) == (model == "bert")


def test_the_screen_says_what_the_task_is(tmp_path, capsys):
    place = place_for(tmp_path, "sequence-classification", "bert")
    status, _, err = run(capsys, *train(place, "sequence-classification", "-v"))
    assert status == 0, err
    assert "2 classes: no, yes" in err
    assert "classifier starts fresh" in err
    assert "rows padded, with a mask" in err
    assert "nats per row" in err
    assert f"inlay eval {place / 'base'} {place / 'rows.jsonl'} --task sequence-classification --adapter" in err


def test_causal_models_say_nothing_of_tasks(tmp_path, capsys):
    bases.directory(tmp_path / "base")
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(30))
    report = run_json(
        capsys, "train", tmp_path / "base", tmp_path / "rows.jsonl", "--output", tmp_path / "mine", "--max-steps", 2
    )
    assert "scores" not in report
    record = json.loads((tmp_path / "mine" / "inlay.json").read_text())
    assert "task" not in record
    assert "scores" not in record["training"]


def test_what_a_task_does_not_do_is_refused(tmp_path, capsys):
    task = "sequence-classification"
    place = place_for(tmp_path, task, "bert")
    for arguments, says in (
        (train(place, "sequence-clasification"), "--task sequence-classification"),
        (train(place, task, "--show-tokens", 1), "--show-tokens 1 with --task sequence-classification"),
        (train(place, task, "--too-long", "window"), "too_long=window"),
        (train(place, "seq2seq"), "AutoModelForSeq2SeqLM"),
        (train(place, "token-classification"), "rows for token-classification have tokens and tags"),
        (train(place, "embedding"), '{"anchor": "...", "positive": "..."}'),
        (["eval", place / "base", place / "rows.jsonl", "--task", task, "--scores", "bleu"], "--scores bleu"),
        (["eval", place / "base", place / "rows.jsonl", "--task", task, "--max-new-tokens", 3], "--max-new-tokens 3"),
    ):
        status, _, err = run(capsys, *arguments)
        assert status == 1
        assert says in err, err
        assert "Traceback" not in err
        assert not (place / "mine").exists()


def test_an_unknown_label_in_the_data_that_is_evaluated_is_named(tmp_path, capsys):
    task = "sequence-classification"
    place = place_for(tmp_path, task, "bert")
    run_json(capsys, *train(place, task))
    bases.jsonl(place / "other.jsonl", [{"text": "red", "label": "yes"}, {"text": "red", "label": "perhaps"}])
    arguments = ["eval", place / "base", place / "other.jsonl", "--task", task, "--adapter", place / "mine"]
    status, _, err = run(capsys, *arguments)
    assert status == 1
    assert "unknown label 'perhaps'; the classes are no, yes" in err
    status, _, err = run(capsys, "eval", place / "base", place / "rows.jsonl", "--adapter", place / "mine")
    assert status == 1
    assert "--task sequence-classification" in err


MERGED = [
    ("sequence-classification", "bert", transformers.AutoModelForSequenceClassification),
    ("sequence-classification", "bert_body", transformers.AutoModelForSequenceClassification),
    ("sequence-classification", "bert_token", transformers.AutoModelForSequenceClassification),
    ("sequence-classification", "llama", transformers.AutoModelForSequenceClassification),
    ("sequence-classification", "llama_seq", transformers.AutoModelForSequenceClassification),
    ("token-classification", "bert", transformers.AutoModelForTokenClassification),
    ("token-classification", "llama", transformers.AutoModelForTokenClassification),
    ("seq2seq", "t5", transformers.AutoModelForSeq2SeqLM),
    ("embedding", "bert", transformers.AutoModel),
    ("embedding", "llama", transformers.AutoModel),
]


def trained(capsys, tmp_path, task, model, *more):
    """A place with an adapter on it that has learned something."""
    place = place_for(tmp_path, task, model)
    rate = 2e-3 if task == "embedding" else 1e-2
    run_json(capsys, *train(place, task, "--learning-rate", rate, "--eval-data", place / "rows.jsonl", *more))
    return place


@pytest.mark.parametrize(("task", "model", "auto"), MERGED)
def test_what_merge_writes_is_loaded_by_transformers_and_says_the_same(tmp_path, capsys, task, model, auto):
    place = trained(capsys, tmp_path, task, model)
    found = run_json(capsys, "merge", place / "base", place / "mine", "--output", place / "merged")
    assert found["largest_difference"] < 1e-5 < found["adapter_difference"]
    base = load(place / "base", purpose=tasks.of_adapter(place / "base", place / "mine"), dtype="float32")
    base.attach(place / "mine")
    theirs, report = auto.from_pretrained(place / "merged", output_loading_info=True)
    assert all("pooler" in key for key in report["missing_keys"]) if task == "embedding" else not report["missing_keys"]
    assert not report["mismatched_keys"]
    rows = [(5, 9, 11, 20), (7, 8, 30, 41, 12, 6)]
    given = inputs(base, rows) | ({"labels": torch.tensor([[8, 9, 2], [7, 5, 2]])} if task == "seq2seq" else {})
    with torch.no_grad():
        ours, plain = base.model(**given)[int(task == "seq2seq")], theirs.eval()(**given)[int(task == "seq2seq")]
    assert (ours - plain).abs().max() < 1e-5
    if base.labels:
        assert [theirs.config.id2label[i] for i in range(theirs.config.num_labels)] == list(base.labels)
        assert theirs.config.label2id == {label: i for i, label in enumerate(base.labels)}
    arguments = ["--task", task]
    merged = run_json(capsys, "eval", place / "merged", place / "rows.jsonl", *arguments)["base"]
    apart = run_json(capsys, "eval", place / "base", place / "rows.jsonl", *arguments, "--adapter", place / "mine")
    assert merged == pytest.approx(apart["adapter"], rel=1e-4)
