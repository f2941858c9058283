"""A run that was killed goes on to the bytes that it would have come to: wherever in its writing, and whenever, it was killed."""

import errno
import itertools
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

import inlay
from inlay.errors import CompatibilityError, FormatError, OutputError, UnknownNameError
from inlay.formats.peft import TENSORS
from inlay.io import output, records
from inlay.report import recorded
from inlay.training import job as jobs
from inlay.training import saves
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings
from tests.support import bases, forks, kills
from tests.support.command import run

HOW = dict(max_steps=8, batch_size=4, learning_rate=2e-2, eval_every=3, save_every=3, progress=False)
METHOD = inlay.Lora(r=3, lora_alpha=5, lora_dropout=0.2)

CODE = """
import threading, time
import torch, inlay
from inlay.training import job as jobs
torch.set_num_threads(1)
model, rows, held_out, place, at, delay = sys.argv[1:]
at = int(at)
base = inlay.load(model, dtype="float32")
def kill():
    time.sleep(float(delay))
    os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
jobs.Job._keep_golden = jobs.keep.draw = lambda *given: None
if float(delay):
    threading.Thread(target=kill, daemon=True).start()
start = time.perf_counter()
inlay.train(base, rows, eval_data=held_out, method=METHOD, output=place, **HOW)
print(seen, time.perf_counter() - start)
""".replace("METHOD", repr(METHOD).replace("Lora", "inlay.Lora")).replace("**HOW", f"**{HOW!r}")
KILLED = kills.AT_A_CHANGE + CODE
"""The run in a process that kills itself before its n-th change of the file system, or after some seconds. What comes after the
adapter is in its place, golden answers and a picture, is left out here and there: it takes longer than the run."""


@pytest.fixture(autouse=True)
def quick(monkeypatch, one_thread):
    monkeypatch.setattr(jobs.keep, "draw", lambda *given: None)
    monkeypatch.setattr(jobs.Job, "_keep_golden", lambda job: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("saves")
    bases.directory(made / "base")
    for name, rows in (("rows", bases.rows(20)), ("held", bases.rows(24, seed=1)[:22])):
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


@pytest.fixture(scope="module")
def base(place):
    return inlay.load(place / "base", dtype="float32")


@pytest.fixture(scope="module")
def whole(place, base):
    """The bytes of the adapter of a run that was never stopped."""
    torch.set_num_threads(1)
    return trained(place, base, place / "whole")


def trained(place, base, target, **how):
    """The bytes of the adapter that a run in this process writes."""
    given = dict(eval_data=place / "held.jsonl", method=METHOD, output=target, **HOW)
    inlay.train(base, place / "rows.jsonl", **given | how)
    base.detach(target.name)
    return (target / TENSORS).read_bytes()


PUT = """
from inlay.io import safetensors
put, count = safetensors.Writer.put, 0
def counted(writer, *given):
    global count
    count += str(writer._file.name).count("mine.run")
    if count > 5:
        os.kill(os.getpid(), signal.SIGKILL)
    put(writer, *given)
safetensors.Writer.put = counted
"""
"""The process kills itself within its first state."""


def killed(place, target, at=0, delay=0.0):
    """Whether the run in another process was killed; (changes, seconds) where it came to its end."""
    given = (place / "base", place / "rows.jsonl", place / "held.jsonl", target, at, delay)
    process = forks.Process(KILLED, *given, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=120)
    return None if process.returncode else (int(out.split()[0]), float(out.split()[1]))


def is_whole(target):
    """Nothing but the adapter is left, and the page of its run."""
    return {path.name for path in target.parent.iterdir()} <= {target.name, recorded.page(target).name}


PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_at_any_write_costs_no_byte(place, base, whole, tmp_path, part):
    for at in range(1 + part, 100, PARTS):
        target = tmp_path / str(at) / "mine"
        target.parent.mkdir()
        if killed(place, target, at) is not None:
            break
        if target.exists():  # written whole; what was to come after it is no part of it
            assert (target / TENSORS).read_bytes() == whole, at
            shutil.rmtree(target)
        assert trained(place, base, target, resume=True) == whole, at
        assert is_whole(target), at
    assert at > 25


@pytest.mark.parametrize("part", range(5))
def test_a_kill_at_any_moment_costs_no_byte(place, base, whole, tmp_path, part):
    rng, counts = random.Random(part), set()
    _, seconds = killed(place, tmp_path / "count" / "mine")
    for number in range(10):
        target = tmp_path / str(number) / "mine"
        target.parent.mkdir()
        killed(place, target, delay=rng.uniform(0.001, seconds))
        state = saves.Saves(target).read()
        counts.add(state[1]["progress"]["step"] if state else 0)
        if target.exists():
            assert (target / TENSORS).read_bytes() == whole
            continue
        assert trained(place, base, target, resume=True) == whole
        assert is_whole(target)
    assert counts <= {0, 3, 6}


def stopped(place, base, target, after=4, **how):
    """A run that was asked for an end after a step."""
    inlay.train(base, place / "rows.jsonl", eval_data=place / "held.jsonl", method=METHOD, output=target, on_step=stop_at(after), **HOW | how)  # fmt: skip
    base.detach(target.name)


def stop_at(step):
    def listen(progress):
        if progress.step == step:
            os.kill(os.getpid(), 2)
            time.sleep(0.01)  # the signal is heard

    return listen


def test_what_a_stopped_run_wrote_is_replaced_by_what_it_comes_to(place, base, whole, tmp_path):
    target = tmp_path / "mine"
    stopped(place, base, target)
    assert (target / TENSORS).read_bytes() != whole
    assert records.read(target)["training"]["interrupted"]
    with pytest.raises(OutputError, match="exists already"):
        trained(place, base, target)
    assert trained(place, base, target, resume=True) == whole
    training = records.read(target)["training"]
    assert (training["resumed_at"], training["interrupted"]) == (5, False)
    assert is_whole(target)


def test_what_is_not_the_stopped_run_s_own_stays(place, base, whole, tmp_path):
    target = tmp_path / "mine"
    stopped(place, base, target)
    shutil.rmtree(target)
    shutil.copytree(place / "whole", target)
    with pytest.raises(OutputError, match="exists already"):
        trained(place, base, target, resume=True)
    shutil.rmtree(target)
    with pytest.raises(OutputError, match="has left its state") as caught:
        trained(place, base, target)
    assert f"inlay train --resume {target}" in str(caught.value)
    for changed in ({"learning_rate": 1e-2}, {"eval_data": place / "rows.jsonl"}):
        with pytest.raises(CompatibilityError, match="another one"):
            trained(place, base, target, resume=True, **changed)
    job = jobs.prepare(base, place / "rows.jsonl", RunSpec(eval_data=place / "held.jsonl", method=METHOD, output=target, resume=True, settings=Settings(**{k: v for k, v in HOW.items() if k != "progress"})))  # fmt: skip
    shutil.copytree(place / "whole", target)  # it came while the run was under way
    with pytest.raises(OutputError, match="exists already") as caught:
        job.run()
    base.detach(target.name)
    kept = Path(str(caught.value).partition("kept:")[2].split()[0])
    assert (kept / TENSORS).read_bytes() == whole
    shutil.rmtree(kept)
    shutil.rmtree(target)


def test_a_run_goes_on_where_it_was_moved_and_keeps_states_as_often_as_is_asked_now(place, base, whole, tmp_path):
    stopped(place, base, tmp_path / "mine")
    shutil.move(tmp_path / "mine.run", tmp_path / "other.run")
    assert trained(place, base, tmp_path / "other", resume=True, save_every=1) == whole


@pytest.mark.parametrize("name", ["mine.run", "mine"])
def test_the_state_lies_beside_the_output_whatever_that_is_called(place, base, whole, tmp_path, monkeypatch, name):
    target = tmp_path / "in" / name
    assert trained(place, base, target) == whole
    assert is_whole(target)
    (tmp_path / "in" / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "in" / "empty")
    assert saves.Saves(Path()).path == tmp_path / "in" / "empty.run"


def test_a_second_run_into_one_directory_is_refused(place, base, tmp_path):
    target = tmp_path / "mine"
    held = saves.Saves(target)
    with held.kept(None):
        for resume in (False, True):
            with pytest.raises(OutputError, match="another process is writing this"):
                trained(place, base, target, resume=resume)
    held.remove()
    assert [*tmp_path.iterdir()] == []


def test_of_two_runs_that_were_prepared_for_one_directory_one_is_refused(place, base, tmp_path):
    one, other = (
        jobs.prepare(
            base, place / "rows.jsonl", RunSpec(output=tmp_path / "mine", method=METHOD, settings=Settings(max_steps=3))
        )
        for _ in range(2)
    )

    def begin_the_other(progress):
        if progress.step == 1 and not progress.doing:
            with pytest.raises(OutputError, match="another process is writing this"):
                other.run()

    assert one.run(begin_the_other).steps == 3
    base.detach("mine")


def test_a_full_disk_costs_the_state_and_not_the_run(place, base, whole, tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saves.safetensors.Writer, "put", full)
    with pytest.warns(UserWarning, match=r"was not kept: the disk is full") as said:
        assert trained(place, base, tmp_path / "mine") == whole
    assert [str(one.message).split()[4] for one in said] == ["3", "6"]
    assert is_whole(tmp_path / "mine")


def test_a_kill_within_the_writing_of_a_state_leaves_nothing_with_a_name_of_its_own(place, base, whole, tmp_path):
    target = tmp_path / "mine"
    code = KILLED.replace("if float(delay)", "PUT\nif float(delay)").replace("PUT", PUT)
    given = (place / "base", place / "rows.jsonl", place / "held.jsonl", target, 0, 0.0)
    assert forks.run(code, *given)[0] == -9
    left = sorted(path.name for path in saves.place(target).iterdir())
    assert [name.partition(output.PARTIAL)[0] for name in left] == [f".{saves.STATE}"]
    assert trained(place, base, target, resume=True) == whole
    assert is_whole(target)


def test_a_damaged_state_is_refused(place, base, tmp_path):
    target = tmp_path / "mine"
    stopped(place, base, target)
    state = saves.place(target) / saves.STATE
    for content in (state.read_bytes()[:-1], b"", (target / TENSORS).read_bytes()):
        state.write_bytes(content)
        with pytest.raises(FormatError):
            trained(place, base, target, resume=True)


def test_without_a_number_of_steps_states_cost_little_time(place, base, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    prepared = jobs.prepare(
        base, bases.rows(9), RunSpec(method=METHOD, output=tmp_path / "x", settings=Settings(max_steps=9))
    )
    written, held = [], saves.Saves(tmp_path / "mine")

    def save(path, tensors, metadata):
        written.append(clock[0])
        clock[0] += 0.5  # seconds that it takes

    monkeypatch.setattr(saves.safetensors, "write_tensors", save)
    with held.kept(None):
        for _ in range(1000):
            clock[0] += 0.3
            held.offer(prepared.state)
    assert [round(b - a) for a, b in itertools.pairwise(written)] == [51] * (len(written) - 1)
    assert written[0] == pytest.approx(saves.FEWEST_SECONDS, abs=0.4)


def test_the_command_goes_on_from_anywhere_with_what_it_was_told(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    more = ("--max-steps", 8, "--batch-size", 4, "--r", 3, "--target-modules", "q_proj,v_proj", "--dtype", "float32")
    status, _, err = run(capsys, "train", "base", "rows.jsonl", "--output", tmp_path / "one", *more)
    assert status == 0, err
    monkeypatch.setattr(saves.Saves, "offer", killer(saves.Saves.offer, 5))
    assert run(capsys, "train", "base", "rows.jsonl", "--output", tmp_path / "first", *more)[0] == 9
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    os.rename(tmp_path / "first.run", "two.run")
    status, out, err = run(capsys, "train", "--resume", "two.run", "--json")
    assert status == 0, err
    assert "resumed   after 5 of 8 steps" in err
    assert json.loads(out)["steps"] == 8
    assert (tmp_path / "one" / TENSORS).read_bytes() == (tmp_path / "two" / TENSORS).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one.report.html", "two", "two.report.html"]
    for name, why in (("two", "this run is finished"), ("three", "no run that could go on")):
        status, _, err = run(capsys, "train", "--resume", name)
        assert (status, why in err) == (1, True)


def killer(offer, step):
    """In place of the process: what can't be caught ends it there."""

    def offered(self, state, *, now=False):
        offer(self, state, now=state.progress.step == step)
        if state.progress.step == step:
            raise SystemExit(9)

    return offered


def test_what_another_machine_does_otherwise_is_said(place, base, tmp_path, capsys):
    target = tmp_path / "mine"
    with pytest.raises(UnknownNameError, match="no run that could go on"):
        saves.begun(target)
    stopped(place, base, target)
    with pytest.raises(UnknownNameError, match="begun from Python"):
        saves.begun(target)
    torch.set_num_threads(2)
    job = jobs.prepare(base, place / "rows.jsonl", RunSpec(eval_data=place / "held.jsonl", method=METHOD, output=target, resume=True, settings=Settings(**{k: v for k, v in HOW.items() if k != "progress"})))  # fmt: skip
    assert job.resumed == (5, ["threads: 1 before, 2 now"])
    assert output.PARTIAL not in str([*tmp_path.iterdir()])
