"""A mixture of sources is drawn in the ratio of its weights, by the seed alone, whatever their sizes; and goes on where it was stopped."""

import itertools
from collections import Counter

import pytest

import inlay
from inlay.data import forms, sources
from inlay.errors import ConfigError, DataError
from inlay.training import job as jobs
from inlay.training import schedule
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings
from tests.support import bases
from tests.support.command import run

PARTS = ((3.0, list(range(11))), (1.0, list(range(11, 48))), (0.5, list(range(48, 53))))


def drawn(num_steps, parts=PARTS, seed=4, start=0, batch_size=7):
    return [*schedule.order(53, batch_size, num_steps, seed, start, parts=parts)]


def test_rows_are_drawn_in_the_ratio_of_the_weights():
    """At every step the counts of whole passes are the weights' to within a row for each part."""
    rows = [row for step in drawn(530) for row in step]
    for k in range(1, len(rows) // 53 + 1):
        so_far = rows[: 53 * k]
        for weight, numbers in PARTS:
            count = sum(row in numbers for row in so_far)
            assert abs(count - 53 * k * weight / 4.5) < 3


def test_rows_of_a_part_come_equally_often():
    counts = Counter(row for step in drawn(530) for row in step)
    for _, numbers in PARTS:
        assert max(counts[row] for row in numbers) - min(counts[row] for row in numbers) <= 1
    assert set(counts) == set(range(53))


def test_the_order_is_of_the_seed_and_goes_on_from_any_step():
    assert drawn(40) == drawn(40)
    assert drawn(40) != drawn(40, seed=5)
    assert [drawn(40)[step:] == drawn(40, start=step) for step in (1, 7, 39)] == [True] * 3


def test_without_a_mixture_the_order_is_what_it_was():
    """A pass has each row once."""
    rows = [row for step in schedule.order(53, 7, 53, 4) for row in step]
    assert all(sorted(rows[53 * k : 53 * (k + 1)]) == [*range(53)] for k in range(7))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.jsonl:3,b.jsonl:1", [("a.jsonl", 3.0), ("b.jsonl", 1.0)]),
        ("a.jsonl:0.5, b.jsonl", [("a.jsonl", 0.5), ("b.jsonl", 1.0)]),
        ("owner/name:train:2,folder:valid:1", [("owner/name:train", 2.0), ("folder:valid", 1.0)]),
        *[(text, []) for text in ("a.jsonl", "a.jsonl:3", "folder:train", "a,b.jsonl", "a.jsonl:3,", ",", "")],
    ],
)
def test_a_mixture_is_told_by_its_weights(text, parts):
    assert sources.mixture(text) == parts


def test_a_file_of_such_a_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bases.jsonl("a:3,b:1.jsonl", bases.rows(2))
    assert not sources.mixture("a:3,b:1.jsonl")
    with pytest.raises(ConfigError, match="has no weight"):
        sources.mixture("a.jsonl:0,b.jsonl:1")


def files(tmp_path, one=30, other=90):
    (tmp_path / "x").mkdir()
    first = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(one))
    second = bases.jsonl(tmp_path / "x" / "rows.jsonl", bases.rows(other, seed=100))
    return f"{first}:3,{second}:1"


def test_rows_of_all_parts_are_read_each_with_its_place(tmp_path):
    found = forms.read(files(tmp_path, 3, 2))
    assert [row.source for row in found.rows] == [
        *(f"rows.jsonl:{i}" for i in (1, 2, 3)),
        "2/rows.jsonl:1",
        "2/rows.jsonl:2",
    ]
    assert found.mixed == {"rows.jsonl": (0, 3.0), "2/rows.jsonl": (1, 1.0)}
    assert found.name == "rows.jsonl:3,rows.jsonl:1"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return bases.directory(tmp_path_factory.mktemp("mixing") / "base")


def test_a_run_draws_by_weight_and_resumes_to_the_same_bytes(base, tmp_path):
    source = files(tmp_path)
    how = {"method": inlay.Lora(r=2), "settings": Settings(max_steps=9, batch_size=4, eval_fraction=0)}
    job = jobs.prepare(inlay.load(base), source, RunSpec(output=tmp_path / "whole", **how))
    assert job.state.digests["mixture"] == "3:1"
    assert any("rows.jsonl 3 (30 rows, each 3 times)" in note for note in job.rows.notes)
    parts = [
        job.rows.train.examples[i].source.startswith("2/")
        for step in schedule.order(120, 4, 300, 0, parts=job.state.parts)
        for i in step
    ]
    assert sum(parts) == pytest.approx(len(parts) / 4, abs=30)
    job.run()
    stopped = jobs.prepare(inlay.load(base), source, RunSpec(output=tmp_path / "cut", **how | {"settings": Settings(max_steps=9, batch_size=4, eval_fraction=0, save_every=1)}))  # fmt: skip
    steps = itertools.count()

    def stop(progress):
        if next(steps) == 5:
            raise KeyboardInterrupt

    stopped.run(stop)
    again = jobs.prepare(inlay.load(base), source, RunSpec(output=tmp_path / "cut", resume=True, **how))
    assert again.resumed.step > 0
    again.run()
    tensors = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert tensors[0] == tensors[1]


def test_a_part_without_rows_is_refused(base, tmp_path):
    short = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(30))
    long = bases.jsonl(tmp_path / "long.jsonl", [{"prompt": "x" * 400, "completion": "y"}] * 2)
    with pytest.raises(DataError, match="has no row left to train on"):
        jobs.prepare(inlay.load(base), f"{short}:1,{long}:1", RunSpec(output=tmp_path / "new"))


def test_the_command_takes_a_mixture(base, tmp_path, capsys):
    source = files(tmp_path)
    status, _, err = run(capsys, "train", base, source, "--output", tmp_path / "new", "--max-steps", 2)
    assert status == 0, err
    assert "drawn by weight: rows.jsonl 3" in err
