"""What a base says of rows: what `transformers` says of each alone, and what the scores of the same rows are made of."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

import inlay
from inlay import tasks
from inlay.base import predict as predicting
from inlay.errors import ConfigError, DataError
from inlay.evaluation.score import scores as scores_of
from inlay.tasks._encode import answers
from tests.support import bases, models
from tests.support import tasks as support

NAMED = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
TEXTS = ["red 1", "a longer text about green and blue", "b", "navy rust lime"]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Rows go through in several groups, in another order than they came."""
    monkeypatch.setattr(predicting, "MAX_TOKENS", 40)
    monkeypatch.setattr(predicting, "MAX_ANSWERS", 2)


def trained(tmp_path, task, model, steps=6):
    rows = bases.jsonl(tmp_path / "rows.jsonl", support.rows(task, 24))
    labels = spec.classes(spec.read(rows).rows) if (spec := tasks.find(task)).classes else ()
    base = inlay.load(support.directory(tmp_path / "base", model), task=task, labels=labels)
    settings = inlay.Lora(r=2)
    inlay.train(base, rows, method=settings, output=tmp_path / "mine", max_steps=steps, learning_rate=1e-2)
    return base, rows


def alone(place, auto, text, *more):
    tokenizer = AutoTokenizer.from_pretrained(place)
    with torch.no_grad():
        return auto.from_pretrained(place)(**tokenizer(text, *more, return_tensors="pt"))


@pytest.mark.parametrize("model", ["bert_seq", "llama_seq"])
def test_probabilities_are_those_of_transformers_on_each_text_alone(tmp_path, model):
    place = support.directory(tmp_path / "base", model, **NAMED)
    base = inlay.load(place, task="sequence-classification")
    said = base.predict([*TEXTS[:2], {"text": TEXTS[2], "id": 7}, {"text": TEXTS[3], "text_pair": None}])
    for text, row in zip(TEXTS, said, strict=True):
        expected = alone(place, AutoModelForSequenceClassification, text).logits.softmax(-1)[0]
        assert list(row["probabilities"]) == ["no", "yes"]
        assert torch.allclose(torch.tensor(list(row["probabilities"].values())), expected, atol=1e-6)
        assert row["label"] == ("no", "yes")[expected.argmax()]
        assert row["probability"] == max(row["probabilities"].values())


def test_pairs_are_given_to_the_model_as_pairs(tmp_path):
    place = support.directory(tmp_path / "base", "bert_seq", **NAMED)
    base = inlay.load(place, task="sequence-classification")
    said = base.predict([{"text": "red 1", "text_pair": "blue"}, {"text": "red 1"}])
    expected = alone(place, AutoModelForSequenceClassification, "red 1", "blue").logits.softmax(-1)[0, 1]
    assert said[0]["probabilities"]["yes"] == pytest.approx(float(expected), abs=1e-6)
    assert said[0] != said[1]


def test_tags_are_those_of_transformers_and_of_the_words_of_a_text(tmp_path):
    place = support.directory(tmp_path / "base", "bert_token", id2label={0: "O", 1: "B", 2: "C"})
    base = inlay.load(place, task="token-classification")
    words = ["red", "and", "green", "7"]
    said, same = base.predict([{"tokens": words}, "red  and green\n7"])
    assert said == same
    logits = alone(place, AutoModelForTokenClassification, "red and green 7").logits[0]
    firsts = [0, 4, 8, 14]  # the tokenizer of the small models has a token for every character
    assert said["tokens"] == words
    assert said["tags"] == [base.labels[i] for i in logits[firsts].argmax(-1)]
    assert torch.allclose(torch.tensor(said["probabilities"]), logits[firsts].softmax(-1).amax(-1), atol=1e-6)


def test_vectors_are_means_of_hidden_states(tmp_path):
    place = support.directory(tmp_path / "base", "bert_body")
    base = inlay.load(place, task="embedding")
    for text, row in zip(TEXTS, base.predict([*TEXTS[:3], {"anchor": TEXTS[3]}]), strict=True):
        mean = alone(place, AutoModel, text).last_hidden_state[0].mean(0)
        assert torch.allclose(torch.tensor(row["vector"]), mean / mean.norm(), atol=1e-5)


@pytest.mark.parametrize(("task", "model"), [("sequence-classification", "bert"), ("token-classification", "bert")])
def test_predictions_score_what_the_training_reports(tmp_path, task, model):
    base, rows = trained(tmp_path, task, model)
    read = base.spec.read(rows).rows
    prepared = base.spec.prepare(read, base, 64, "completions", "drop")
    scores = scores_of(base, "mine", prepared.examples)
    said = base.predict([row.values for row in read], "mine")
    if task == "sequence-classification":
        right = [row.values["label"] == found["label"] for row, found in zip(read, said, strict=True)]
    else:
        pairs = zip(read, said, strict=True)
        right = [one == two for row, found in pairs for one, two in zip(row.values["tags"], found["tags"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(scores["accuracy"])


def test_answers_are_those_of_the_scores_and_of_generate(tmp_path):
    base, _ = trained(tmp_path, "seq2seq", "t5", steps=2)
    said = base.predict(["red?", {"prompt": "green?"}], "mine", max_new_tokens=5)
    with base.using("mine"):
        expected = [answers(base, [tuple(base.tokenizer(p)["input_ids"])], 5)[0] for p in ("red?", "green?")]
    assert [row["answer"] for row in said] == expected
    causal = inlay.load(support.directory(tmp_path / "llama", "llama"))
    models.randomize(causal.attach(inlay.Lora(r=2), "a"), seed=3)
    prompts = ["a", "a longer prompt", "bc"]
    given = [prompts[0], {"prompt": prompts[1]}, {"messages": [{"role": "user", "content": prompts[2]}]}]
    said = causal.predict(given, ["a", None, "a"], max_new_tokens=4)
    expected = [
        causal.generate([p], name, max_new_tokens=4)[0].strip()
        for p, name in zip(prompts, ["a", None, "a"], strict=True)
    ]
    assert [row["answer"] for row in said] == expected


def test_every_row_may_name_its_adapter(tmp_path):
    base = inlay.load(
        support.directory(tmp_path / "base", "bert"), task="sequence-classification", labels=["x", "y", "z"]
    )
    for name, seed in (("a", 3), ("b", 5)):
        models.randomize(base.attach(inlay.Lora(r=2), name), seed=seed)
    names = ["a", "b", "b", "a"]
    mixed = base.predict(TEXTS, names)
    assert mixed[0]["probabilities"] != base.predict(TEXTS, "b")[0]["probabilities"]
    for text, name, row in zip(TEXTS, names, mixed, strict=True):
        single = base.predict([text], name)[0]["probabilities"]
        assert row["probabilities"] == pytest.approx(single, abs=1e-6)
    with pytest.raises(ConfigError, match="4 rows, 2 adapters"):
        base.predict(TEXTS, ["a", "b"])


def test_a_head_that_is_not_trained_says_nothing(tmp_path):
    base = inlay.load(support.directory(tmp_path / "base", "bert"), task="sequence-classification", labels=["x", "y"])
    models.randomize(base.attach(inlay.Lora(r=2), "a"), seed=3)
    with pytest.raises(ConfigError, match="would be random"):
        base.predict(["red"])
    with pytest.raises(ConfigError, match="would be random"):
        base.predict(["red", "blue"], ["a", None])
    assert base.predict(["red"], "a")


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression", "one number"])
def test_a_head_that_does_not_choose_one_class_says_what_it_is_for(tmp_path, kind):
    config = {"num_labels": 1} if kind == "one number" else {"problem_type": kind, **NAMED}
    place = support.directory(tmp_path / "base", "bert_seq", **config)
    base = inlay.load(place, task="sequence-classification")
    said = base.predict(["red 1"])[0]
    logits = alone(place, AutoModelForSequenceClassification, "red 1").logits[0]
    if kind == "multi_label_classification":
        assert said["probabilities"] == pytest.approx(
            dict(zip(("no", "yes"), logits.sigmoid().tolist(), strict=True)), abs=1e-6
        )
        assert said["labels"] == [
            name for name, value in zip(("no", "yes"), logits.tolist(), strict=True) if value >= 0
        ]
    else:
        assert said == {"value": pytest.approx(logits.tolist() if kind == "regression" else logits.item(), abs=1e-6)}
    rows = bases.jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "no"}, {"text": "b", "label": "yes"}])
    with pytest.raises(ConfigError, match="does not choose one class"):
        inlay.train(base, rows, method=inlay.Lora(r=2), output=tmp_path / "out", max_steps=1)


def test_rows_that_say_nothing_are_all_named(tmp_path):
    base = inlay.load(support.directory(tmp_path / "base", "bert_seq", **NAMED), task="sequence-classification")
    rows = ["fine", {"prompt": "x"}, {"text": None}, {"text": ""}, "x" * 65, {"text": "a", "text_pair": 3}, "\ud800"]
    with pytest.raises(DataError) as caught:
        base.predict(rows)
    problems = str(caught.value).splitlines()[1:-1]
    expected = [
        "keys prompt",
        "text is null",
        "no tokens",
        "65 tokens, this model takes 64",
        "text_pair is a int",
        "surrogate",
    ]
    assert len(problems) == len(expected)
    for number, (line, part) in enumerate(zip(problems, expected, strict=True), 1):
        assert f"row {number}: " in line
        assert part in line
    with pytest.raises(ConfigError, match="rows is no list"):
        base.predict("one text")
    with pytest.raises(ConfigError, match="makes no answers"):
        base.predict(["one text"], max_new_tokens=3)


def test_labels_of_unnamed_classes_are_read_by_number_and_others_by_name(tmp_path):
    rows = [
        {"text": f"{word} {i}", "label": label}
        for i, (word, label) in enumerate(zip(support.WORDS, [0, "1", 1.0, True, False, "LABEL_0"], strict=True))
    ]
    task = tasks.find("sequence-classification")
    base = inlay.load(support.directory(tmp_path / "base", "bert_seq"), task=task.name)
    assert base.labels == ("LABEL_0", "LABEL_1")
    read = task.read(bases.jsonl(tmp_path / "rows.jsonl", rows)).rows
    assert [sample.labels for sample in task.prepare(read, base, 60, "completions", "drop").examples] == [
        (0,),
        (1,),
        (1,),
        (1,),
        (0,),
        (0,),
    ]
    for wrong in (2, "-1", "no"):
        row = task.read(bases.jsonl(tmp_path / "wrong.jsonl", [{"text": "a", "label": wrong}])).rows[0]
        with pytest.raises(DataError, match="unknown label"):
            task.prepare([row], base, 60, "completions", "drop")
    with pytest.raises(DataError, match="label is a float"):
        task.read(bases.jsonl(tmp_path / "wrong.jsonl", [{"text": "a", "label": 0.5}]))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([10, 9, 2], ("2", "9", "10")),
        ([True, False], ("false", "true")),
        (["10", "-1", "2"], ("-1", "2", "10")),
        (["²", "1"], ("1", "²")),
        (["b", "10", "a"], ("10", "a", "b")),
    ],
)
def test_classes_are_in_the_order_of_their_numbers_or_names(tmp_path, given, names):
    task = tasks.find("sequence-classification")
    rows = bases.jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in given])
    assert task.classes(task.read(rows).rows) == names
