"""Training that goes on from an adapter starts where that ended, with its method, on its base alone."""

import hashlib
import json

import pytest
import torch

import inlay
from inlay.errors import CompatibilityError, ConfigError
from inlay.formats.peft import TENSORS
from inlay.io.records import RECORD
from inlay.training import job as jobs
from inlay.training.run_spec import RunSpec
from tests.support import bases
from tests.support.command import run, run_json

METHODS = {
    "lora": inlay.Lora(r=3, lora_alpha=5, lora_dropout=0.1),
    "dora": inlay.Dora(r=3),
    "prefix": inlay.Prefix(num_virtual_tokens=3),
    "ia3": inlay.Ia3(),
    "full": inlay.Full(),
    "pissa": inlay.Lora(r=3, initializer="pissa"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("going_on")
    bases.directory(place / "base")
    bases.directory(place / "other", seed=4)
    bases.jsonl(place / "rows.jsonl", bases.rows(60))
    return place


@pytest.fixture
def base(place):
    return inlay.load(place / "base", dtype="float32")


def train(base, place, output, **how):
    settings = dict(max_steps=2, batch_size=4, eval_fraction=0.4) | how
    return inlay.train(base, place / "rows.jsonl", output=output, **settings)


@pytest.mark.parametrize("name", METHODS)
def test_it_starts_where_the_adapter_ended(base, place, tmp_path, name):
    first = train(base, place, tmp_path / "first", method=METHODS[name])
    ended = {path: {key: t.clone() for key, t in p.items()} for path, p in base.detach("first").params.items()}
    second = train(base, place, tmp_path / "second", from_adapter=tmp_path / "first")
    assert second.eval_loss_before == pytest.approx(first.eval_loss, rel=1e-5)
    assert second.eval_loss < second.eval_loss_before
    went_on = base.adapters["second"].params
    assert {path: set(params) for path, params in went_on.items()} == {path: set(p) for path, p in ended.items()}
    changed = [not torch.equal(ended[path][key], t) for path, params in went_on.items() for key, t in params.items()]
    assert any(changed)


def test_the_file_that_it_goes_on_from_stays(base, place, tmp_path):
    train(base, place, tmp_path / "first", method="ia3")
    before = {file.name: file.read_bytes() for file in (tmp_path / "first").iterdir()}
    train(base, place, tmp_path / "second", from_adapter=tmp_path / "first", learning_rate=0.5)
    assert {file.name: file.read_bytes() for file in (tmp_path / "first").iterdir()} == before


def test_the_record_says_what_it_went_on_from(place, tmp_path, capsys):
    how = [place / "base", place / "rows.jsonl", "--max-steps", 2, "--batch-size", 4, "--eval-fraction", 0.4]
    run_json(capsys, "train", *how, "--r", 2, "--output", tmp_path / "first")
    (tmp_path / "run.yaml").write_text(f"from: {tmp_path / 'first'}\n")
    report = run_json(capsys, "train", *how, "--config", tmp_path / "run.yaml", "--output", tmp_path / "second")
    digest = hashlib.sha256((tmp_path / "first" / TENSORS).read_bytes()).hexdigest()
    record = json.loads((tmp_path / "second" / RECORD).read_text())
    assert record["from"] == {"name": "first", "sha256": digest, "steps": 2}
    assert record["method"]["r"] == 2
    assert report["eval_loss_before"] == record["training"]["eval_losses"][0][1]
    assert str(tmp_path) not in json.dumps(record)


def test_another_method_is_refused(base, place, tmp_path, capsys):
    train(base, place, tmp_path / "first", method=inlay.Lora(r=2))
    how = ["train", place / "base", place / "rows.jsonl", "--from", tmp_path / "first", "--output", tmp_path / "second"]
    for flags, found in ((["--r", 5], "r=5, the adapter has 2"), (["--method", "dora"], "lora; asked for: dora")):
        status, _, err = run(capsys, *how, *flags)
        assert status == 1
        assert "this adapter was trained by another method than is asked for" in err
        assert found in err
    with pytest.raises(ConfigError, match="asked for: dora"):
        train(base, place, tmp_path / "second", from_adapter=tmp_path / "first", method=inlay.Dora(r=2))
    assert not (tmp_path / "second").exists()


def test_an_adapter_of_another_task_is_refused_by_its_own_name(base, place, tmp_path):
    train(base, place, tmp_path / "first", method="ia3")
    record = json.loads((tmp_path / "first" / RECORD).read_text())
    (tmp_path / "first" / RECORD).write_text(json.dumps(record | {"task": {"name": "embedding"}}))
    with pytest.raises(CompatibilityError, match=r"^first was trained for another task\n"):
        train(base, place, tmp_path / "second", from_adapter=tmp_path / "first")


def test_another_base_is_refused(base, place, tmp_path):
    train(base, place, tmp_path / "first", method="ia3")
    with pytest.raises(CompatibilityError, match="trained on another base"):
        train(inlay.load(place / "other"), place, tmp_path / "second", from_adapter=tmp_path / "first")


def test_no_step_that_is_better_keeps_the_start(base, place, tmp_path, monkeypatch):
    train(base, place, tmp_path / "first", method="ia3")
    losses = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr("inlay.training.loop.evaluate", lambda *given, **how: next(losses))
    report = train(base, place, tmp_path / "second", from_adapter=tmp_path / "first")
    assert report.best_step == 0
    kept = base.adapters["second"].params
    assert all(
        torch.equal(t, kept[path][key]) for path, p in base.adapters["first"].params.items() for key, t in p.items()
    )


def test_the_method_has_the_commands_default(base, place, tmp_path):
    job = jobs.prepare(base, place / "rows.jsonl", RunSpec(output=tmp_path / "new"))
    assert job.state.method == inlay.Lora()
    asked = RunSpec(method="ia3", output=tmp_path / "other")
    assert jobs.prepare(base, place / "rows.jsonl", asked).state.method == inlay.Ia3()
    with pytest.raises(LookupError, match="no adapter method of that name"):
        jobs.prepare(base, place / "rows.jsonl", RunSpec(method="lorra", output=tmp_path / "third"))
