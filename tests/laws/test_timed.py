"""A run that has too little time is, to the bit, the run of as many steps as fit; it goes on so, with what is left of its time."""

import dataclasses
import json
import re
import time
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

import inlay
from inlay.errors import ConfigError
from inlay.formats.peft import TENSORS
from inlay.io.records import RECORD
from inlay.planning import foreseen, timed
from inlay.runs.bounds import CLOSING_SECONDS
from inlay.runs.budget import Budget
from inlay.training import job as jobs
from inlay.training import loop, saves
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Plan, Settings
from tests.support import bases
from tests.support.command import run, run_json, run_short_of_time

MEASURED = foreseen.measured
METHOD = inlay.Lora(r=3, lora_dropout=0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("timed")
    bases.directory(made / "base")
    bases.jsonl(made / "rows.jsonl", bases.rows(90))
    return made


@pytest.fixture(scope="module")
def base(place):
    return inlay.load(place / "base", dtype="float32")


def prepared(base, place, output, **settings):
    asked = RunSpec(output=output, method=METHOD, settings=Settings(**settings), begun={"output": "a"})
    return jobs.prepare(base, place / "rows.jsonl", asked)


def foretold(job, step, evaluation):
    """A job whose steps and evaluations are foreseen to take so many seconds."""
    plan, progress = job.state.plan, job.state.progress
    found, _ = MEASURED(job, Budget(), None)
    steps = step * plan.num_steps
    epochs = plan.num_steps * plan.batch_size / len(job.rows.train.examples)
    whole = steps + evaluation * progress.num_evaluations
    job.forecast = dataclasses.replace(found, seconds=whole, seconds_per_epoch=steps / epochs)
    return job


def record(directory):
    return json.loads((directory / RECORD).read_text())["training"]


@given(st.integers(1, 300), st.integers(1, 400))
def test_evaluations_are_counted_as_they_are_made(num_steps, every):
    plan = Plan(num_steps, 1, 1e-3, "", every)
    assert plan.num_evaluations == 1 + sum(plan.evaluates_at(step) for step in range(1, num_steps + 1))


@pytest.mark.parametrize(
    "settings", [{"epochs": 3.0}, {"max_steps": 40, "batch_size": 5}, {"epochs": 2.0, "eval_every": 4}]
)
def test_a_run_laid_out_over_fewer_steps_is_the_run_of_so_many(base, place, tmp_path, settings):
    job = foretold(prepared(base, place, tmp_path / "a", **settings), 1.0, 0.5)
    asked, rows = job.state.plan.num_steps, job.state.plan.batch_size
    said = timed.fit_(job, time.monotonic() + CLOSING_SECONDS + 20)
    steps = job.state.plan.num_steps
    assert said == f"{steps} of {asked} steps fit into the time: the learning rate comes to 0 with them"
    assert 12 <= steps <= 0.9 * 20
    assert job.begun == {"output": "a", "max_steps": steps, "batch_size": rows}
    job.run()
    settings |= {"max_steps": steps, "batch_size": rows}
    base.detach("a")
    prepared(base, place, tmp_path / "b", **settings).run()
    base.detach("b")
    assert (tmp_path / "a" / TENSORS).read_bytes() == (tmp_path / "b" / TENSORS).read_bytes()
    one, other = record(tmp_path / "a"), record(tmp_path / "b")
    same = ("losses", "eval_losses", "max_steps", "batch_size", "num_steps", "eval_every", "command")
    assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert not one["interrupted"]


@pytest.mark.parametrize(
    ("step", "evaluation", "left"), [(1.0, 0.5, 20), (0.01, 3.0, 15), (30.0, 0.1, 20), (0.1, 0.0, 3)]
)
def test_as_many_steps_are_laid_out_as_fit(base, place, tmp_path, step, evaluation, left):
    job = foretold(prepared(base, place, tmp_path / "a", max_steps=400, batch_size=2), step, evaluation)
    timed.fit_(job, time.monotonic() + CLOSING_SECONDS + left)
    plan, progress = job.state.plan, job.state.progress
    cost = lambda plan: plan.num_steps * step + plan.num_evaluations * evaluation  # noqa: E731
    assert progress.num_steps == plan.num_steps
    assert progress.num_evaluations == plan.num_evaluations
    assert job.forecast.seconds == pytest.approx(cost(plan))
    assert plan.num_steps == 1 or cost(plan) <= timed.PART * left
    assert cost(timed._laid_out(job).over(plan.num_steps + 5)[1]) > timed.PART * left - 0.1


def test_a_run_that_has_time_stays_as_it_is(base, place, tmp_path):
    job = foretold(prepared(base, place, tmp_path / "a", max_steps=20), 1.0, 0.0)
    before = job.state.plan, job.state.settings, job.begun
    assert timed.fit_(job, time.monotonic() + CLOSING_SECONDS + 21) == ""
    assert (job.state.plan, job.state.settings, job.begun) == before


LONG = ["--epochs", 50, "--r", 3, "--lora-dropout", 0.3, "--dtype", "float32", "--save-every", 1]


def test_what_is_killed_goes_on_over_the_same_steps(place, tmp_path, capsys, monkeypatch):
    command = ["train", place / "base", place / "rows.jsonl", *LONG, "--output"]
    with monkeypatch.context() as patched:
        patched.setattr(foreseen, "measured", lambda job, *bounds: (foretold(job, 1.0, 0.1).forecast,) * 2)
        patched.setattr("inlay.cli.train.needs", lambda *forecasts: "")
        patched.setattr(loop, "check_loss", killed_after(5))
        _, _, err = run(capsys, *command, tmp_path / "mine", "--time", "60s")
    begun = json.loads((tmp_path / "mine.run" / saves.BEGUN).read_text())
    steps = begun["max_steps"]
    assert f"note      {steps} of " in err
    status, _, err = run(capsys, "train", "--resume", tmp_path / "mine")
    assert status == 0, err
    assert f"resumed   after 5 of {steps} steps" in err
    whole = ["--max-steps", steps, "--batch-size", begun["batch_size"]]
    status, _, err = run(capsys, *command, tmp_path / "whole", *whole)
    assert status == 0, err
    assert (tmp_path / "mine" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()


def killed_after(step):
    def check(state):
        if state.progress.step > step:
            raise SystemExit(9)

    return check


def test_a_run_that_goes_on_has_what_is_left_of_its_time(base, place, tmp_path):
    job = prepared(base, place, tmp_path / "a", max_steps=9)
    progress = job.state.progress
    assert timed.deadline(job, 100.0, 60.0) == 160.0
    progress.step, progress.step_seconds, progress.eval_seconds = 4, 30.0, 12.5
    assert timed.deadline(job, 100.0, 60.0) == 117.5
    progress.step_seconds = 50.0
    with pytest.raises(ConfigError, match="the time of this run is over") as refused:
        timed.deadline(job, 100.0, 60.0)
    assert "60 s, taken by 4 of 9 steps" in str(refused.value)
    assert "--resume" in str(refused.value)
    progress.step = 9  # it was killed before it could write
    assert timed.deadline(job, 100.0, 60.0) < 100.0


def test_time_that_is_given_anew_adds_to_what_was_taken(place, tmp_path, capsys, monkeypatch):
    target = tmp_path / "mine"
    assert timed.in_all(target, "1h") == "3600s"
    command = ["train", place / "base", place / "rows.jsonl", *LONG, "--max-steps", 9, "--time", "2h", "--output"]
    with monkeypatch.context() as patched:
        patched.setattr(loop, "check_loss", killed_after(5))
        run(capsys, *command, target)
    state = target.with_name("mine.run") / saves.STATE
    values = saves.Saves(target).read()[1]["progress"]
    taken = values["step_seconds"] + values["eval_seconds"]
    kept = saves.Saves.read

    def after_two_hours(self):
        tensors, values = kept(self)
        return tensors, {**values, "progress": {**values["progress"], "step_seconds": 7200.0}}

    monkeypatch.setattr(saves.Saves, "read", after_two_hours)
    status, _, err = run(capsys, "train", "--resume", target)
    assert status == 1
    assert "the time of this run is over" in err
    assert state.exists()
    said = []
    monkeypatch.setattr(timed, "deadline", lambda job, start, seconds: said.append(seconds) or start + 1000)
    status, _, err = run(capsys, "train", "--resume", target, "--time", "30min")
    assert status == 0, err
    assert 9000 <= said[0] <= 9000 + taken + 1


@pytest.mark.parametrize(("size", "is_shorter"), [(1, True), (2, False)])
def test_one_of_several_processes_lays_nothing_out_by_what_it_took(
    base, place, tmp_path, monkeypatch, size, is_shorter
):
    job = prepared(base, place, tmp_path / "a", max_steps=40)
    monkeypatch.setattr(foreseen, "measured", lambda job, budget, until: (foretold(job, 10, 0).forecast,) * 2)
    monkeypatch.setattr(job.state, "world", types.SimpleNamespace(size=size))
    _, said = timed.measured(job, Budget(seconds=60.0), time.monotonic())
    assert (job.forecast is not None, bool(said), job.state.plan.num_steps < 40) == (is_shorter,) * 3


def test_the_command_says_how_many_steps_fit(place, tmp_path, capsys):
    report, err = run_short_of_time(capsys, place, tmp_path / "a")
    said = re.search(r"note +([\d,]+) of 500,000 steps fit into the time", err)
    assert said, err
    assert report["steps"] <= int(said[1].replace(",", ""))


def test_a_plan_says_how_many_steps_fit_into_its_time(place, capsys, monkeypatch):
    monkeypatch.setattr("inlay.runs.needs.products_per_second", lambda *dtypes: 1e5)
    flags = ["plan", place / "base", place / "rows.jsonl", "--max-steps", 40, "--batch-size", 2, "--r", 3]
    whole = run_json(capsys, *flags)
    assert whole["num_steps"] == 40
    half = run_json(capsys, *flags, "--time", f"{whole['seconds'] / 2 + CLOSING_SECONDS:.6f}s")
    assert 15 <= half["num_steps"] <= 20  # a tenth is left, as a forecast may be too short
    assert half["seconds"] == whole["seconds"]
    status, _, err = run(capsys, *flags, "--time", "1s")
    assert status == 0
    assert "within    1s: 1 of 40 steps" in err
    assert run_json(capsys, *flags, "--time", "1000d")["num_steps"] == 40
