"""Batches, schedule and step: what a step learns does not depend on how its rows are split."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
import torch

import inlay
from inlay.base.load import load
from inlay.data.forms import read_rows
from inlay.data.rows import Row
from inlay.data.split import digest, hold_out
from inlay.errors import ConfigError
from inlay.evaluation.loss import evaluate
from inlay.methods import hooks
from inlay.packing import rows as batch
from inlay.report import curve
from inlay.tasks.causal_lm import prepare
from inlay.text.mask import Example
from inlay.training import loop, schedule
from inlay.training.loop import run
from inlay.training.settings import Settings, learning_rate, plan
from inlay.training.state import TrainState
from inlay.training.step import step_
from tests.support import bases, models
from tests.support.tolerances import assert_close


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load(bases.directory(tmp_path_factory.mktemp("base") / "base"), dtype="float32")


@pytest.fixture
def examples(base):
    rows = [{"prompt": "a" * (3 * i + 1), "completion": "bc" * (i + 1)} for i in range(7)]
    made = [
        Row("prompt+completion", f"x:{i}", prompt=r["prompt"], completion=r["completion"]) for i, r in enumerate(rows)
    ]
    return prepare(made, base.tokenizer, 60, "completions", "drop").examples


def _gradients(base, examples, micro_batch_tokens):
    adapter = models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "a"), seed=3)
    state = _state(base, adapter, examples, max_steps=1, micro_batch_tokens=micro_batch_tokens, max_grad_norm=1e9)
    kept = []
    state.optimizer.step = lambda: kept.extend(tensor.grad.clone() for tensor in state.trained.values())
    step_(base, state, examples)
    base.detach("a")
    assert adapter.num_weights == sum(grad.numel() for grad in kept)
    return state.progress.losses[-1], kept


def _state(base, adapter, examples, num_held_out=0, **settings):
    settings = Settings(**settings)
    chosen = plan(settings, len(examples), base.model.config, adapter.method)
    return TrainState.new(adapter, settings, chosen, num_held_out=num_held_out)


def test_parts_of_a_step_give_the_gradient_of_the_whole(base, examples):
    whole_loss, whole = _gradients(base, examples, 10_000)
    for tokens in (1, 70, 150):
        loss, parts = _gradients(base, examples, tokens)
        assert abs(loss - whole_loss) <= 1e-6 * whole_loss
        for one, other in zip(parts, whole, strict=True):
            assert_close(one, other, torch.float32, terms=400)


def test_padding_changes_no_loss(base, examples):
    alone = sum(evaluate(base, None, [e], 10_000) * batch.num_targets([e]) for e in examples)
    together = evaluate(base, None, examples, 10_000)
    assert together == pytest.approx(alone / batch.num_targets(examples), rel=1e-6)


def test_labels_are_the_next_tokens_that_are_trained_on(examples):
    made = batch.collate(examples)
    for i, example in enumerate(examples):
        for t in range(made.input_ids.shape[1]):
            target = t + 1 < len(example.input_ids) and example.trained[t + 1]
            assert made.labels[i, t] == (example.input_ids[t + 1] if target else batch.IGNORE)


@pytest.mark.parametrize("padded", [True, False])
def test_parts_hold_every_row_once_and_stay_small(examples, padded):
    parts = list(batch.parts(examples, 60, padded=padded))
    assert sorted(e.source for part in parts for e in part) == sorted(e.source for e in examples)
    for part in parts:
        size = len(part) * max(len(e.input_ids) for e in part) if padded else batch.num_tokens(part)
        assert size <= 60 or len(part) == 1
    assert len(parts) < len(examples)


def test_a_packed_row_holds_what_is_needed_and_no_more(examples):
    examples = [*examples, Example((5,), (True,), "one"), Example((5, 6, 7), (False,) * 3, "none")]
    packed, padded = batch.pack(examples), batch.collate(examples)
    starts = [sum(packed.lengths[:i]) for i in range(len(examples))]
    for i, (example, start, length) in enumerate(zip(examples, starts, packed.lengths, strict=True)):
        row = slice(start, start + length)
        assert packed.input_ids[row].tolist() == list(example.input_ids[:length])
        assert packed.position_ids[row].tolist() == list(range(length))
        assert packed.labels[row].tolist() == padded.labels[i, :length].tolist()
        assert (padded.labels[i, length:] == batch.IGNORE).all()
        assert length == 1 or packed.labels[row][-1] != batch.IGNORE
    assert len(packed.input_ids) == sum(packed.lengths)


def test_an_epoch_sees_every_row_once_in_an_order_of_the_seed():
    numbers = [i for step in schedule.order(10, 4, 5, seed=1) for i in step]
    assert sorted(numbers[:10]) == sorted(numbers[10:20]) == list(range(10))
    assert numbers[:10] != numbers[10:20]
    assert numbers == [i for step in schedule.order(10, 4, 5, seed=1) for i in step]
    every = list(schedule.order(10, 4, 9, seed=1))
    assert all(list(schedule.order(10, 4, 9, seed=1, start=start)) == every[start:] for start in range(10))
    assert numbers != [i for step in schedule.order(10, 4, 5, seed=2) for i in step]


def test_a_run_is_the_same_twice(base, examples):
    def final():
        adapter = base.attach(inlay.Lora(r=3, lora_dropout=0.1), "a", seed=2)
        state = _state(base, adapter, examples, max_steps=4, learning_rate=1e-2, seed=9)
        torch.rand(3)  # what others draw is nothing to it
        for _ in range(4):
            step_(base, state, examples)
        return torch.cat([tensor.detach().flatten() for tensor in base.detach("a").tensors()])

    assert torch.equal(final(), final())


def test_training_draws_from_no_generator_but_its_own(base, examples):
    before = torch.get_rng_state()
    state = _state(base, base.fresh(inlay.Lora(r=3, lora_dropout=0.5), "a"), examples, max_steps=2)
    run(base, state, examples, [])
    base.detach("a")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_of_the_start_is_measured_after_the_first_step(base, examples):
    heard = []
    state = _state(base, base.fresh(inlay.Lora(r=3, lora_dropout=0.5), "a"), examples, 3, max_steps=3)
    progress = run(
        base,
        state,
        examples,
        examples[:3],
        listener=lambda p: heard.append((p.doing, p.step, len(p.eval_losses))),
    )
    base.detach("a")
    assert progress.eval_losses[0] == (0, evaluate(base, None, examples[:3]))
    assert [step for step, _ in progress.eval_losses] == [0, 1, 2, 3]
    assert heard[:2] == [("", 0, 0), ("evaluating the base: 0/3 rows", 1, 0)]
    assert [(step, count) for doing, step, count in heard if not doing] == [(0, 0), (1, 2), (2, 3), (3, 4)]


def test_an_adapter_that_never_gets_better_is_that_of_the_start(base, examples, monkeypatch):
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(loop, "evaluate", lambda *given, **how: next(losses))
    adapter = base.fresh(inlay.Lora(r=3), "a")
    before = [tensor.clone() for tensor in adapter.tensors()]
    state = _state(base, adapter, examples, 3 * len(examples), max_steps=2)
    progress = run(base, state, examples, examples * 3)
    base.detach("a")
    assert progress.best_step == 0
    assert all(torch.equal(one, other) for one, other in zip(adapter.tensors(), before, strict=True))


def test_dropout_acts_while_training_alone(base, examples):
    base.attach(inlay.Lora(r=3, lora_dropout=0.5), "a")
    models.randomize(base.adapters["a"], seed=3)
    assert evaluate(base, "a", examples, 10_000) == evaluate(base, "a", examples, 10_000)
    base.adapters["a"].train_()
    ids = batch.collate(examples).input_ids
    base.active = "a"
    assert not torch.equal(base.model(input_ids=ids).logits, base.model(input_ids=ids).logits)
    assert evaluate(base, "a", examples, 10_000) == evaluate(base, "a", examples, 10_000)
    base.detach("a")


def test_the_rate_rises_then_falls_to_zero():
    factors = [schedule.factor(step, 200) for step in range(200)]
    warmup = schedule.warmup_steps(200)
    assert warmup == 6
    assert factors[:warmup] == [pytest.approx((i + 1) / warmup) for i in range(warmup)]
    assert max(factors) == factors[warmup] == 1
    assert all(a > b for a, b in zip(factors[warmup:], factors[warmup + 1 :], strict=False))
    assert 0 < factors[-1] < 0.01


@pytest.mark.parametrize(
    ("family", "hidden", "expected"),
    [("llama", 2048, 4.9e-4), ("llama", 4096, 2.9e-4), ("qwen3", 4096, 4.7e-4), ("mistral", 4096, 3e-4)],
)
def test_the_learning_rate_is_the_published_rule(family, hidden, expected):
    config = models.CONFIGS[family].__class__(hidden_size=hidden)
    assert learning_rate(config)[0] == pytest.approx(expected, rel=0.02)


def test_the_rate_of_b_follows_the_effective_scale_and_no_other_does():
    def rates(method):
        rate = plan(Settings(), 1000, models.CONFIGS["llama"], method).learning_rate
        return [rate * hooks.rate(method, f"lora_{factor}", by_default=True) for factor in "AB"]

    a, b = rates(inlay.Lora())
    assert a == b
    assert rates(inlay.Lora(r=64)) == [a, b]
    assert rates(inlay.Lora(lora_alpha=64)) == pytest.approx([a, b / 2])
    assert rates(inlay.Lora(r=16, use_rslora=True)) == pytest.approx([a, b / 4])
    assert rates(inlay.Lora(lora_alpha=64, loraplus_lr_ratio=16)) == pytest.approx([a, 8 * b])
    both = rates(inlay.Lora(initializer="lora_ga"))  # B does not start at zero
    assert rates(inlay.Lora(lora_alpha=64, initializer="lora_ga")) == pytest.approx([rate / 2 for rate in both])


def test_a_small_data_set_gets_small_batches_and_enough_steps():
    config, method = models.CONFIGS["llama"], inlay.Lora()
    assert plan(Settings(), 10_000, config, method).batch_size == 16
    small = plan(Settings(), 400, config, method)
    assert (small.batch_size, small.num_steps) == (4, 100)
    assert plan(Settings(max_steps=7), 10, config, method).num_steps == 7


def test_a_step_that_takes_every_row_many_times_is_refused(base):
    how = (38, base.model.config, inlay.Lora())
    assert plan(Settings(batch_size=3800), *how).batch_size == 3800
    with pytest.raises(ConfigError, match="takes every row 100 times") as caught:
        plan(Settings(batch_size=3801), *how)
    assert caught.value.hint == "--batch-size 16"


def test_unknown_settings_are_refused(base, tmp_path):
    with pytest.raises(TypeError, match="lerning_rate"):
        inlay.train(base, "x.jsonl", method=inlay.Lora(), output=tmp_path / "o", lerning_rate=1)


ROWS = [{"prompt": "a, b", "completion": 'c "d"'}, {"prompt": "e", "completion": "f\ng"}]


def _write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    _write(tmp_path / f"rows.{kind}", ROWS)
    rows = read_rows(tmp_path / f"rows.{kind}")
    assert [(row.prompt, row.completion) for row in rows] == [(r["prompt"], r["completion"]) for r in ROWS]
    assert digest(rows) == digest(read_rows(tmp_path / f"rows.{kind}"))


def test_a_folder_is_all_its_files(tmp_path):
    for kind in ("jsonl", "csv"):
        _write(tmp_path / f"rows.{kind}", ROWS)
    assert [row.source for row in read_rows(tmp_path)] == [
        "rows.csv:2",
        "rows.csv:4",
        "rows.jsonl:1",
        "rows.jsonl:2",
    ]


def test_holding_out_is_stable_and_never_splits_a_prompt():
    rows = [Row("prompt+completion", f"x:{i}", prompt=f"p{i % 50}", completion=f"c{i}") for i in range(400)]
    train, held = hold_out(rows, 0.2)
    assert {row.prompt for row in train}.isdisjoint(row.prompt for row in held)
    assert len(train) + len(held) == 400
    assert 0 < len(held) < 200
    again = hold_out(rows[::-1], 0.2)[1]
    assert {row.source for row in again} == {row.source for row in held}
    assert hold_out(rows[:19], 0.2)[1] == []


def test_dropped_and_windowed_rows_are_counted(base):
    rows = [Row("text", f"x:{i}", text="ab" * (5 * i + 1)) for i in range(5)]
    dropped = prepare(rows, base.tokenizer, 20, "all", "drop")
    assert (dropped.num_rows, dropped.num_dropped, len(dropped.examples)) == (5, 3, 2)
    windowed = prepare(rows, base.tokenizer, 20, "all", "window")
    assert windowed.num_windowed == 3
    assert windowed.num_trained == sum(len(row.text) for row in rows)  # a token per letter and the end, less the first


def test_the_running_mean_starts_at_the_first_value():
    assert curve.running_mean([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert curve.running_mean([4.0, 2.0])[1] == pytest.approx((0.9 * 4 + 2) / 1.9)
