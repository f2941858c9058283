"""`--task` of train and eval, from the shell to the last line of JSON."""

import json

import pytest

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
    support.directory(tmp_path / "base", model)
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
