"""Tasks: what is learned, that the score is what it says, and that an adapter's file holds all of it."""

import json
import math
import random
import warnings

import peft
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import inlay
from inlay import methods, tasks
from inlay.base import load as loading
from inlay.errors import CompatibilityError, ConfigError, DataError, UnknownNameError
from inlay.evaluation import metrics
from inlay.evaluation.score import scores
from inlay.io.checkpoint import open_checkpoint
from inlay.tasks import embedding
from inlay.tasks._encode import inputs, padded, points
from tests.support import bases
from tests.support import tasks as support
from tests.support.tolerances import assert_close

LABELS = {
    "sequence-classification": ("no", "yes"),
    "token-classification": ("B-blue", "B-green", "B-red", "O"),
    "seq2seq": (),
    "embedding": (),
}

CASES = [
    ("sequence-classification", "llama", "lora", {"accuracy": 1.0, "matthews": 1.0, "macro_f1": 1.0}),
    ("sequence-classification", "bert", "lora", {"accuracy": 1.0, "matthews": 1.0, "macro_f1": 1.0}),
    ("sequence-classification", "bert", "bitfit", {"accuracy": 1.0}),
    ("sequence-classification", "llama", "ia3", {"accuracy": 1.0}),
    ("token-classification", "bert", "lora", {"f1": 1.0, "accuracy": 1.0}),
    ("seq2seq", "t5", "lora", {"rouge_l": 1.0}),
    ("embedding", "llama", "lora", {"recall@1": 0.5, "recall@5": 0.8}),
    ("embedding", "bert", "lora", {"recall@1": 0.5, "recall@5": 0.8}),
]


def load(place, model, task, labels=None, **how):
    if not (place / model).exists():
        support.directory(place / model, model)
    return inlay.load(place / model, task=task, labels=LABELS[task] if labels is None else labels, **how)


def samples_of(base, place):
    task = base.spec
    return task.prepare(task.read(place / "rows.jsonl").rows, base, 60, "completions", "drop").examples


def vectors(base, texts):
    return torch.tensor([row["vector"] for row in base.predict(texts)])


def outputs(base, samples):
    given = inputs(base, [sample.input_ids for sample in samples])
    more = {"labels": padded([sample.labels for sample in samples], -100)} if base.task == "seq2seq" else {}
    with torch.no_grad():
        if base.task == "embedding":
            return points(base, [sample.input_ids for sample in samples])
        return base.model(**given, **more).logits


@pytest.mark.parametrize(("task", "model", "method", "wanted"), CASES)
def test_a_task_is_learned_and_its_adapter_says_the_same_once_more(tmp_path, task, model, method, wanted):
    base = load(tmp_path, model, task)
    bases.jsonl(tmp_path / "rows.jsonl", support.rows(task, 24))
    rate = 2e-2 if task in ("sequence-classification", "seq2seq") else 5e-3
    settings = dict(max_steps=40, learning_rate=rate, batch_size=12, eval_every=40)
    how = methods.find(method)(**({"r": 4} if method == "lora" else {}))
    report = inlay.train(
        base,
        tmp_path / "rows.jsonl",
        method=how,
        output=tmp_path / "mine",
        eval_data=tmp_path / "rows.jsonl",
        **settings,
    )
    assert report.eval_loss < 0.5 * report.eval_loss_before
    for name, value in wanted.items():
        assert report.scores[name] >= value, report.scores
    again = load(tmp_path, model, task)
    again.attach(tmp_path / "mine")
    samples = samples_of(base, tmp_path)[:5]
    assert torch.equal(outputs(base, samples), outputs(again, samples))
    assert scores(again, "mine", samples_of(again, tmp_path)) == report.scores
    with again.using(None):
        assert not torch.equal(outputs(base, samples), outputs(again, samples))


def test_a_head_starts_from_the_seed_and_the_base_keeps_its_own_bytes(tmp_path):
    base = load(tmp_path, "bert", "sequence-classification")
    assert base.heads == base.fresh_heads == ["bert.pooler", "classifier"]
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    heads = [
        base.create(inlay.Lora(r=2), name, seed).params["classifier"]
        for name, seed in zip("abc", (5, 5, 6), strict=True)
    ]
    assert torch.equal(heads[0]["weight"], heads[1]["weight"])
    assert not torch.equal(heads[0]["weight"], heads[2]["weight"])
    assert heads[0]["weight"].std() == pytest.approx(0.02, rel=0.4)
    assert not heads[0]["bias"].any()
    for name in "abc":
        base.detach(name)
    after = base.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_fresh_head_of_a_base_is_the_same_each_time(tmp_path):
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        heads.append(load(tmp_path, "llama", "sequence-classification").model.score.weight)
    assert torch.equal(*heads)


def test_a_head_that_the_checkpoint_has_is_where_training_starts(tmp_path):
    base = load(tmp_path, "llama_seq", "sequence-classification", labels=())
    assert (base.heads, base.fresh_heads, base.labels) == (["score"], [], ("LABEL_0", "LABEL_1"))
    own = base.model.score.weight.clone()
    assert torch.equal(base.create(inlay.Lora(r=2)).params["score"]["weight"], own)


def test_a_head_of_another_task_is_not_taken_for_one_of_this(tmp_path):
    base = load(tmp_path, "bert_token", "sequence-classification")
    assert "classifier" in base.fresh_heads


@pytest.mark.parametrize("model", ["llama", "bert"])
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_peft_reads_a_classifier_and_says_the_same(tmp_path, model, method):
    base = load(tmp_path, model, "sequence-classification")
    bases.jsonl(tmp_path / "rows.jsonl", support.rows("sequence-classification", 12))
    how = methods.find(method)(**({"r": 3, "lora_alpha": 5} if method == "lora" else {}))
    inlay.train(base, tmp_path / "rows.jsonl", method=how, output=tmp_path / "mine", max_steps=5, learning_rate=2e-2)
    config = json.loads((tmp_path / "mine" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == {"llama": ["score"], "bert": ["classifier", "pooler"]}[model]
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / model, num_labels=2, pad_token_id=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        theirs = PeftModel.from_pretrained(theirs, tmp_path / "mine").eval()
    samples = samples_of(base, tmp_path)
    with torch.no_grad():
        expected = theirs(**inputs(base, [sample.input_ids for sample in samples])).logits
    assert (outputs(base, samples) - expected).abs().max() < 1e-5


def test_a_classifier_of_peft_is_read(tmp_path):
    base = load(tmp_path, "llama", "sequence-classification")
    bases.jsonl(tmp_path / "rows.jsonl", support.rows("sequence-classification", 6))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "llama", num_labels=2, pad_token_id=0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        theirs = peft.get_peft_model(plain, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    base.attach(tmp_path / "theirs")
    samples = samples_of(base, tmp_path)
    with torch.no_grad():
        expected = theirs(**inputs(base, [sample.input_ids for sample in samples])).logits
    assert (outputs(base, samples) - expected).abs().max() < 1e-5


def test_padding_changes_nothing(tmp_path):
    for task, model in (("sequence-classification", "llama"), ("token-classification", "bert"), ("seq2seq", "t5")):
        base = load(tmp_path, model, task)
        bases.jsonl(tmp_path / "rows.jsonl", support.rows(task, 12))
        samples = samples_of(base, tmp_path)
        assert len({len(sample.input_ids) for sample in samples}) > 1
        found = base.spec
        together = found.loss_of(base, samples).item()
        assert together == pytest.approx(sum(found.loss_of(base, [sample]).item() for sample in samples), rel=1e-5)


def test_the_first_piece_of_a_word_is_scored(tmp_path):
    base = load(tmp_path, "bert", "token-classification")
    bases.jsonl(tmp_path / "rows.jsonl", [{"tokens": ["ab", "c", "def"], "tags": ["B-red", "O", "B-blue"]}])
    (sample,) = samples_of(base, tmp_path)
    assert sample.labels == (2, -100, -100, 3, -100, 0, -100, -100)


def test_words_whose_tag_is_minus_100_are_no_class_and_not_scored(tmp_path):
    base = load(tmp_path, "bert", "token-classification")
    words = {"tokens": ["ab", "c", "def"]}
    bases.jsonl(
        tmp_path / "rows.jsonl", [words | {"tags": ["B-red", -100, "B-blue"]}, words | {"tags": ["O", "-100", -100]}]
    )
    assert [sample.labels for sample in samples_of(base, tmp_path)] == [
        (2, -100, -100, -100, -100, 0, -100, -100),
        (3, -100, -100, -100, -100, -100, -100, -100),
    ]
    task = base.spec
    assert task.classes(task.read(tmp_path / "rows.jsonl").rows) == ("B-blue", "B-red", "O")
    bases.jsonl(tmp_path / "rows.jsonl", [words | {"tags": [-100] * 3}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no word of it is scored"):
        samples_of(base, tmp_path)


@pytest.mark.parametrize("label", [-1, -100])
def test_a_row_without_a_label_is_no_class(tmp_path, label):
    bases.jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": label}])
    with pytest.raises(DataError, match=rf"rows\.jsonl:2: label {label} says that the row has no label"):
        tasks.find("sequence-classification").read(tmp_path / "rows.jsonl")
    bases.jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "1"}, {"text": "b", "label": "-1"}])
    assert len(tasks.find("sequence-classification").read(tmp_path / "rows.jsonl").rows) == 2


def test_columns_of_a_task_that_are_not_used_are_named(tmp_path):
    rows = [{"anchor": "a", "positive": "b", "negative": "c", "id": 1, "score": None}]
    bases.jsonl(tmp_path / "rows.jsonl", rows)
    for source in (tmp_path / "rows.jsonl", rows):
        assert tasks.find("embedding").read(source).notes == ("1 column not used: negative",)


@pytest.mark.parametrize(("task", "model"), [("seq2seq", "t5"), ("causal-lm", "llama")])
def test_answers_that_are_not_trained_on_are_counted(tmp_path, task, model):
    base = inlay.load(support.directory(tmp_path / "base", model), task=task, dtype="float32")
    given = [{"prompt": f"{i}?", "completion": "a", "references": ["b", "a", "c"]} for i in range(3)]
    given += [{"prompt": "x?", "references": ["a", "b"]}, {"prompt": "y?", "completion": "a"}]
    for rows, counted in ((given, ("7 references not trained on: answers are scored by them",)), (given[-1:], ())):
        found = base.spec.prepare(base.spec.read(rows).rows, base, 60, "completions", None)
        assert found.notes == counted


def test_numbers_are_labels_in_their_order(tmp_path):
    bases.jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": n} for n in (10, 9, 2)])
    task = tasks.find("sequence-classification")
    assert task.classes(task.read(tmp_path / "rows.jsonl").rows) == ("2", "9", "10")


def test_pairs_of_texts_say_which_is_which(tmp_path):
    base = load(tmp_path, "bert", "sequence-classification")
    bases.jsonl(
        tmp_path / "rows.jsonl", [{"text": "ab", "text_pair": "c", "label": "no"}, {"text": "b", "label": "yes"}]
    )
    task = base.spec
    pair, alone = samples_of(base, tmp_path)
    assert len(pair.input_ids) == 3
    assert torch.isfinite(task.loss_of(base, [pair, alone]))


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_loops(seed):
    random.seed(seed)
    gold, said = ([random.randrange(3 + seed % 2) for _ in range(37)] for _ in range(2))
    classes = sorted({*gold, *said})
    ones = [[[int(v == k) for k in classes] for v in values] for values in (gold, said)]
    means = [[sum(row[k] for row in rows) / len(gold) for k in range(len(classes))] for rows in ones]

    def covariance(a, b):
        total = 0.0
        for i in range(len(gold)):
            for k in range(len(classes)):
                total += (ones[a][i][k] - means[a][k]) * (ones[b][i][k] - means[b][k])
        return total

    expected = covariance(0, 1) / math.sqrt(covariance(0, 0) * covariance(1, 1))
    assert metrics.matthews(gold, said) == pytest.approx(expected, abs=1e-12)
    f1, counts = [], [0, 0, 0]
    for k in classes:
        hits = misses = false = 0
        for g, s in zip(gold, said, strict=True):
            hits += g == k == s
            misses += g == k != s
            false += s == k != g
        f1.append(2 * hits / (2 * hits + misses + false))
        if k != 0:
            counts = [a + b for a, b in zip(counts, (hits, misses, false), strict=True)]
    assert metrics.macro_f1(gold, said) == pytest.approx(sum(f1) / len(f1), abs=1e-12)
    hits, misses, false = counts
    assert metrics.micro_f1(gold, said, 0) == pytest.approx(2 * hits / (2 * hits + misses + false), abs=1e-12)


def test_scores_at_their_ends():
    assert metrics.matthews([0, 1, 2, 1], [0, 1, 2, 1]) == pytest.approx(1)
    assert metrics.matthews([0, 1, 1, 0], [1, 0, 0, 1]) == pytest.approx(-1)
    assert metrics.matthews([0, 0], [0, 0]) == 0
    assert metrics.micro_f1([3, 3], [3, 3], 3) == 0
    assert metrics.micro_f1([0, 1], [0, 1]) == 1


def test_recall_counts_those_that_are_ahead():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.7, 0.7, 0.7]])
    own = torch.tensor([0, 1, 2])
    assert metrics.recall_at(1, similarity, own) == pytest.approx(
        1 / 3
    )  # equal ones are ahead: a collapse is no success
    assert metrics.recall_at(2, similarity, own) == pytest.approx(2 / 3)


def test_the_contrastive_loss_is_that_of_loops():
    torch.manual_seed(4)
    a, b = (torch.nn.functional.normalize(torch.randn(5, 7, dtype=torch.float64), dim=-1) for _ in range(2))
    texts = [(1,), (2,), (1,), (3,), (4,)]
    expected = 0.0
    for i in range(5):
        terms = [math.exp(float(a[i] @ b[j]) / 0.05) for j in range(5) if j == i or texts[j] != texts[i]]
        expected -= math.log(math.exp(float(a[i] @ b[i]) / 0.05) / sum(terms))
    assert embedding.info_nce(a, b, texts).item() == pytest.approx(expected, rel=1e-12)


POOLED = {
    "mean": lambda states: states.mean(0),
    "cls": lambda states: states[0],
    "lasttoken": lambda states: states[-1],
    "max": lambda states: states.max(0).values,
}


def pool_by(directory, config, *others):
    kinds = ["Transformer", "Pooling", "Normalize", *others]
    parts = [{"idx": i, "path": f"{i}_{kind}", "type": f"some.models.{kind}"} for i, kind in enumerate(kinds)]
    (directory / "modules.json").write_text(json.dumps(parts))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("spelt", ["flag", "name"])
@pytest.mark.parametrize("mode", POOLED)
def test_vectors_are_pooled_as_the_base_has_it(tmp_path, mode, spelt):
    flag = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}.get(mode, mode)
    others = {"pooling_mode_mean_sqrt_len_tokens": False, "word_embedding_dimension": 20}
    base = load(tmp_path, "bert_body", "embedding")
    pool_by(
        tmp_path / "bert_body", others | ({f"pooling_mode_{flag}": True} if spelt == "flag" else {"pooling_mode": mode})
    )
    assert base.pooling == mode
    texts = ["a", "much longer than that"]
    found = vectors(base, texts)
    for text, vector in zip(texts, found, strict=True):
        states = base.model(input_ids=torch.tensor([base.tokenizer(text)["input_ids"]])).last_hidden_state[0].double()
        expected = torch.nn.functional.normalize(POOLED[mode](states), dim=0)
        assert_close(vector, expected, torch.float32, 2 * 28)


@pytest.mark.parametrize(
    ("config", "others"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, ()),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, ()),
        ({"pooling_mode": "attention"}, ()),
        ({}, ()),
        ({"pooling_mode": "cls"}, ("Dense",)),
    ],
)
def test_a_base_that_makes_vectors_in_another_way_is_refused(tmp_path, config, others):
    load(tmp_path, "bert_body", "embedding")
    pool_by(tmp_path / "bert_body", config, *others)
    with pytest.raises(CompatibilityError, match="makes vectors in a way that is not known"):
        load(tmp_path, "bert_body", "embedding")
    assert inlay.load(tmp_path / "bert_body", task="token-classification", labels=["a", "b"])  # it has no use for that


def test_an_adapter_of_another_pooling_is_refused(tmp_path):
    base, place = load(tmp_path, "bert_body", "embedding"), tmp_path / "bert_body"
    rows = bases.jsonl(tmp_path / "rows.jsonl", support.rows("embedding", 6))
    inlay.train(base, rows, method=inlay.Lora(r=2), output=tmp_path / "mean", max_steps=1)
    assert "pooling" not in json.loads((tmp_path / "mean" / "inlay.json").read_text())["task"]
    pool_by(place, {"pooling_mode": "cls"})
    base = inlay.load(place, task="embedding")
    with pytest.raises(CompatibilityError, match="trained with another pooling\n  found: mean; this base has cls"):
        base.attach(tmp_path / "mean")
    inlay.train(base, rows, method=inlay.Lora(r=2), output=tmp_path / "first", max_steps=1)
    assert json.loads((tmp_path / "first" / "inlay.json").read_text())["task"]["pooling"] == "cls"
    inlay.load(place, task="embedding").attach(tmp_path / "first")


def test_embeddings_have_length_1_and_do_not_depend_on_their_company(tmp_path):
    base = load(tmp_path, "bert_body", "embedding")
    texts = [f"{'x' * (1 + i % 7)} {i}" for i in range(21)]
    together = vectors(base, texts)
    assert torch.allclose(together.norm(dim=-1), torch.ones(21))
    for i in (0, 6, 20):
        assert torch.allclose(together[i], vectors(base, [texts[i]])[0], atol=1e-5)


@pytest.mark.parametrize("task", ["sequence-classification", "embedding"])
def test_a_quantized_base_learns_tasks_too(tmp_path, task, monkeypatch):
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    base = load(tmp_path, "llama", task, quantize="int8")
    assert base.scheme == "int8"
    bases.jsonl(tmp_path / "rows.jsonl", support.rows(task, 12))
    report = inlay.train(
        base,
        tmp_path / "rows.jsonl",
        method=inlay.Lora(r=4),
        output=tmp_path / "mine",
        max_steps=30,
        learning_rate=2e-2,
        batch_size=12,
    )
    assert report.loss < 0.7 * math.log(2 if task != "embedding" else 12)


@pytest.mark.parametrize("model", ["llama", "bert", "t5"])
def test_a_narrow_model_of_any_family_computes_in_float32(tmp_path, model, monkeypatch):
    monkeypatch.setattr(loading, "native_bfloat16", lambda: True)
    narrow, wide = ({"hidden_size": size, "d_model": size} for size in (64, 256))
    for sizes, dtype in ((narrow, torch.float32), (wide, torch.bfloat16)):
        place = support.directory(tmp_path / str(dtype), model, support.WIDE | sizes)
        assert loading.default_dtype(open_checkpoint(place)) == dtype


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("sequence-classification", {"prompt": "a", "completion": "b"}, "text and label"),
        (
            "sequence-classification",
            {"text": "a", "label": 1.5},
            "a float, not a string, a whole number, true or false",
        ),
        ("sequence-classification", {"text": 3, "label": "no"}, "text is a int"),
        ("token-classification", {"tokens": ["a"], "tags": ["O", "O"]}, "1 tokens and 2 tags"),
        ("token-classification", {"text": "a", "label": "b"}, "tokens and tags"),
        ("seq2seq", {"text": "a"}, "prompt and completion"),
        ("embedding", {"text": "a"}, "anchor and positive"),
        ("embedding", {"anchor": "a", "positive": "\ud800"}, "half a character"),
    ],
)
def test_rows_of_another_form_are_refused_with_the_keys_that_are_wanted(tmp_path, task, row, says):
    bases.jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=says) as caught:
        tasks.find(task).read(tmp_path / "rows.jsonl")
    assert tasks.find(task).keys in str(caught.value)
    assert "rows.jsonl:1" in str(caught.value)


def test_what_can_not_be_done_is_refused_by_name(tmp_path):
    base = load(tmp_path, "bert", "sequence-classification")
    bases.jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "maybe"}])
    with pytest.raises(DataError, match=r"unknown label 'maybe'; the classes are no, yes"):
        samples_of(base, tmp_path)
    for name in ("prefix", "prompt", "p_tuning"):
        with pytest.raises(ConfigError, match=r"virtual tokens.*\n.*sequence-classification"):
            base.create(methods.find(name)())
    with pytest.raises(ConfigError, match="can't continue prompts"):
        base.generate(["a"])
    with pytest.raises(ConfigError, match="names of the classes have to be said"):
        load(tmp_path, "bert", "sequence-classification", labels=())
    with pytest.raises(ConfigError, match="embedding has no classes"):
        load(tmp_path, "bert", "embedding", labels=("a", "b"))
    with pytest.raises(CompatibilityError, match="AutoModelForSeq2SeqLM"):
        load(tmp_path, "bert", "seq2seq")
    with pytest.raises(UnknownNameError, match="--task token-classification"):
        tasks.find("token_clasification")
    with pytest.raises(DataError, match="fewer than two"):
        tasks.find("sequence-classification").classes(
            tasks.find("sequence-classification").read(tmp_path / "rows.jsonl").rows
        )
    with pytest.raises(ConfigError, match="too_long=window"):
        base.spec.prepare([], base, 60, "completions", "window")


def test_an_adapter_of_another_task_or_other_classes_is_refused(tmp_path):
    base = load(tmp_path, "llama", "sequence-classification")
    bases.jsonl(tmp_path / "rows.jsonl", support.rows("sequence-classification", 12))
    inlay.train(base, tmp_path / "rows.jsonl", method=inlay.Lora(r=2), output=tmp_path / "mine", max_steps=1)
    assert tasks.of_adapter(tmp_path / "mine")[1] == ("no", "yes")
    with pytest.raises(CompatibilityError, match="another task"):
        inlay.load(tmp_path / "llama").attach(tmp_path / "mine")
    with pytest.raises(CompatibilityError, match="other classes"):
        load(tmp_path, "llama", "sequence-classification", labels=("yes", "no")).attach(tmp_path / "mine")


def test_labels_are_those_of_the_head_that_a_base_brings(tmp_path):
    task = "sequence-classification"
    own = load(tmp_path, "llama_seq", task, labels=()).labels
    assert load(tmp_path, "llama_seq", task, labels=list(own)).labels == own
    for others in (("no", "yes"), own[::-1], (*own, "more")):
        with pytest.raises(ConfigError, match=rf"a head of its own, for other classes\n  found: labels=.*{others[0]}"):
            load(tmp_path, "llama_seq", task, labels=others)


@pytest.mark.parametrize(
    ("how", "positives", "says"),
    [({"batch_size": 1}, 2, "a step of one row has no other row's positive"), ({}, 1, "all 6 rows have one positive")],
)
def test_rows_that_have_no_negatives_teach_nothing(tmp_path, how, positives, says):
    rows = [{"anchor": f"harbour {i}", "positive": f"tide {i % positives}"} for i in range(6)]
    base = load(tmp_path, "bert", "embedding")
    with pytest.raises(DataError, match="would learn nothing") as caught:
        inlay.train(base, rows, output=tmp_path / "out", max_steps=1, eval_fraction=0, **how)
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not base.adapters
