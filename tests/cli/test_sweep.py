"""`inlay train --sweep` and `--each`: what is typed, said, written and gone on with."""

import json

import pytest

from inlay.formats.peft import TENSORS
from inlay.io import records
from inlay.sweeps import steps as common
from inlay.training import job as jobs
from tests.support import bases
from tests.support.command import run

HOW = ("--max-steps", 4, "--batch-size", 2, "--dtype", "float32")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(jobs.Job, "_keep_golden", lambda job: None)


@pytest.fixture
def place(tmp_path, monkeypatch):
    bases.directory(tmp_path / "base")
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(30))
    bases.jsonl(tmp_path / "more.jsonl", bases.rows(30, seed=50))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_combinations_are_trained_and_the_best_is_named(place, capsys):
    more = ("--sweep", "learning-rate=1e-2,1e-4", "--sweep", "r=2,3", "--target-modules", "q_proj", "--json")
    status, out, err = run(capsys, "train", "base", "rows.jsonl", "--output", "swept", *more, *HOW)
    assert status == 0, err
    assert "sweep     4 runs at once: learning-rate 0.01, 0.0001 × r 2, 3\n" in err
    table, last = out.rpartition("\n{")[::2]
    found = json.loads("{" + last)
    assert [*found["runs"]] == [f"learning-rate-{rate}-r-{r}" for rate in ("0.01", "0.0001") for r in (2, 3)]
    best = min(found["runs"], key=lambda name: found["runs"][name]["eval_loss"])
    assert found["best"] == {"rows.jsonl": best}
    assert f"best      {best}: held-out loss" in err
    assert err.count("run       learning-rate-") == 4
    assert f"run       {best}  4 steps, loss" in err
    assert "1 held-out rows can't tell which is best" in err
    assert sorted(path.name for path in (place / "swept").iterdir()) == sorted([*found["runs"], *(f"{name}.report.html" for name in found["runs"]), "sweep.json", "sweep.md", "sweep.png"])  # fmt: skip
    assert (place / "swept" / "sweep.md").read_text().strip() == table.strip()
    assert (place / "swept" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert run(capsys, "eval", "base", "rows.jsonl", "--adapter", place / "swept" / best)[0] == 0
    said = records.read(place / "swept" / best)["training"]
    assert "--sweep" not in said["command"]
    assert f"--learning-rate {said['learning_rate']}" in said["command"]


def test_each_file_has_an_adapter_and_data_is_not_asked_for(place, capsys):
    status, _, err = run(capsys, "train", "base", "--each", "rows.jsonl", "more.jsonl", "--output", "swept", *HOW)
    assert status == 0, err
    assert "best      rows on rows.jsonl: held-out loss" in err
    assert "best      more on more.jsonl: held-out loss" in err
    for name in ("rows", "more"):
        assert records.read(place / "swept" / name)["data"]["source"] == f"{name}.jsonl"


def test_a_sweep_that_was_killed_goes_on_by_its_directory(place, capsys, monkeypatch):
    more = ("--sweep", "method=lora,ia3", "--sweep", "max-steps=2,6", "--save-every", 1, *HOW[2:])
    whole, calls = common.Passes.steps_, []

    def killed(self, due):
        calls.append(due)
        if len(calls) == 4:
            raise SystemExit(9)
        return whole(self, due)

    with monkeypatch.context() as at:
        at.setattr(common.Passes, "steps_", killed)
        assert run(capsys, "train", "base", "rows.jsonl", "--output", "swept", *more)[0] == 9
    monkeypatch.chdir(place / "base")
    status, _, err = run(capsys, "train", "--resume", place / "swept")
    assert status == 0, err
    assert "method-lora-max-steps-2: finished before" in err
    assert err.count("after 3 of them") == 2
    monkeypatch.chdir(place)
    assert run(capsys, "train", "base", "rows.jsonl", "--output", "whole", *more)[0] == 0
    for name in [path.name for path in (place / "whole").iterdir() if path.is_dir()]:
        one, other = (records.read(place / run / name)["training"] for run in ("swept", "whole"))
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5)
        assert (place / "swept" / name / TENSORS).is_file()
    status, _, err = run(capsys, "train", "--resume", place / "swept")
    assert status == 1
    assert "no run that could go on" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["rows.jsonl", "--sweep", "r"], "a sweep names something, once, and its values"),
        (["rows.jsonl", "--sweep", "r=2,3", "--sweep", "r=4,5"], "a sweep names something, once, and its values"),
        (["rows.jsonl", "--sweep", "dtype=float32,bfloat16"], "it is of the base, which all runs share"),
        (["rows.jsonl", "--sweep", "max-length=20,30"], "it changes the rows"),
        (["rows.jsonl", "--sweep", "rank=2,3"], "this is no setting and no field of the method"),
        (["rows.jsonl", "--sweep", "learning-rate=high,low"], "not a finite number"),
        (["rows.jsonl", "--each", "rows.jsonl", "more.jsonl"], "runs have one source of rows, or one each"),
    ],
)
def test_what_can_not_be_swept_is_refused(place, capsys, flags, said):
    status, _, err = run(capsys, "train", "base", *flags, "--output", "swept", *HOW)
    assert status == 1
    assert said in err
    assert not (place / "swept").exists()
