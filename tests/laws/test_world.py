"""Processes that share a run come to what one process comes to; one that differs, or is lost, is named.

A group is started as torchrun starts one, but forked; one test asks torchrun itself. What one process comes to is the oracle.
Adam gives an entry whose gradient is nothing but rounding as large a step as any other, so that gradients are held to `SAME` for
every entry, and what is learned as part of a tensor's norm.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import inlay
from inlay.distributed.world import Alone
from inlay.errors import CapacityError
from inlay.evaluation import golden
from tests.support import bases, forks, tasks, workers

SAME = 1e-5
"""How far the results of several processes may be from those of one: the same floats in float32, added in another order."""

SETTINGS = dict(max_steps=6, batch_size=7, learning_rate=2e-3, eval_every=3, micro_batch_tokens=60, progress=False)
"""Rows, and steps, that two or three processes can't share evenly, in parts of a few rows."""

CASES = {
    "lora": ("llama", inlay.Lora(r=3, lora_alpha=5), {}),
    "rates": ("llama", inlay.Lora(r=3, lora_alpha=5, loraplus_lr_ratio=4.0), {"weight_decay": 0.1}),
    "experts": ("qwen3_moe", inlay.Lora(r=3, lora_alpha=5), {"weight_decay": 0.1}),
    "penalty": ("llama", inlay.Adalora(init_r=4, target_r=2, lora_alpha=5, tinit=1, tfinal=2), {}),
    "prefix": ("llama", inlay.Prefix(num_virtual_tokens=3), {}),
    "classes": ("bert", inlay.Lora(r=3, lora_alpha=5), {}),
}
"""Unequal rates, tensors without a gradient, what is added to a step's loss once, virtual tokens, another task."""

TRAIN = """
import sys
from tests.laws import test_world
test_world.work(*sys.argv[1:])
"""


def place_of(directory):
    for family in ("llama", "qwen3_moe"):
        bases.directory(directory / family, family)
    tasks.directory(directory / "bert", "bert")
    bases.jsonl(directory / "rows.jsonl", [*bases.rows(19), {"prompt": "say " * 9, "completion": "it is long " * 4}])
    bases.jsonl(directory / "held.jsonl", bases.rows(23, seed=50))
    bases.jsonl(directory / "classes.jsonl", tasks.rows("sequence-classification", 20))
    bases.jsonl(directory / "classes-held.jsonl", tasks.rows("sequence-classification", 44)[20:])
    return directory


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_of(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def golden_answers(monkeypatch, one_thread):
    monkeypatch.setattr(golden, "kept", golden.kept)  # what `learn` changes is put back


def learn(place, case, output, **others):
    """Train one of the cases, without the answers that are kept at the end."""
    golden.kept = lambda *_: None
    family, method, settings = CASES[case]
    is_classes = family == "bert"
    how = {"task": "sequence-classification", "labels": ("no", "yes")} if is_classes else {}
    base = inlay.load(place / family, dtype="float32", **how)
    names = [f"classes{end}.jsonl" for end in ("", "-held")] if is_classes else ["rows.jsonl", "held.jsonl"]
    rows, held = (place / name for name in names)
    return inlay.train(base, rows, eval_data=held, method=method, output=output, **{**SETTINGS, **settings, **others})


def work(place, output, *what):
    """In a process of a group: the cases that are named, or one whose settings are given as JSON; with a planted bug."""
    place, output = Path(place), Path(output)
    cases, others, bug = what[0].split(","), json.loads(what[1]), what[2]
    torch.set_num_threads(1)
    plant(bug)
    watched = os.environ["RANK"] != "0"
    if watched:
        sys.addaudithook(lambda event, about: watch(event, about, place, output))
    for case in cases:
        learn(place, case, output / case, **others)


def watch(event, about, place, output):
    """Only the first process writes: none other opens a file beside the run to write it, nor makes or renames one."""
    writes = event == "open" and isinstance(about[2], int) and about[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.mkdir", "os.rename", "os.remove"):
        where = str(about[0])
        assert not where.startswith((str(place), str(output))), f"{event} {where}"


def plant(bug):
    """Let a bug loose in this process of a group."""
    from inlay.distributed import group

    sum_ = group.Group.sum_
    rank = int(os.environ["RANK"])

    def dropped(self, tensors, number):
        for tensor in tensors if rank else ():
            tensor.grad = None
        return sum_(self, tensors, number)

    def divided(self, tensors, number):
        total = sum_(self, tensors, number)
        for tensor in tensors:
            if tensor.grad is not None:
                tensor.grad /= self.size
        return total

    def unlike(self, items, cost):
        return list(items)[: len(items) // self.size]

    if bug in ("dropped", "divided"):
        group.Group.sum_ = {"dropped": dropped, "divided": divided}[bug]
    if bug == "unlike":
        group.Group.shard = unlike
    if rank == (bug != "first killed") and bug in SENT:
        hear(SENT[bug])
    if bug in ("killed", "first killed", "stopped"):
        group.PATIENCE_SECONDS, group.BROKEN_SECONDS = 2.0, 2.0


SENT = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "first killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "asked": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "full": lambda: fail(),
}


def fail():
    raise CapacityError("there is no room on this one")


def hear(happens, at=4):
    """Let something happen in this process in the middle of a step."""
    from inlay.training import step

    gradients = step._gradients_

    def broken(base, state, *given):
        if state.progress.step == at:
            happens()
        return gradients(base, state, *given)

    step._gradients_ = broken


def many(place, output, size, cases, bug="", timeout=60, **others):
    arguments = (place, output, ",".join(cases), json.dumps(others), bug)
    return workers.run(size, TRAIN, *arguments, timeout=timeout, stopped=[1] if bug == "stopped" else [])


def result(directory):
    record = json.loads((directory / "inlay.json").read_text())
    return load_file(directory / "adapter_model.safetensors"), record["training"]


def differing(one, other):
    """How far two runs are apart, where that is more than `SAME`: losses as part of a loss, tensors as part of their norm."""
    (tensors, record), (others, other_record) = one, other
    assert tensors.keys() == others.keys()
    pairs = {"losses": (record["losses"], other_record["losses"])}
    pairs["held-out"] = ([loss for _, loss in record["eval_losses"]], [loss for _, loss in other_record["eval_losses"]])
    pairs |= {name: (tensor, others[name]) for name, tensor in tensors.items()}
    found = {}
    for name, (a, b) in pairs.items():
        a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        found[name] = ((a - b).norm() / a.norm().clamp(min=1e-6)).item()
    return {name: off for name, off in found.items() if not off <= SAME}


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
    """What one process comes to, by case."""
    made = tmp_path_factory.mktemp("alone")
    found = {}

    def of(case):
        if case not in found:
            learn(place, case, made / case)
            found[case] = result(made / case)
        return found[case]

    return of


SOME = ("rates", "experts", "penalty", "classes")
"""The cases of the quick test."""


@pytest.mark.parametrize(("size", "cases"), [(2, SOME), pytest.param(3, (*CASES,), marks=pytest.mark.slow)])
def test_processes_come_to_what_one_comes_to(place, alone, tmp_path, size, cases):
    ends = many(place, tmp_path, size, cases)
    assert [status for status, *_ in ends] == [0] * size, ends
    assert {case: differing(alone(case), result(tmp_path / case)) for case in cases} == {case: {} for case in cases}
    assert [out + err for _, out, err in ends[1:]] == [""] * (size - 1)
    assert result(tmp_path / cases[0])[1]["processes"] == size
    assert {path.name for path in tmp_path.iterdir()} == {*cases, *(f"{case}.report.html" for case in cases)}


@pytest.mark.parametrize("bug", ["dropped", "divided", "unlike"])
def test_a_bug_is_seen(place, alone, tmp_path, bug):
    many(place, tmp_path, 2, ["lora"], bug)
    assert differing(alone("lora"), result(tmp_path / "lora"))


def test_dropout_is_the_same_each_time_and_no_two_processes_draw_alike(place, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        ends = workers.run(2, DROPOUT, place, tmp_path / name)
        assert [status for status, *_ in ends] == [0, 0], ends
        assert len({out for _, out, _ in ends}) == 2  # what they drew
    one, other = (result(tmp_path / name / "new") for name in ("one", "other"))
    assert all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())


DROPOUT = """
import os, sys
from pathlib import Path
import inlay
from inlay.distributed import group
from tests.laws import test_world
draw, seen = group.Group.draw_, []
def drawn(self, generator, seed, step):
    draw(self, generator, seed, step)
    seen.append(generator.initial_seed())
group.Group.draw_ = drawn
out = os.dup(1)
base = inlay.load(Path(sys.argv[1]) / "llama", dtype="float32")
how = test_world.SETTINGS | dict(method=inlay.Lora(r=3, lora_dropout=0.3), output=Path(sys.argv[2]) / "new")
inlay.train(base, Path(sys.argv[1]) / "rows.jsonl", eval_fraction=0, **how)
os.write(out, repr(seen).encode())
"""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("--learning-rate 0.5", "rank 1: settings.learning_rate 0.5, rank 0 has 0.01"),
        ("--data other.jsonl", "rank 1: digests.rows"),
        ("--model tuned", "rank 1: digests.weights"),
        ("--dtype bfloat16", "rank 1: dtype torch.bfloat16, rank 0 has torch.float32"),
        ("--version 9", "rank 1: versions.inlay 9, rank 0 has"),
    ],
)
def test_a_process_that_does_something_else_is_named(place, tmp_path, changed, said):
    bases.jsonl(tmp_path / "other.jsonl", bases.rows(21))
    bases.directory(tmp_path / "tuned", seed=4)
    ends = workers.run(3, OTHER, place, tmp_path, *changed.split())
    assert [status for status, *_ in ends] == [1, 1, 1]
    assert "the processes of this run do not do the same" in ends[0][2]
    assert said in ends[0][2]
    assert "rank 2" not in ends[0][2]
    assert [out + err for _, out, err in ends[1:]] == ["", ""]
    assert {path.name for path in tmp_path.iterdir()} == {"other.jsonl", "tuned"}


OTHER = """
import os, sys
from inlay.cli import main
from inlay.training import state
place, here, flag, value = sys.argv[1:]
given = {"--model": f"{place}/llama", "--data": f"{place}/rows.jsonl", "--learning-rate": "0.01", "--dtype": "float32"}
if os.environ["RANK"] == "1":
    if flag == "--version":
        found = {**state.versions(), "inlay": value}; state.versions = lambda: found
    else:
        given[flag] = f"{here}/{value}" if flag in ("--model", "--data") else value
model, data = given.pop("--model"), given.pop("--data")
flags = [part for pair in given.items() for part in pair]
sys.exit(main(["train", model, data, "--output", f"{here}/new", "--batch-size", "6", "--max-steps", "2", *flags]))
"""


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_lost_process_is_named_and_the_run_goes_on_later(place, alone, tmp_path, how):
    ends = many(place, tmp_path, 3, ["lora"], how, save_every=1)
    assert ends[1][0] == -signal.SIGKILL
    for rank in (0, 2):
        status, _, err = ends[rank]
        assert status == 1
        assert "WorkerError: a process of this run was lost" in err
        assert "rank 1 of 3 on" in err
        assert "rank 0 of 3" not in err
        assert "rank 2 of 3" not in err
    learn(place, "lora", tmp_path / "lora", resume=True, save_every=1)
    again = result(tmp_path / "lora")
    assert again[1]["resumed_at"] == 4
    assert differing(alone("lora"), again) == {}


def test_a_process_that_fails_says_why(place, tmp_path):
    ends = many(place, tmp_path, 2, ["lora"], "full")
    assert [status for status, *_ in ends] == [1, 1]
    assert "rank 1 of 2" in ends[0][2]
    assert "there is no room on this one" in ends[0][2]


def test_an_end_that_one_is_asked_for_ends_all_after_the_same_step(place, tmp_path):
    ends = many(place, tmp_path, 2, ["lora"], "asked")
    assert [status for status, *_ in ends] == [0, 0], ends
    record = result(tmp_path / "lora")[1]
    assert (record["interrupted"], record["steps"]) == (True, 5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(batch_size=2), "a step has fewer rows than there are processes"),
        (dict(batch_size=6, task="embedding"), "the rows of this task see each other"),
    ],
)
def test_a_step_that_can_not_be_shared_is_refused(settings, said):
    from inlay.distributed.begin import check_divides
    from inlay.errors import ConfigError

    world = Alone()
    check_divides(world, settings["batch_size"], [["one", "other"]])
    world.size = 3
    check_divides(world, 3, [["one"], ["other"]])
    parts = [["one", "other"]] if "task" in settings else [["one"], ["other"]]
    with pytest.raises(ConfigError, match=said):
        check_divides(world, settings["batch_size"], parts)


def test_many_adapters_at_once_are_of_one_process(place, tmp_path):
    ends = workers.run(2, SWEPT, place, tmp_path)
    assert [status for status, *_ in ends] == [1, 1], ends
    assert "ConfigError: many adapters at once are not shared among processes" in ends[0][2]
    assert "2 processes" in ends[0][2]
    assert not [*tmp_path.iterdir()]


SWEPT = """
import sys
from pathlib import Path
import inlay
base = inlay.load(Path(sys.argv[1]) / "llama", dtype="float32")
inlay.sweep(base, Path(sys.argv[1]) / "rows.jsonl", over={"r": [2, 3]}, output=Path(sys.argv[2]) / "new", max_steps=2)
"""


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 5))
def test_every_row_has_one_process_and_no_process_much_more_than_its_part(costs, size):
    shares = []
    for rank in range(size):
        world = Alone()
        world.rank, world.size = rank, size
        shares.append(world.shard([*enumerate(costs)], lambda item: item[1]))
    assert sorted(item for share in shares for item in share) == [*enumerate(costs)]
    assert all(share == sorted(share) for share in shares)
    loads = [sum(max(1, cost) for _, cost in share) for share in shares]
    assert max(loads) <= sum(loads) / size + max([1, *costs])
    assert len(costs) < size or all(shares)


@pytest.mark.parametrize(("how", "rank"), [("killed", 1), ("first killed", 0)])
def test_a_group_that_is_started_again_ends_with_the_bytes_of_one_that_was_not_disturbed(place, tmp_path, how, rank):
    unbroken = many(place, tmp_path / "unbroken", 2, ["rates"])
    assert [status for status, *_ in unbroken] == [0, 0], unbroken
    lost = many(place, tmp_path / "new", 2, ["rates"], how, save_every=1)
    assert (lost[rank][0], lost[1 - rank][0]) == (-signal.SIGKILL, 1)
    given = (place, tmp_path / "new", "rates", json.dumps({"save_every": 1}), "")
    again = workers.run(2, TRAIN, *given, TORCHELASTIC_RESTART_COUNT="1")
    assert [status for status, *_ in again] == [0, 0], again
    assert result(tmp_path / "new" / "rates")[1]["resumed_at"] == 4
    files = [tmp_path / name / "rates" / "adapter_model.safetensors" for name in ("unbroken", "new")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_under_torchrun_a_killed_worker_is_replaced_and_the_run_goes_on(place, tmp_path, rank):
    flags = "--r 3 --max-steps 60 --batch-size 7 --dtype float32 --save-every 1 --eval-fraction 0 --json"
    command = ["train", place / "llama", place / "rows.jsonl", *flags.split(), "--output"]
    unbroken = workers.run(2, forks.INLAY, *command, tmp_path / "unbroken")
    assert [status for status, *_ in unbroken] == [0, 0], unbroken
    status, out, err = torchrun(rank, *command, tmp_path / "new")
    assert status == 0, err
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("unbroken", "new")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert result(tmp_path / "new")[1]["resumed_at"] > 0
    (last,) = out.splitlines()  # the first process alone shows anything
    assert json.loads(last)["steps"] == 60
    assert not (tmp_path / "new.run").exists()


def torchrun(rank, *arguments):
    """(status, standard output, standard error) of two workers under torchrun, of which one is killed once a state is kept."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "-m", "--", "inlay", *arguments]
    source = Path(inlay.__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment)
    try:
        os.kill(worker_of(process, rank, arguments[-1]), signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    finally:
        process.terminate()  # with its workers
    return process.returncode, out, err


def worker_of(process, rank, output):
    """The number of the process that is the worker of this rank, once the run has kept a state."""
    end = time.monotonic() + 60
    while not (output.parent / f"{output.name}.run" / "state.safetensors").exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                status = (place / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == process.pid and b"\0RANK=%d\0" % rank in (place / "environ").read_bytes():
                    return int(place.name)
            except OSError:
                continue
    raise AssertionError("there is no worker")
