"""`inlay predict`, and the commands that take the task from the adapter."""

import io
import json

import pytest

import inlay
from inlay import tasks
from inlay.cli import predict
from tests.support import bases, models
from tests.support import tasks as support
from tests.support.command import run, run_json

TASKS = {"sequence-classification": "bert", "token-classification": "bert", "seq2seq": "t5", "embedding": "llama"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """For every task a folder with a base, an adapter and rows."""
    found = {}
    for task, model in TASKS.items():
        place = found[task] = tmp_path_factory.mktemp(task)
        rows = bases.jsonl(place / "rows.jsonl", support.rows(task, 24))
        labels = spec.classes(spec.read(rows).rows) if (spec := tasks.find(task)).classes else ()
        base = inlay.load(support.directory(place / "base", model), task=task, labels=labels)
        models.randomize(base.attach(inlay.Lora(r=2), "mine"), seed=3)
        (place / "mine").mkdir()
        base.save("mine", place / "mine", {})
    return found


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_every_row_is_answered_in_its_place_and_the_task_is_the_adapters(places, capsys, monkeypatch, task):
    place = places[task]
    monkeypatch.setattr(predict, "CHUNK", 7)
    short = ["--max-new-tokens", 3] if task == "seq2seq" else []
    status, out, err = run(capsys, "predict", place / "base", place / "rows.jsonl", "--adapter", place / "mine", *short)
    assert status == 0, err
    assert f"task      {task}" in err
    base = inlay.load(place / "base", task=task, labels=tasks.of_adapter(place / "mine")[1])
    base.attach(place / "mine")
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    said = base.predict(rows, "mine", max_new_tokens=3 if short else None)
    assert len(lines(out)) == len(rows)
    for row, line, expected in zip(rows, lines(out), said, strict=True):
        for key in ("label", "tags", "answer"):
            assert line.get(key) == expected.get(key)
        key = {"sequence-classification": "text", "token-classification": "tokens", "seq2seq": "prompt"}.get(
            task, "anchor"
        )
        assert line[key] == row[key]
        assert "completion" not in line
        assert "positive" not in line
        if task == "embedding":
            assert line["vector"] == pytest.approx(expected["vector"], rel=1e-5)
        if task == "sequence-classification":
            assert line["probabilities"] == pytest.approx(expected["probabilities"], rel=1e-5)


def test_stdin_is_json_or_text_line_by_line(places, capsys, monkeypatch):
    place = places["sequence-classification"]
    text = b'\xef\xbb\xbf{"text": "red 1", "id": 5}\n\ngreen and blue\n"quoted"\n'  # with the mark that Windows puts in front
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    status, out, err = run(capsys, "predict", place / "base", "-", "--adapter", place / "mine", "--json")
    assert status == 0, err
    *rows, last = lines(out)
    assert [row["text"] for row in rows] == ["red 1", "green and blue", '"quoted"']
    assert rows[0]["id"] == 5
    assert {row["label"] for row in rows} <= {"no", "yes"}
    assert (last["rows"], last["task"], last["labels"]) == (3, "sequence-classification", ["no", "yes"])


def test_what_cannot_be_predicted_is_refused(places, capsys, monkeypatch, tmp_path):
    place = places["sequence-classification"]
    model, adapter = place / "base", ["--adapter", place / "mine"]
    status, _, err = run(capsys, "predict", model, place / "rows.jsonl", "--task", "sequence-classification")
    assert status == 1
    assert "knows no classes" in err
    assert "--adapter DIR" in err
    status, _, err = run(capsys, "predict", model, place / "rows.jsonl", "--task", "embedding", *adapter)
    assert status == 1
    assert "for another task" in err
    bases.jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"prompt": "b"}, {"text": "c" * 100}])
    status, out, err = run(capsys, "predict", model, tmp_path / "rows.jsonl", *adapter)
    assert (status, out) == (1, "")
    assert "rows.jsonl:2: keys prompt" in err
    assert "rows.jsonl:3: 100 tokens" in err
    for data, said in ((b"", "stdin is empty"), (b'{"text": \n\xff', "stdin is not JSON lines")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        status, _, err = run(capsys, "predict", model, "-", *adapter)
        assert status == 1
        assert said in err
    assert "line 1: " in err
    assert "line 2: " in err


def test_eval_takes_the_task_from_the_adapter_and_from_a_base_with_a_head(places, capsys, tmp_path):
    place = places["token-classification"]
    result = run_json(capsys, "eval", place / "base", place / "rows.jsonl", "--adapter", place / "mine")
    assert {"f1", "accuracy"} <= set(result["adapter"])
    support.directory(tmp_path / "own", "bert_seq", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    rows = places["sequence-classification"] / "rows.jsonl"
    assert "matthews" in run_json(capsys, "eval", tmp_path / "own", rows)["base"]
    status, out, _ = run(capsys, "predict", tmp_path / "own", rows)
    assert status == 0
    assert len(lines(out)) == 24


@pytest.mark.parametrize("task", ["sequence-classification", "seq2seq", "embedding"])
def test_prompts_are_not_given_to_adapters_of_other_tasks(places, capsys, monkeypatch, task):
    place = places[task]
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    for command in (["generate", place / "base", "--prompt", "x"], ["chat", place / "base"]):
        status, _, err = run(capsys, *command, "--adapter", place / "mine")
        assert status == 1
        assert f"{place / 'mine'} answers no prompts: it was made for another task" in err
        assert f"found: {task}" in err
        assert f"hint:  inlay predict {place / 'base'} rows.jsonl --adapter {place / 'mine'}" in err


def test_prompts_are_not_given_to_bases_of_other_tasks(places, capsys, tmp_path):
    support.directory(tmp_path / "own", "llama_seq")
    for model, task in ((tmp_path / "own", "sequence-classification"), (places["seq2seq"] / "base", "seq2seq")):
        status, _, err = run(capsys, "generate", model, "--prompt", "x")
        assert status == 1
        assert task in err
        assert f"inlay predict {model} rows.jsonl" in err
