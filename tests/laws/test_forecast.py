"""A run keeps to what was said of it: forecasts change nothing, budgets hold or are refused, and a deadline leaves an adapter."""

import itertools
import json
import re
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import inlay
from inlay import tasks
from inlay.core import recompute
from inlay.errors import CapacityError, ConfigError
from inlay.formats.peft import TENSORS
from inlay.io.checkpoint import open_checkpoint
from inlay.io.records import RECORD
from inlay.modules.frozen import Quantized
from inlay.planning import foreseen, timed
from inlay.planning.outline import outline
from inlay.runs import budget, machine, needs
from inlay.runs.bounds import CLOSING_SECONDS, Bounds
from inlay.runs.budget import Budget, Way
from inlay.runs.forecast import Forecast
from inlay.runs.progress import Progress
from inlay.runs.watch import Watch
from inlay.training import job as jobs
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings
from tests.support import bases, gguf_models
from tests.support import tasks as task_bases
from tests.support.command import run, run_json, run_short_of_time

_MADE = recompute._made
HOW = ["--max-steps", 4, "--batch-size", 3, "--r", 3, "--eval-fraction", 0.2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("forecast")
    bases.directory(made / "base")
    rows = bases.rows(40)
    for row in rows[5:9]:
        row["completion"] *= 4
    bases.jsonl(made / "rows.jsonl", rows)
    return made


def record(directory):
    return json.loads((directory / RECORD).read_text())["training"]


def test_measuring_changes_no_bit_of_a_run(place, tmp_path, capsys):
    status, _, err = run(
        capsys, "train", place / "base", place / "rows.jsonl", "--output", tmp_path / "a", *HOW, "--lora-dropout", 0.3
    )
    assert status == 0, err
    base = inlay.load(place / "base")
    inlay.train(
        base, place / "rows.jsonl", method=inlay.Lora(r=3, lora_dropout=0.3), output=tmp_path / "b", max_steps=4,
        batch_size=3, eval_fraction=0.2, progress=False,
    )  # fmt: skip
    assert (tmp_path / "a" / TENSORS).read_bytes() == (tmp_path / "b" / TENSORS).read_bytes()
    assert record(tmp_path / "a")["losses"] == record(tmp_path / "b")["losses"]


def test_a_run_says_and_records_its_forecast_beside_what_it_took(place, tmp_path, capsys):
    status, _, err = run(capsys, "train", place / "base", place / "rows.jsonl", "--output", tmp_path / "a", *HOW)
    assert status == 0, err
    (line,) = [line for line in err.splitlines() if line.startswith("needs")]
    assert re.search(
        r"needs +[\d.]+ [MG]B memory · about \d+ s \(measured on 2 of its batches; .* were foreseen\)", line
    )
    kept = record(tmp_path / "a")
    assert kept["forecast"]["memory_bytes"] > 0
    assert kept["forecast"]["trainable_parameters"] == kept["trainable_parameters"]
    assert {"peak_rss_bytes", "seconds"} <= kept.keys()


@pytest.mark.parametrize("method", [["--method", "lora", "--r", 3], ["--method", "ia3"], ["--method", "dora"]])
def test_a_plan_counts_what_a_run_counts_and_reads_no_weight(place, tmp_path, capsys, method):
    how = ["--max-steps", 2, "--batch-size", 3, "--max-length", 30, *method]
    status, out, err = run(
        capsys, "train", place / "base", place / "rows.jsonl", "--output", tmp_path / "a", *how, "--json"
    )
    assert status == 0, err
    report = json.loads(out.splitlines()[-1])
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (place / "base").iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    for model in (place / "base", bare):
        found = run_json(capsys, "plan", model, place / "rows.jsonl", *how)
        assert found["trainable_parameters"] == report["trainable_parameters"]
        assert found["num_dropped"] >= 1
        assert found["num_rows"] == record(tmp_path / "a")["forecast"]["num_rows"]
        assert found["tokens_per_epoch"] == record(tmp_path / "a")["forecast"]["tokens_per_epoch"]
        header = int.from_bytes((tmp_path / "a" / TENSORS).read_bytes()[:8], "little")
        assert found["adapter_bytes"] == (tmp_path / "a" / TENSORS).stat().st_size - 8 - header


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "sequence-classification"), ("bert", "token-classification"), ("bert", "embedding"), ("t5", "seq2seq")],
)
def test_every_task_can_be_planned(tmp_path, capsys, family, task):
    task_bases.directory(tmp_path / "base", family)
    bases.jsonl(tmp_path / "rows.jsonl", task_bases.rows(task, 40))
    found = run_json(capsys, "plan", tmp_path / "base", tmp_path / "rows.jsonl", "--task", task, "--r", 3)
    base = inlay.load(tmp_path / "base", task=task, labels=_labels(task, tmp_path))
    assert found["trainable_parameters"] == base.layout.count(_with_heads(base, inlay.Lora(r=3)))
    assert found["memory_bytes"] > 0 < found["seconds"]


def _labels(task, place):
    spec = tasks.find(task)
    return spec.classes(spec.read(place / "rows.jsonl").rows) if spec.classes else ()


def _with_heads(base, method):
    from inlay.base.heads import with_heads

    return with_heads(method, base.heads, base.maps)


def test_an_outline_has_no_weights(place):
    spec = tasks.find("causal-lm")
    base = outline(open_checkpoint(place / "base"), spec, (), torch.float32)
    assert {parameter.device.type for parameter in base.model.parameters()} == {"meta"}
    assert base.num_weights == inlay.load(place / "base").num_weights


# budgets


@pytest.mark.parametrize(
    ("text", "number"), [("6GB", 6e9), ("1.5GB", 1.5e9), ("500MB", 5e8), ("12kB", 12e3), ("7B", 7), ("2 TB", 2e12)]
)
def test_a_size_is_read(text, number):
    assert budget.num_bytes("--memory", text) == number


@pytest.mark.parametrize("text", ["0GB", "0.0MB", "-6GB", "6", "GB", "6gb", "6GiB", "1e9B", "nanGB", "infGB", "", "6GB!", "9" * 400 + "TB", "999999999999TB"])  # fmt: skip
def test_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="no size that a run could keep to"):
        budget.num_bytes("--memory", text)


@pytest.mark.parametrize(
    ("text", "number"), [("2h", 7200), ("90min", 5400), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("0.5d", 43200)]
)
def test_a_time_is_read(text, number):
    assert budget.num_seconds("--time", text) == number


@pytest.mark.parametrize("text", ["0s", "-2h", "2", "h", "2 hours", "1h-30m", "nan", "", "2h2", "9" * 400 + "h"])
def test_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="no time that a run could keep to"):
        budget.num_seconds("--time", text)


@pytest.mark.parametrize(("flag", "value"), [("--memory", "0GB"), ("--time", "-1h"), ("--disk", "many")])
def test_the_commands_refuse_what_is_no_budget(place, tmp_path, capsys, flag, value):
    for command in (["plan"], ["train", "--output", tmp_path / "new"]):
        status, _, err = run(capsys, *command, place / "base", place / "rows.jsonl", f"{flag}={value}")
        assert status == 1, err
        assert f"{flag} {value}" in err
    assert not (tmp_path / "new").exists()


def test_a_run_that_recomputes_because_memory_is_short_gets_the_same_bits(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("inlay.core.recompute.MIN_ELEMENTS", 1)
    flags = ["train", place / "base", place / "rows.jsonl", *HOW]
    status, _, err = run(capsys, *flags, "--output", tmp_path / "kept")
    assert status == 0, err

    def second(limits, asked, foresee, can_quantize):
        way = list(budget.ways(asked, can_quantize))[1]
        return way, foresee(way)

    monkeypatch.setattr(foreseen, "choose", second)
    status, _, err = run(capsys, *flags, "--output", tmp_path / "again", "--memory", "9GB")
    assert status == 0, err
    assert "chosen    --recompute: about" in err
    assert record(tmp_path / "again")["recompute"] is True
    assert (tmp_path / "kept" / TENSORS).read_bytes() == (tmp_path / "again" / TENSORS).read_bytes()


def test_without_recomputing_more_waits_for_the_backward_pass(place, monkeypatch):
    monkeypatch.setattr(recompute, "MIN_ELEMENTS", 1)
    counts = {}
    for asked in (False, True):
        made = []
        monkeypatch.setattr(recompute, "_made", lambda node, own=_MADE, made=made: made.append(own(node)) or made[-1])
        inlay.train(
            inlay.load(place / "base"), place / "rows.jsonl", method=inlay.Lora(r=3), max_steps=1, recompute=asked,
            output=place / f"recompute-{asked}", progress=False,
        )  # fmt: skip
        counts[asked] = sum(one is not None for one in made)
    assert counts[False] == 0 < counts[True]


def _foresee(way):
    """A run of which recomputing, fewer tokens and fewer bits take less memory, and the last room on the disk."""
    tokens = min(way.micro_batch_tokens or 2048, 2048)
    small = way.quantize is not None
    memory, disk = (300 if small else 1000) + max(tokens, 100) // (1 + way.recompute), 500 if small else 10
    return Forecast(trainable_parameters=1, adapter_bytes=4, memory_bytes=memory, disk_bytes=disk)


@given(
    memory=st.none() | st.integers(1, 4000),
    disk=st.none() | st.integers(1, 700),
    asked=st.sampled_from([Way(None, None), Way(None, 256), Way("int8", None, True)]),
    can=st.booleans(),
)
def test_the_first_way_that_fits_is_chosen_and_else_the_smallest_budget_is_named(memory, disk, asked, can):
    allowed = Budget(memory_bytes=memory, disk_bytes=disk)
    every = list(budget.ways(asked, can))
    assert every[0] == asked
    assert all(way.recompute for way in every[1:])
    assert len(set(every)) == len(every)
    fitting = [
        way for way in every
        if _foresee(way).memory_bytes <= (memory or 10**9) and _foresee(way).disk_bytes <= (disk or 10**9)
    ]  # fmt: skip
    if fitting:
        assert budget.choose(allowed, asked, _foresee, can_quantize=can) == (fitting[0], _foresee(fitting[0]))
        return
    with pytest.raises(CapacityError) as refused:
        budget.choose(allowed, asked, _foresee, can_quantize=can)
    flag, size = re.search(r"--(memory|disk) (\S+B)", refused.value.hint).groups()
    enough = {"memory_bytes": memory, "disk_bytes": disk} | {f"{flag}_bytes": budget.num_bytes("", size)}
    if flag == "memory":
        budget.choose(Budget(**enough), asked, _foresee, can_quantize=can)
    else:
        assert budget.num_bytes("", size) >= min(_foresee(way).disk_bytes for way in every)


def test_machines_that_share_a_run_are_foreseen_from_a_step_of_one(place, capsys):
    command = ["plan", place / "base", place / "rows.jsonl", *HOW, "--batch-size", 8]
    found = [run_json(capsys, *command, "--nodes", nodes)["nodes"] for nodes in (2, 8)]
    alone = [node["step_seconds"] * node["processes"] * node["efficiency"] for node in found]
    for node, seconds in zip(found, alone, strict=True):
        gradients, turns = 4 * run_json(capsys, *command)["trainable_parameters"], 2 * (node["processes"] - 1)
        sent = turns * (gradients / node["processes"] / 1.25e9 + 1e-4)
        assert node["step_seconds"] == pytest.approx(seconds / node["processes"] + sent)
    for wrong in ([9], [0], [-1], [2, "--gigabits", 0]):
        status, _, err = run(capsys, *command, "--nodes", *wrong)
        assert (status, "Traceback" in err) == (1, False)
        assert "processes" in err or "bandwidth" in err


def test_a_plan_that_can_not_be_kept_is_refused_with_what_would_do(place, capsys):
    command = ["plan", place / "base", place / "rows.jsonl", *HOW]
    status, _, err = run(capsys, *command, "--memory", "9MB")
    assert status == 1
    assert "this run needs more memory" in err
    enough = re.search(r"--memory (\S+B)", err)[1]
    found = run_json(capsys, *command, "--memory", f"{budget.num_bytes('', enough) * 21 // 20}B")
    assert found["micro_batch_tokens"] is None or found["micro_batch_tokens"] > 0


# within a run


@given(
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=8),
    most=st.integers(40, 120),
)
def test_a_watch_keeps_every_row_in_order_and_every_part_within_the_limit(sizes, most):
    floor, each = 1000, 7.0
    watch = Watch(int(floor + each * most), "a limit", floor, each, sum, held=lambda: floor)

    def split(rows, tokens):
        group = []
        for row in rows:
            if group and sum(group) + row > tokens:
                yield group
                group = []
            group.append(row)
        yield group

    found = list(watch.within(sizes, split))
    assert list(itertools.chain(*found)) == list(itertools.chain(*sizes))
    assert all(sum(part) <= most for part in found)
    assert watch.num_splits == sum(sum(part) > most for part in sizes)


def test_a_watch_sees_memory_that_something_else_takes():
    now = [1000]
    watch = Watch(2000, "a limit", 1000, 10.0, sum, held=lambda: now[0], release=lambda: False)
    assert watch.most_tokens() == 100
    assert list(watch.within([[50]], lambda rows, most: [rows])) == [[50]]
    now[0] = 1500  # what 50 tokens may take
    assert watch.most_tokens() == 100
    now[0] = 1800
    assert watch.most_tokens() == 70
    now[0] = 2600
    with pytest.raises(CapacityError, match="a row does not fit"):
        list(watch.within([[30, 30]], lambda rows, most: [[row] for row in rows]))


def test_a_watch_hands_freed_blocks_back_only_where_they_are_in_the_way():
    now, released = [1000], []

    def release():
        released.append(now[0])
        now[0] = 1040
        return True

    how = {"fixed_bytes": 100, "expected_bytes": 1850, "held": lambda: now[0], "release": release}
    watch = Watch(2000, "a limit", 1000, 10.0, sum, **how)
    split = lambda rows, most: [[row] for row in rows]  # noqa: E731
    assert list(watch.within([[30], [40]], split)) == [[30], [40]]
    assert not released
    now[0] = 1600  # 40 tokens take 500 beside that
    assert list(watch.within([[40]], split)) == [[40]]
    assert released == [1600]
    assert watch.most_tokens() == (2000 - 1040 - 100) // 10
    assert list(watch.within([[60, 40]], split)) == [[60], [40]]
    assert watch.num_splits == 1
    far = Watch(10**6, "a limit", 1000, 10.0, sum, **how)
    now[0] = 1860  # more than was foreseen
    far.make_room()
    assert released[-1] == 1860
    now[0] = 1840
    far.make_room()
    assert released[-1] == 1860


def test_a_part_is_divided_until_it_fits():
    watch = Watch(1100, "a limit", 1000, 1.0, sum, held=lambda: 1000)
    halves = lambda rows, most: [rows[: len(rows) // 2], rows[len(rows) // 2 :]] if len(rows) > 1 else [rows]  # noqa: E731
    assert list(watch.within([[60, 60, 60, 40]], halves)) == [[60], [60], [60, 40]]
    assert watch.num_splits == 1
    with pytest.raises(CapacityError, match="a row does not fit"):
        list(watch.within([[60, 101]], halves))


def test_split_micro_batches_give_the_same_step(place, tmp_path):
    base = inlay.load(place / "base", dtype="float32")
    losses = []
    for name, most in (("whole", 10**6), ("split", 40)):
        how = dict(method=inlay.Lora(r=3), output=tmp_path / name, settings=Settings(max_steps=5, batch_size=6))
        job = jobs.prepare(base, place / "rows.jsonl", RunSpec(**how))
        tokens = lambda rows: sum(len(row.input_ids) for row in rows)  # noqa: E731
        job.bounds = Bounds(Watch(1000 + most, "a test", 1000, 1.0, tokens, held=lambda: 1000))
        job.run()
        assert bool(job.bounds.watch.num_splits) == (name == "split")
        losses.append(record(tmp_path / name)["losses"])
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-5)


def test_a_run_out_of_memory_keeps_what_it_has_learned(place, tmp_path):
    base = inlay.load(place / "base", dtype="float32")
    job = jobs.prepare(
        base,
        place / "rows.jsonl",
        RunSpec(method=inlay.Lora(r=3), output=tmp_path / "a", settings=Settings(max_steps=9)),
    )
    held = lambda: 1000 if job.state.progress.step < 3 else 10**6  # noqa: E731
    job.bounds = Bounds(Watch(50_000, "a test", 1000, 1.0, lambda rows: 10, held=held))
    with pytest.warns(UserWarning, match="holds what was learned"), pytest.raises(CapacityError):
        job.run()
    assert (tmp_path / "a" / TENSORS).exists()


def test_a_run_that_can_not_fit_is_refused_before_its_first_step(place, tmp_path, monkeypatch):
    base = inlay.load(place / "base", dtype="float32")
    job = jobs.prepare(base, place / "rows.jsonl", RunSpec(method=inlay.Lora(r=3), output=tmp_path / "a"))
    with pytest.raises(CapacityError, match="longest row of this run does not fit") as refused:
        foreseen.measured(job, Budget(memory_bytes=10**6), None)
    assert "--memory" in str(refused.value)


def test_a_run_from_python_keeps_to_the_budgets_of_the_command(place, tmp_path):
    base = inlay.load(place / "base", dtype="float32")
    how = dict(method=inlay.Lora(r=3), max_steps=2, batch_size=3, progress=False)
    for flag, value in (("memory", "0GB"), ("time", "-1h"), ("disk", "many")):
        with pytest.raises(ConfigError, match=f"{flag}= {value}"):
            inlay.train(base, place / "rows.jsonl", output=tmp_path / "a", **how, **{flag: value})
    with pytest.raises(CapacityError, match="longest row of this run does not fit"):
        inlay.train(base, place / "rows.jsonl", output=tmp_path / "a", memory="1MB", **how)
    with pytest.raises(CapacityError, match="more of the disk"):
        inlay.train(base, place / "rows.jsonl", output=tmp_path / "a", disk="1kB", **how)
    assert not (tmp_path / "a").exists()
    inlay.train(base, place / "rows.jsonl", output=tmp_path / "b", memory="900GB", time="1h", disk="9GB", **how)
    inlay.train(inlay.load(place / "base", dtype="float32"), place / "rows.jsonl", output=tmp_path / "c", **how)
    assert record(tmp_path / "b")["forecast"]["memory_bytes"] > 0
    assert (tmp_path / "b" / TENSORS).read_bytes() == (tmp_path / "c" / TENSORS).read_bytes()


# deadlines


def test_a_run_ends_by_its_deadline_with_an_adapter_that_is_evaluated_and_goes_on(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timed, "fit_", lambda job, until: "")  # a forecast that was too short
    report, err = run_short_of_time(capsys, place, tmp_path / "a")
    assert report["interrupted"]
    assert 0 < report["steps"] < 500_000
    assert report["eval_loss"] is not None
    assert "time is up" in err
    assert (tmp_path / "a" / TENSORS).exists()
    assert (tmp_path / "a.run").is_dir()


def test_a_deadline_leaves_room_for_a_step_an_evaluation_and_the_end():
    progress = Progress(100, step=10, step_seconds=20.0, eval_losses=[(0, 1.0)], eval_seconds=4.0)
    needed = 1.5 * 2 + 2 * 4 + CLOSING_SECONDS
    assert not Bounds().is_late(progress)
    assert not Bounds(deadline=time.monotonic() + needed + 5).is_late(progress)
    bounds = Bounds(deadline=time.monotonic() + needed - 1)
    assert bounds.is_late(progress)
    assert bounds.ended_by_time


# the machine


def _group(folder, limit, taken, inactive, new=True):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, taken), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 0\n")


@pytest.mark.parametrize("new", [True, False])
def test_the_tightest_control_group_counts_without_its_files(tmp_path, new):
    root = tmp_path / "groups" / ("" if new else "memory")
    _group(root / "a" / "b", 9_000_000, 4_000_000, 1_500_000, new)
    _group(root / "a", 7_000_000, 4_000_000, 1_000_000, new)
    (tmp_path / "own").write_text("3:cpu:/elsewhere\n" + ("0::/a/b\n" if new else "4:memory:/a/b\n"))
    assert machine.room(tmp_path / "groups", tmp_path / "own") == (4_000_000, "the memory limit of its control group")


@pytest.mark.parametrize("content", ["", "0::/a\n", "nonsense\n", "0::/../../..\n"])
def test_no_group_or_none_that_limits_leaves_the_machine_s_memory(tmp_path, content):
    (tmp_path / "groups" / "a").mkdir(parents=True)
    (tmp_path / "groups" / "a" / "memory.max").write_text("max\n")
    (tmp_path / "own").write_text(content)
    assert "control group" not in machine.room(tmp_path / "groups", tmp_path / "own").why


def test_a_limit_of_addresses_is_seen():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (machine.virtual_bytes() + 300_000_000, before[1]))
        found = machine.room()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert found.why == "ulimit -v"
    assert found.num_bytes <= 300_000_000


def test_a_base_that_is_quantised_already_says_what_it_takes(place, tmp_path):
    gguf_models.write(tmp_path / "model.gguf", gguf_models.model("llama", False))
    plain = inlay.load(place / "base")
    for base, most in (
        (inlay.load(tmp_path / "model.gguf"), 1.1 * (tmp_path / "model.gguf").stat().st_size),
        (inlay.load(place / "base", quantize="int8"), needs.base_bytes(plain, None)),
    ):
        matrices = sum(m.matrix.num_bytes for m in base.model.modules() if isinstance(m, Quantized))
        assert 0 < matrices <= needs.base_bytes(base, base.scheme) < most
