"""`--task` of train and eval, from the shell to the last line of JSON."""

import io
import json
import warnings

import peft
import pytest
import torch
import transformers

from inlay import formats, tasks
from inlay.base.load import load
from inlay.io.checkpoint import open_checkpoint
from inlay.tasks._encode import inputs
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


def test_the_screen_says_what_the_task_is(tmp_path, capsys, monkeypatch):
    place = place_for(tmp_path, "sequence-classification", "bert")
    status, _, err = run(capsys, *train(place, "sequence-classification", "-v"))
    assert status == 0, err
    assert "2 classes: no, yes" in err
    assert "classifier starts fresh" in err
    assert "rows padded, with a mask" in err
    assert "nats per row" in err
    command = next(line for line in err.splitlines() if line.startswith("try it")).split("| inlay ")[1].split()
    assert command == ["predict", str(place / "base"), "-", "--adapter", str(place / "mine")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"some text\n")))
    status, out, err = run(capsys, *command)
    assert status == 0, err
    assert json.loads(out)["label"] in ("no", "yes")


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
    status, _, err = run(capsys, *train(place, "sequence-clasification"))
    assert status == 2
    assert "--task sequence-classification" in err
    for arguments, says in (
        (train(place, task, "--show-tokens", 1), "--show-tokens 1 with --task sequence-classification"),
        (train(place, task, "--too-long", "window"), "too_long=window"),
        (train(place, "seq2seq"), "AutoModelForSeq2SeqLM"),
        (
            train(place, "token-classification"),
            "some rows don't have tokens and tags, which token-classification needs",
        ),
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
    assert run(capsys, "eval", place / "base", place / "rows.jsonl", "--adapter", place / "mine")[0] == 0


MERGED = [  # slow are two whose head, or whose lack of one, is that of another task's
    ("sequence-classification", "bert", transformers.AutoModelForSequenceClassification),
    ("sequence-classification", "bert_body", transformers.AutoModelForSequenceClassification),
    ("sequence-classification", "bert_token", transformers.AutoModelForSequenceClassification),
    ("sequence-classification", "llama", transformers.AutoModelForSequenceClassification),
    ("sequence-classification", "llama_seq", transformers.AutoModelForSequenceClassification),
    ("token-classification", "bert", transformers.AutoModelForTokenClassification),
    pytest.param("token-classification", "llama", transformers.AutoModelForTokenClassification, marks=pytest.mark.slow),
    ("seq2seq", "t5", transformers.AutoModelForSeq2SeqLM),
    pytest.param("embedding", "bert", transformers.AutoModel, marks=pytest.mark.slow),
    ("embedding", "llama", transformers.AutoModel),
]


def trained(capsys, tmp_path, task, model, *more):
    """A place with an adapter on it that has learned something."""
    place = place_for(tmp_path, task, model)
    rate = 2e-3 if task == "embedding" else 1e-2
    run_json(capsys, *train(place, task, "--learning-rate", rate, "--eval-data", place / "rows.jsonl", *more))
    return place


def for_adapter(place):
    checkpoint = open_checkpoint(place / "base")
    spec, labels = tasks.for_adapter(checkpoint, formats.outline(place / "mine"))
    return load(checkpoint, task=spec, labels=labels, dtype="float32")


@pytest.mark.parametrize(("task", "model", "auto"), MERGED)
def test_what_merge_writes_is_loaded_by_transformers_and_says_the_same(tmp_path, capsys, task, model, auto):
    place = trained(capsys, tmp_path, task, model)
    found = run_json(capsys, "merge", place / "base", place / "mine", "--output", place / "merged")
    assert found["largest_difference"] < 1e-5 < found["adapter_difference"]
    base = for_adapter(place)
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
        assert theirs.config.architectures == [type(theirs).__name__]
        assert [theirs.config.id2label[i] for i in range(theirs.config.num_labels)] == list(base.labels)
        assert theirs.config.label2id == {label: i for i, label in enumerate(base.labels)}
    arguments = ["--task", task]
    _, _, err = run(capsys, "eval", place / "merged", place / "rows.jsonl", *arguments)
    assert "starts fresh" not in err
    merged = run_json(capsys, "eval", place / "merged", place / "rows.jsonl", *arguments)["base"]
    apart = run_json(capsys, "eval", place / "base", place / "rows.jsonl", *arguments, "--adapter", place / "mine")
    assert merged == pytest.approx(apart["adapter"], rel=1e-4)


def merged_classifier(capsys, place, *more):
    """(the merged model in plain transformers, its logits of a padded batch, those of base and adapter)."""
    status, _, err = run(capsys, "merge", place / "base", place / "mine", "--output", place / "merged", *more)
    assert status == 0, err
    base = for_adapter(place)
    base.attach(place / "mine")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(place / "merged", dtype=torch.float32)
    given = inputs(base, [(5, 9, 11, 20), (7, 8, 30, 41, 12, 6)])
    with torch.no_grad():
        return theirs, theirs.eval()(**given).logits, base.model(**given).logits


def test_a_head_goes_into_the_last_of_several_files_and_their_index(tmp_path, capsys):
    place = place_for(tmp_path, "sequence-classification", "bert")
    whole = transformers.BertForMaskedLM.from_pretrained(place / "base")
    (place / "base" / "model.safetensors").unlink()
    whole.save_pretrained(place / "base", max_shard_size="12KB")
    files = sorted(file.name for file in (place / "base").glob("*.safetensors"))
    assert len(files) > 2
    run_json(capsys, *train(place, "sequence-classification", "--learning-rate", 1e-2))
    _, theirs, ours = merged_classifier(capsys, place)
    assert (theirs - ours).abs().max() < 1e-5
    index = json.loads((place / "merged" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["classifier.weight"] == files[-1]
    assert sorted(set(index.values())) == files


def test_a_merged_model_says_what_rows_are_filled_up_with(tmp_path, capsys):
    place = tmp_path
    support.directory(place / "base", "llama", pad_token_id=None)
    bases.jsonl(place / "rows.jsonl", support.rows("sequence-classification", 30))
    run_json(capsys, *train(place, "sequence-classification", "--learning-rate", 1e-2))
    merged, theirs, ours = merged_classifier(capsys, place)
    assert merged.config.pad_token_id == bases.tokenizer().pad_token_id
    assert (theirs - ours).abs().max() < 1e-5


def test_all_of_a_model_with_shared_embeddings_is_merged(tmp_path, capsys):
    place = place_for(tmp_path, "seq2seq", "t5")
    flags = ["train", place / "base", place / "rows.jsonl", "--task", "seq2seq", "--output", place / "mine"]
    run_json(capsys, *flags, "--method", "full", "--max-steps", 6, "--learning-rate", 1e-2)
    found = run_json(capsys, "merge", place / "base", place / "mine", "--output", place / "merged")
    assert found["largest_difference"] < 1e-5 < found["adapter_difference"]


def test_a_classifier_of_peft_is_merged_by_its_own_words(tmp_path, capsys):
    place = place_for(tmp_path, "sequence-classification", "llama")
    plain = transformers.LlamaForSequenceClassification.from_pretrained(place / "base", num_labels=3)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        peft.get_peft_model(plain, config).save_pretrained(place / "mine")
    merged, theirs, ours = merged_classifier(capsys, place)
    assert merged.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert (theirs - ours).abs().max() < 1e-5


def test_the_rows_of_a_task_are_what_merging_is_checked_on(tmp_path, capsys):
    for i, (task, model, _) in enumerate(CASES):
        (tmp_path / str(i)).mkdir()
        place = trained(capsys, tmp_path / str(i), task, model)
        flags = ["--check-data", place / "rows.jsonl", "--check-rows", 10]
        status, _, err = run(capsys, "merge", place / "base", place / "mine", "--output", place / "merged", *flags)
        assert status == 0, err
        assert "on 10 rows, " in err
        assert ("hidden state" in err) == (task == "embedding")
        assert ("same class 100.0 %" in err) == ("classification" in task)
        assert ("same next token 100.0 %" in err) == (task == "seq2seq")


def test_a_quantised_base_and_a_task_become_plain(tmp_path, capsys):
    place = place_for(tmp_path, "sequence-classification", "bert")
    (place / "base").rename(place / "plain")
    run_json(capsys, "quantize", place / "plain", "--scheme", "int8", "--output", place / "base")
    run_json(capsys, *train(place, "sequence-classification", "--learning-rate", 1e-2))
    merged, theirs, ours = merged_classifier(capsys, place)
    assert "quantization_config" not in json.loads((place / "merged" / "config.json").read_text())
    assert list(merged.config.id2label.values()) == ["no", "yes"]
    assert (theirs - ours).abs().max() < 1e-5


def test_a_merged_classifier_is_quantised_but_for_its_head(tmp_path, capsys):
    place = trained(capsys, tmp_path, "sequence-classification", "bert", "--lora-alpha", 1)
    flags = ["--output", place / "merged", "--quantize", "int8", "--force"]
    found = run_json(capsys, "merge", place / "base", place / "mine", *flags)
    assert not any("classifier" in path or "pooler" in path for path in found["layers"])
    merged = run_json(capsys, "eval", place / "merged", place / "rows.jsonl", "--task", "sequence-classification")
    arguments = ["--task", "sequence-classification", "--adapter", place / "mine"]
    apart = run_json(capsys, "eval", place / "base", place / "rows.jsonl", *arguments)
    assert merged["base"]["loss"] == pytest.approx(apart["adapter"]["loss"], abs=0.02)
    quantized = json.loads((place / "merged" / "config.json").read_text())
    assert quantized["id2label"] == {"0": "no", "1": "yes"}
    assert "classifier" in quantized["quantization_config"]["llm_int8_skip_modules"]


def test_an_embedding_is_not_merged_into_a_quantised_checkpoint(tmp_path, capsys):
    place = trained(capsys, tmp_path, "embedding", "llama")
    flags = ["--output", place / "merged", "--quantize", "int8"]
    status, _, err = run(capsys, "merge", place / "base", place / "mine", *flags)
    assert status == 1
    assert "measured on answers, and this model has none" in err
    assert "inlay quantize --scheme int8" in err
    assert not (place / "merged").exists()


@pytest.mark.parametrize("task_and_model", [case[:2] for case in CASES])
def test_methods_with_virtual_tokens_are_refused_by_name(tmp_path, capsys, task_and_model):
    task, model = task_and_model
    place = place_for(tmp_path, task, model)
    flags = ["train", place / "base", place / "rows.jsonl", "--task", task, "--output", place / "mine"]
    for method, name in (("prefix", "Prefix"), ("prompt", "Prompt"), ("p_tuning", "PTuning")):
        status, _, err = run(capsys, *flags, "--method", method)
        assert status == 1
        assert "this task has no place for virtual tokens" in err
        assert f"{name} with task {task}" in err
        assert "--method lora" in err
        assert not (place / "mine").exists()
