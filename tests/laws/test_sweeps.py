"""Every run of a sweep is the run alone: over methods, tasks, schemes and families; and none harms another."""

import dataclasses
import signal

import pytest
import torch
from safetensors.torch import load_file

import inlay
from inlay import tasks
from inlay.errors import CompatibilityError, ConfigError, DivergedError, OutputError
from inlay.formats.peft import TENSORS
from inlay.io import records
from inlay.model.batch import Batch
from inlay.sweeps import steps as common
from inlay.sweeps import sweep as sweeps
from inlay.sweeps.variants import REFUSED, variants
from inlay.training import job as jobs
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings
from tests.support import bases
from tests.support import tasks as support
from tests.support.cases import every_method, fits
from tests.support.tolerances import TOGETHER

HOW = dict(max_steps=5, batch_size=3, learning_rate=1e-2, eval_every=3, progress=False)


@pytest.fixture(autouse=True)
def short(monkeypatch, one_thread):
    """What comes after the adapter is in its place takes longer than the run."""
    monkeypatch.setattr(jobs.Job, "_keep_golden", lambda job: None)
    monkeypatch.setattr(sweeps.table, "drawn", lambda *given: b"\x89PNG: left out here")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("sweeps")
    for family in ("llama", "gpt2", "gemma3"):
        bases.directory(made / family, family)
    bases.jsonl(made / "rows.jsonl", bases.rows(9))
    bases.jsonl(made / "held.jsonl", bases.rows(24, seed=90))
    return made


@pytest.fixture(scope="module")
def base(place):
    return inlay.load(place / "llama", dtype="float32")


def curves(directory):
    training = records.read(directory)["training"]
    return training["losses"] + [loss for _, loss in training["eval_losses"]]


def distance(one, other):
    """How far two directories' adapters are from each other, as part of what the larger ones are."""
    a, b = (load_file(directory / TENSORS) for directory in (one, other))
    assert a.keys() == b.keys()
    off = sum((a[key] - b[key]).double().square().sum() for key in a)
    return float((off / sum(tensor.double().square().sum() for tensor in b.values())).sqrt())


def are_alike(one, other):
    """The two runs have the same curves, the same adapter and the same record but for times and places."""
    assert curves(one) == pytest.approx(curves(other), rel=TOGETHER), one.name
    assert distance(one, other) < TOGETHER, one.name
    a, b = (records.read(directory) for directory in (one, other))
    for record in (a, b):
        for key in ("losses", "eval_losses", "loss", "eval_loss", "eval_loss_before", "scores", "seconds"):
            record["training"].pop(key, None)
        for key in ("tokens_per_second", "peak_rss_bytes"):
            record["training"].pop(key)
    assert a == b


def check(base, source, tmp_path, over, **how):
    """A sweep, and each of its runs alone; the sweep's outcome."""
    given = HOW | how
    found = inlay.sweep(base, source, over=over, output=tmp_path / "swept", **given)
    for name in found.reports:
        base.detach(name)
    settings = Settings(**{key: value for key, value in given.items() if key in Settings.__dataclass_fields__})
    others = {key: value for key, value in given.items() if key not in Settings.__dataclass_fields__}
    method = others.pop("method", None)
    for one in variants([source], method, settings, over):
        alone = dict(vars(one.settings), method=one.method, output=tmp_path / one.name, **others)
        inlay.train(base, source, **alone)
        base.detach(one.name)
        are_alike(tmp_path / "swept" / one.name, tmp_path / one.name)
    return found


def test_runs_of_every_method_at_once_are_those_alone(base, place, tmp_path):
    methods = [method for _, method in every_method() if fits(method, "llama")]
    found = check(base, place / "rows.jsonl", tmp_path, {"method": methods}, eval_data=place / "held.jsonl")
    assert len(found.reports) == len(methods) > 12
    assert found.apart == ""


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_what_is_swept_is_the_only_difference(place, tmp_path, family):
    base = inlay.load(place / family, dtype="float32")
    over = {"learning-rate": [3e-3, 2e-2], "r": [2, 5], "lora_dropout": [0.0, 0.3]}
    found = check(base, place / "rows.jsonl", tmp_path, over, method=inlay.Lora(lora_alpha=7), eval_data=place / "held.jsonl")  # fmt: skip
    assert len(found.reports) == 8
    assert found.apart == ""
    assert found.best == {"rows.jsonl": min(found.reports, key=lambda name: found.reports[name].eval_loss)}
    losses = {name: curves(tmp_path / "swept" / name)[-1] for name in found.reports}
    assert len(set(losses.values())) == 8


def test_runs_of_other_lengths_batches_and_seeds_go_their_own_ways(base, place, tmp_path):
    over = {
        "max_steps": [2, 7],
        "batch_size": [1, 4],
        "seed": [0, 5],
        "max_grad_norm": [0.1, 9.0],
        "weight_decay": [0.3],
    }
    found = check(base, place / "rows.jsonl", tmp_path, over, method=inlay.Lora(r=3, lora_dropout=0.2))
    assert sorted({report.steps for report in found.reports.values()}) == [2, 7]
    assert found.best == {}


def test_runs_whose_parts_are_many_go_on_from_part_to_part(base, place, tmp_path):
    over = {"batch_size": [2, 9], "lora_dropout": [0.2, 0.5]}
    check(base, place / "rows.jsonl", tmp_path, over, method=inlay.Lora(r=3), micro_batch_tokens=40)


TASKS = [
    ("sequence-classification", "llama"),
    ("sequence-classification", "bert"),
    ("token-classification", "bert"),
    ("seq2seq", "t5"),
    ("embedding", "bert"),
]


@pytest.mark.parametrize(("task", "model"), TASKS)
def test_runs_of_every_task_are_those_alone(tmp_path, task, model):
    support.directory(tmp_path / "base", model)
    rows = bases.jsonl(tmp_path / "rows.jsonl", support.rows(task, 24))
    found = tasks.find(task)
    labels = found.classes(found.read(rows).rows) if found.classes else ()
    base = inlay.load(tmp_path / "base", task=task, labels=labels, dtype="float32")
    over = {"r": [2, 5], "lora_dropout": [0.0, 0.3], "seed": [0, 1]}
    assert len(check(base, rows, tmp_path, over, method=inlay.Lora(), eval_data=rows).reports) == 8


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_runs_on_a_quantised_base_are_those_alone(tmp_path, scheme):
    support.directory(tmp_path / "base", "llama", support.WIDE)
    base = inlay.load(tmp_path / "base", quantize=scheme, dtype="float32")
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(9))
    over = {"method": [inlay.Lora(r=3), inlay.Dora(r=2), inlay.Ia3()], "learning_rate": [1e-3, 1e-2]}
    check(base, rows, tmp_path, over, eval_data=rows)


def test_each_file_of_rows_has_an_adapter_of_its_own(base, place, tmp_path):
    files = [bases.jsonl(tmp_path / f"{name}.jsonl", bases.rows(number, seed=number)) for name, number in (("a", 7), ("b", 30))]  # fmt: skip
    over = {"r": [2, 3]}
    how = HOW | {"method": inlay.Lora(lora_dropout=0.2), "eval_rows": 2}
    found = inlay.sweep(base, each=files, over=over, output=tmp_path / "swept", **how)
    assert [*found.reports] == ["a-r-2", "a-r-3", "b-r-2", "b-r-3"]
    assert [*found.best] == ["b.jsonl"]  # of the other too few rows are held out
    for name in found.reports:
        base.detach(name)
        file, r = tmp_path / f"{name[0]}.jsonl", int(name[-1])
        method = inlay.Lora(r=r, lora_dropout=0.2)
        inlay.train(base, file, output=tmp_path / "alone" / name, **how | {"method": method})
        base.detach(name)
        are_alike(tmp_path / "swept" / name, tmp_path / "alone" / name)


def test_a_wrong_adapter_for_one_row_is_seen(base, place, tmp_path, monkeypatch):
    """The law can fail: one row of a pass of two runs takes the other's adapter."""
    whole = type(base).using

    def wrong(self, rows, **how):
        if isinstance(rows, list) and len(set(rows)) > 1:
            rows = [rows[-1], *rows[1:]]
        return whole(self, rows, **how)

    monkeypatch.setattr(type(base), "using", wrong)
    with pytest.raises(AssertionError):
        check(base, place / "rows.jsonl", tmp_path, {"r": [2, 3]}, method=inlay.Lora())
    for name in [*base.adapters]:
        base.detach(name)


def planted(base, place, tmp_path, plant):
    """The states of three runs after four steps together, before the third of which `plant` is done to the second."""
    made = [
        jobs.prepare(
            base,
            place / "rows.jsonl",
            RunSpec(
                method=inlay.Lora(r=3, lora_dropout=0.2),
                output=tmp_path / name,
                settings=Settings(max_steps=9, batch_size=3, learning_rate=rate),
            ),
        )
        for name, rate in (("a", 1e-2), ("b", 2e-2), ("c", 3e-2))
    ]
    passes, said = common.Passes(base), []
    for job in made:
        base.put(job.state.adapter)
    for step in range(3):
        if step == 2:
            plant(made[1].state)
        rows = made[0].rows.train.examples[3 * step % 9 :][:3]
        said += passes.steps_([common.Due(job.state, rows) for job in made])
    for job in made:
        base.detach(job.state.adapter.name)
    return [{key: t.clone() for key, t in job.state.tensors().items()} for job in made], said


def broken(state):
    for tensor in state.trained.values():
        tensor.data.fill_(torch.nan)


def test_a_neighbour_that_diverges_changes_no_byte_of_the_others(base, place, tmp_path):
    wanted, well = planted(base, place, tmp_path, lambda state: None)
    found, said = planted(base, place, tmp_path, broken)
    assert well == [None] * 9
    assert [type(problem) for problem in said] == [type(None)] * 7 + [DivergedError, type(None)]
    for number in (0, 2):
        assert all(torch.equal(found[number][key], wanted[number][key]) for key in wanted[number])


def test_what_reaches_all_rows_of_a_pass_is_tried_alone(base, place, tmp_path, monkeypatch):
    """As where the mask of an attention lies over all rows: NaN of one is in the losses of all."""
    whole = base.spec.losses_of

    def spread(base, groups):
        losses = whole(base, groups)
        bad = any(loss.isnan() for loss in losses)
        return [loss * torch.nan if bad else loss for loss in losses]

    wanted, _ = planted(base, place, tmp_path, lambda state: None)
    monkeypatch.setattr(base, "spec", dataclasses.replace(base.spec, losses_of=spread))
    found, said = planted(base, place, tmp_path, broken)
    assert [type(problem) for problem in said] == [type(None)] * 7 + [DivergedError, type(None)]
    for number in (0, 2):
        off = [(found[number][key] - wanted[number][key]).abs().max() for key in wanted[number] if key != "random"]
        assert max(off) < 1e-5
        assert torch.equal(found[number]["random"], wanted[number]["random"])


def test_a_run_that_diverges_is_named_and_the_others_are_those_alone(base, place, tmp_path, monkeypatch):
    whole = common.clip_

    def clipped(state, loss):
        if state.adapter.name == "r-3" and state.progress.step == 2:
            raise DivergedError("planted")
        whole(state, loss)

    monkeypatch.setattr(common, "clip_", clipped)
    found = check(base, place / "rows.jsonl", tmp_path, {"r": [2, 4]}, method=inlay.Lora())
    assert found.reasons == {}
    found = inlay.sweep(base, place / "rows.jsonl", over={"r": [2, 3, 4]}, output=tmp_path / "three", **HOW)
    assert [*found.reasons] == ["r-3"]
    assert found.reasons["r-3"].startswith("planted · step 3: rows.jsonl:")
    assert [*found.reports] == ["r-2", "r-4"]
    assert [*base.adapters] == ["r-2", "r-4"]
    assert not (tmp_path / "three" / "r-3").exists()
    assert "| r-3 | 3 |  |  |  |  |  | planted · step 3: rows.jsonl:" in (tmp_path / "three" / "sweep.md").read_text()
    for name in ("r-2", "r-4"):
        base.detach(name)
        are_alike(tmp_path / "three" / name, tmp_path / name)


def test_where_every_run_diverges_nothing_is_left(base, place, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "clip_", lambda state, loss: (_ for _ in ()).throw(DivergedError("planted")))
    monkeypatch.setattr(common, "step_", lambda *given: (_ for _ in ()).throw(DivergedError("planted")))
    with pytest.raises(DivergedError, match="planted"):
        inlay.sweep(base, place / "rows.jsonl", over={"r": [2, 3]}, output=tmp_path / "swept", **HOW)
    assert not (tmp_path / "swept").exists()
    assert not base.adapters


def interrupted(monkeypatch, at, twice=False):
    whole, calls = common.Passes.steps_, []

    def steps(self, due):
        calls.append(due)
        for _ in range(1 + twice) if len(calls) == at else ():
            signal.raise_signal(signal.SIGINT)
        return whole(self, due)

    monkeypatch.setattr(common.Passes, "steps_", steps)


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_keeps_what_every_run_has_learned_and_all_go_on(base, place, tmp_path, monkeypatch, twice):
    over, how = {"r": [2, 3], "max_steps": [2, 7]}, dict(method=inlay.Lora(lora_dropout=0.2), eval_data=place / "held.jsonl")  # fmt: skip
    wanted = check(base, place / "rows.jsonl", tmp_path, over, **how)
    with monkeypatch.context() as at:
        interrupted(at, 4, twice)
        found = inlay.sweep(base, place / "rows.jsonl", over=over, output=tmp_path / "again", **HOW | how)
    assert found.interrupted
    assert {report.steps for report in found.reports.values()} == {2, 3 if twice else 4}
    for name in [*base.adapters]:
        base.detach(name)
    with pytest.raises(OutputError, match="exists already"):
        inlay.sweep(base, place / "rows.jsonl", over=over, output=tmp_path / "again", **HOW | how)
    found = inlay.sweep(base, place / "rows.jsonl", over=over, output=tmp_path / "again", resume=True, **HOW | how)
    assert not found.interrupted
    assert [*found.reports] == [*wanted.reports]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted([*wanted.reports, *(f"{name}.report.html" for name in wanted.reports), "sweep.json", "sweep.md", "sweep.png"])  # fmt: skip
    for name in found.reports:
        assert curves(tmp_path / "again" / name) == pytest.approx(curves(tmp_path / name), rel=TOGETHER)
    for name in [*base.adapters]:
        base.detach(name)


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_what_the_runs_share_is_not_swept(key):
    with pytest.raises(ConfigError, match="this can't be swept") as caught:
        variants(["rows.jsonl"], None, Settings(), {key.replace("_", "-"): [1, 2]})
    assert REFUSED[key] in str(caught.value)


@pytest.mark.parametrize(
    ("over", "wrong"),
    [
        ({"rnk": [1, 2]}, "no setting and no field"),
        ({"method": ["ia3", "lora"], "r": [2, 3]}, "ia3"),
        ({"r": []}, "several values"),
        ({"r": [2, 2]}, "several values"),
        ({"r": ["many"]}, "a whole number"),
        ({"learning_rate": [-1.0]}, "above 0"),
        ({"r": range(1, 20), "seed": range(20)}, "too many runs"),
    ],
)
def test_a_sweep_that_says_nothing_is_refused(over, wrong):
    with pytest.raises(ConfigError, match=wrong):
        variants(["rows.jsonl"], None, Settings(), over)


def test_names_are_those_of_directories_and_differ():
    one, two = variants(["x/a.jsonl", "y/a.jsonl"], None, Settings(), {})
    assert (one.name, two.name) == ("a", "a-2")
    found = variants(
        ["a.jsonl"], None, Settings(), {"target_modules": ["q_proj,v_proj", r".*\.(k|o)_proj"], "seed": [1]}
    )
    assert [one.name for one in found] == ["target-modules-q_proj-v_proj-seed-1", "target-modules-.-.-k-o-_proj-seed-1"]


def test_runs_that_go_on_from_one_adapter_have_copies_of_their_own(base, place, tmp_path):
    inlay.train(base, place / "rows.jsonl", method=inlay.Lora(r=3), output=tmp_path / "first", **HOW)
    base.detach("first")
    over = {"learning_rate": [1e-3, 1e-2], "seed": [0, 1]}
    check(base, place / "rows.jsonl", tmp_path, over, from_adapter=tmp_path / "first", eval_data=place / "held.jsonl")
    with pytest.raises(ConfigError, match="another method than is asked for"):
        inlay.sweep(
            base, place / "rows.jsonl", over={"r": [2, 3]}, from_adapter=tmp_path / "first", output=tmp_path / "no"
        )


@pytest.mark.parametrize("why", ["rows can't be mixed", "says only the loss of all rows of a pass"])
def test_runs_that_can_share_no_pass_have_passes_of_their_own(base, place, tmp_path, monkeypatch, why):
    def refused(*given):
        raise CompatibilityError("rows can't be mixed")

    if "mixed" in why:
        monkeypatch.setattr(Batch, "follow_", refused)
    else:
        monkeypatch.setattr(base, "spec", dataclasses.replace(base.spec, losses_of=None))
    method, over = inlay.Lora(lora_dropout=0.2), {"r": [2, 3]}
    found = check(base, place / "rows.jsonl", tmp_path, over, method=method)
    assert why in found.apart
    for name in found.reports:
        assert (tmp_path / "swept" / name / TENSORS).read_bytes() == (tmp_path / name / TENSORS).read_bytes()
