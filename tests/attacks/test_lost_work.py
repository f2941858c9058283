"""What a run has learned is kept, whatever fails after it: a picture, a terminal, memory, a listener, power, a signal."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
import types

import pytest

import inlay
from inlay.cli import compare
from inlay.errors import CapacityError, DivergedError, OutputError
from inlay.evaluation import score
from inlay.formats.peft import TENSORS
from inlay.io import output
from inlay.io.records import RECORD
from inlay.report import curve
from inlay.runs.progress import Progress
from inlay.training import job as jobs
from inlay.training import loop
from tests.support import bases
from tests.support.command import run

NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.fixture
def place(tmp_path):
    bases.directory(tmp_path / "base")
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(60))
    return tmp_path


def train(place, *extra, data="rows.jsonl"):
    """A run of three steps that evaluates 27 rows after each."""
    how = ["--max-steps", 3, "--batch-size", 4, "--r", 2, "--eval-fraction", 0.4, *extra]
    return ["train", place / "base", place / data, "--output", place / "new", *how]


def record(place):
    return json.loads((place / "new" / RECORD).read_text("utf-8"))


def raising(error):
    def fail(*given, **named):
        raise error

    return fail


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("latex was not found"), ImportError("no matplotlib"), OSError("x")]
)
def test_a_picture_that_fails_is_a_note(place, capsys, monkeypatch, error):
    monkeypatch.setattr(curve, "draw", raising(error))
    with pytest.warns(match="curve.png was not drawn: .*; nothing else is missing"):
        assert run(capsys, *train(place))[0] == 0
    assert (place / "new" / TENSORS).exists()
    assert record(place)["training"]["steps"] == 3


def test_a_picture_obeys_no_settings_of_the_users(monkeypatch, drawn):
    import matplotlib

    monkeypatch.setenv("MPLBACKEND", "nonsense")
    with matplotlib.rc_context({"text.usetex": True, "figure.figsize": (1, 1)}):
        png = curve.draw(Progress(2, losses=[2.0, 1.0], eval_losses=[(0, 2.0), (2, 1.5)]), "mine", "token")
    assert png.startswith(b"\x89PNG\r\n")
    assert os.environ["MPLBACKEND"] == "nonsense"


def test_scores_that_fail_are_a_note(place, capsys, monkeypatch):
    monkeypatch.setattr(score, "scores", raising(NO_MEMORY))
    with pytest.warns(match="no scores were computed: .*memory"):
        assert run(capsys, *train(place))[0] == 0
    assert (place / "new" / TENSORS).exists()
    assert (place / "new" / "curve.png").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_a_name_that_is_no_utf8_is_written_out(place, capsys):
    name = os.fsdecode(b"r\xe9.jsonl")
    (place / "rows.jsonl").rename(place / name)
    status, _, err = run(capsys, *train(place, "--json", data=name))
    assert status == 0, err
    assert record(place)["data"]["source"] == r"r\xe9.jsonl"


def test_a_shared_record_has_no_path(place, capsys):
    assert run(capsys, *train(place))[0] == 0
    for file in (RECORD, "README.md"):  # adapter_config.json names the base so that it is found
        assert str(place) not in (place / "new" / file).read_text("utf-8")
    assert record(place)["data"]["source"] == "rows.jsonl"


@pytest.mark.parametrize(
    "error", [OSError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "gone"), ValueError("closed"), None]
)
def test_training_outlives_its_terminal(place, capsys, monkeypatch, error):
    class Gone:
        encoding = "utf-8"
        write = flush = raising(error)

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stderr", error and Gone())
    status, _, _ = run(capsys, *train(place))
    monkeypatch.undo()
    assert status == 0
    assert (place / "new" / TENSORS).exists()


def test_memory_that_runs_out_after_the_last_step_costs_no_adapter(place, capsys, monkeypatch):
    whole, calls = loop.evaluate, []

    def evaluate(*given, **how):
        calls.append(given)
        return whole(*given, **how) if len(calls) < 4 else raising(NO_MEMORY)()

    monkeypatch.setattr(loop, "evaluate", evaluate)
    with pytest.warns(match="new holds what was learned in 3 steps"):
        status, _, err = run(capsys, *train(place))
    assert status == 1
    assert "error: there is not enough memory for this\n  found: RuntimeError" in err
    assert record(place)["training"]["steps"] == record(place)["training"]["best_step"] == 3


def test_a_step_that_fails_costs_that_step_alone(place, monkeypatch):
    whole, calls = loop.step_, []

    def step(*given):
        calls.append(given)
        return whole(*given) if len(calls) < 3 else raising(NO_MEMORY)()

    monkeypatch.setattr(loop, "step_", step)
    base = inlay.load(place / "base")
    with pytest.raises(CapacityError), pytest.warns(match="what was learned in 2 steps"):
        inlay.train(base, place / "rows.jsonl", output=place / "new", max_steps=5)
    assert record(place)["training"]["steps"] == 2
    assert base.adapters["new"].trained is False
    assert base.get("new") is base.adapters["new"]


def test_the_first_step_that_fails_leaves_nothing(place, monkeypatch):
    monkeypatch.setattr(loop, "step_", raising(DivergedError("at once")))
    base = inlay.load(place / "base")
    with pytest.raises(DivergedError):
        inlay.train(base, place / "rows.jsonl", output=place / "new", max_steps=5)
    assert not (place / "new").exists()
    assert not base.adapters


def test_a_listener_that_raises_costs_nothing(place):
    def on_step(progress):
        if progress.step == 2:
            raise LookupError("a fault of the user's")

    base = inlay.load(place / "base")
    with pytest.raises(LookupError, match="a fault of the user's"), pytest.warns(match="what was learned in 2 steps"):
        inlay.train(base, place / "rows.jsonl", output=place / "new", max_steps=5, on_step=on_step)
    assert record(place)["training"]["steps"] == 2


def test_a_record_that_can_not_be_written_costs_no_adapter(place, capsys, monkeypatch):
    monkeypatch.setattr(jobs.Job, "_record", raising(TypeError("no JSON")))
    with pytest.warns(match="the record of the run could not be written: no JSON"):
        assert run(capsys, *train(place))[0] == 0
    assert set(record(place)) >= {"format", "base"}
    assert run(capsys, "inspect", place / "new")[0] == 0


def signals(monkeypatch, numbers, at):
    """Send these, one after the other, while the step `at` is under way."""
    whole, calls = loop.step_, []

    def step(*given):
        calls.append(given)
        if len(calls) == at:
            for number in numbers:
                signal.raise_signal(number)
        return whole(*given)

    monkeypatch.setattr(loop, "step_", step)


@pytest.mark.parametrize("number", output.STOPPING)
def test_a_stopped_run_is_evaluated_where_it_stopped(place, capsys, monkeypatch, number):
    signals(monkeypatch, [number], at=3)
    before = signal.getsignal(number)
    status, _, err = run(capsys, *train(place, "--max-steps", 90, "--eval-every", 30))
    assert status == 130
    assert "stopped   after 3 of 90 steps; what was learned so far is kept\n" in err
    training = record(place)["training"]
    assert [step for step, _ in training["eval_losses"]] == [0, 3]
    assert (training["steps"], training["best_step"], training["interrupted"]) == (3, 3, True)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("second", output.STOPPING)
def test_a_second_request_ends_the_step_and_keeps_what_was_learned(place, capsys, monkeypatch, second):
    signals(monkeypatch, [output.STOPPING[-1], second, second], at=3)
    status, _, err = run(capsys, *train(place, "--max-steps", 90, "--eval-every", 30))
    assert status == 130
    assert "stopped   after 2 of 90 steps; what was learned so far is kept, not evaluated\n" in err
    training = record(place)["training"]
    assert [step for step, _ in training["eval_losses"]] == [0]
    assert (training["steps"], training["best_step"]) == (2, 2)


def test_a_system_that_asks_for_an_end_does_not_wait_for_a_long_evaluation(place, capsys, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE_SECONDS", 0.0)
    signals(monkeypatch, [signal.SIGTERM], at=3)
    _, _, err = run(capsys, *train(place, "--max-steps", 90, "--eval-every", 30))
    assert "what was learned so far is kept, not evaluated" in err
    assert record(place)["training"]["best_step"] == 3


def test_what_later_steps_have_lost_is_said_to_be(place, capsys, monkeypatch):
    losses = iter([5.0, 1.0, 3.0])
    monkeypatch.setattr(loop, "evaluate", lambda *given, **how: next(losses))
    signals(monkeypatch, [signal.SIGINT], at=3)
    _, _, err = run(capsys, *train(place, "--max-steps", 90, "--eval-every", 2))
    assert "kept as it was at step 2: later steps were worse on the held-out rows" in err
    assert record(place)["training"]["best_step"] == 2


def test_a_signal_that_is_ignored_stays_ignored(place, capsys, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        signals(monkeypatch, [signal.SIGHUP], at=2)
        assert run(capsys, *train(place))[0] == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def synced(monkeypatch):
    """The files and directories that have been synced, by inode, and what was not when it was renamed."""
    seen, missed, fsync, rename = set(), [], os.fsync, os.rename

    def remember(handle):
        fsync(handle)
        seen.add(os.fstat(handle).st_ino)

    def check(source, target, *given, **named):
        paths = [source, *(os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names)]
        missed.extend(str(path) for path in paths if os.stat(path).st_ino not in seen)
        return rename(source, target, *given, **named)

    monkeypatch.setattr(os, "fsync", remember)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, check)
    return seen, missed


def test_everything_is_on_the_disk_before_it_has_its_name(place, capsys, synced):
    seen, missed = synced
    assert run(capsys, *train(place))[0] == 0
    assert missed == []
    assert place.stat().st_ino in seen
    assert {file.stat().st_ino for file in (place / "new").iterdir()} <= seen


def test_a_rename_before_a_sync_would_be_seen(tmp_path, synced):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    os.rename(tmp_path / "a", tmp_path / "b")
    assert [os.path.basename(path) for path in synced[1]] == ["a", "x"]


def test_a_system_that_can_not_sync_is_no_error_and_a_disk_that_fails_is(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.EINVAL, "Invalid argument")))
    output.write_file(tmp_path / "x", b"1")
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"), output.new_directory(tmp_path / "y") as partial:
        (partial / "z").write_text("z")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


HOLDS = """
import sys, time
from pathlib import Path
from inlay.io import output
with output.new_directory(Path(sys.argv[1])) as partial:
    (partial / "large").write_text("x")
    print("there", flush=True)
    time.sleep(60)
"""


def holding(path):
    """A process that is filling `path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def partials(place):
    return [path for path in place.iterdir() if output.PARTIAL in path.name]


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_fills_is_not(tmp_path):
    dead, live = holding(tmp_path / "new"), holding(tmp_path / "new")
    try:
        dead.kill()
        dead.wait()
        assert len(partials(tmp_path)) == 2
        with output.new_directory(tmp_path / "new") as partial:
            (partial / "y").write_text("y")
            assert len(partials(tmp_path)) == 3  # ours beside them: the dead one goes when the new one stands
        assert [(path / "large").read_text() for path in partials(tmp_path)] == ["x"]
        live.send_signal(signal.SIGTERM)
        assert live.wait() == -signal.SIGTERM  # as if nothing had caught it
        assert partials(tmp_path) == []
        assert (tmp_path / "new" / "y").exists()
    finally:
        for process in (dead, live):
            process.kill()
            process.communicate()


def test_what_a_killed_process_left_is_swept_first_where_its_room_is_needed(tmp_path, monkeypatch):
    (tmp_path / f".new{output.PARTIAL}abc").mkdir()

    def room(path):
        return types.SimpleNamespace(free=10 if partials(tmp_path) else 100)

    monkeypatch.setattr(output.shutil, "disk_usage", room)
    output.check_space(tmp_path / "new", 5)
    assert partials(tmp_path)
    output.check_space(tmp_path / "new", 50)
    assert not partials(tmp_path)
    with pytest.raises(OutputError, match="the disk is full"):
        output.check_space(tmp_path / "new", 500)


def test_sweeping_touches_nothing_else(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("x")
    (tmp_path / f".new{output.PARTIAL}link").symlink_to(tmp_path / "precious")
    (tmp_path / f".newer{output.PARTIAL}abc").mkdir()
    (tmp_path / f".new{output.PARTIAL}abc").mkdir()
    with output.new_directory(tmp_path / "new"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".new{output.PARTIAL}link",
        f".newer{output.PARTIAL}abc",
        "new",
        "precious",
    ]
    assert (tmp_path / "precious" / "x").exists()


def test_a_killed_write_of_a_file_is_swept(tmp_path):
    (tmp_path / f".x{output.PARTIAL}abc").write_text("half")
    output.write_file(tmp_path / "x", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) & 0o077 == 0o077 & ~output._umask() & 0o066


@pytest.mark.parametrize("number", output.STOPPING)
def test_requests_in_a_row_leave_nothing(tmp_path, monkeypatch, number):
    """The second comes while the first is being cleaned up after."""
    whole = output.shutil.rmtree

    def rmtree(*given, **named):
        signal.raise_signal(number)
        whole(*given, **named)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    def fill():
        with output.new_directory(tmp_path / "new") as partial:
            (partial / "x").write_text("x")
            signal.raise_signal(number)

    monkeypatch.setattr(output.shutil, "rmtree", rmtree)
    before = signal.signal(number, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            fill()
        assert signal.getsignal(number) == interrupt
    finally:
        signal.signal(number, before)
    assert list(tmp_path.iterdir()) == []


def test_a_request_while_the_directory_is_made_is_answered_within(tmp_path, monkeypatch):
    whole = output.tempfile.mkdtemp

    def mkdtemp(**named):
        signal.raise_signal(signal.SIGINT)
        return whole(**named)

    monkeypatch.setattr(output.tempfile, "mkdtemp", mkdtemp)
    with pytest.raises(KeyboardInterrupt), output.new_directory(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []


def comparison(place, *extra):
    return ["compare", place / "base", place / "rows.jsonl", "--output", place / "all", "--max-steps", 2, *extra]


def test_a_comparison_whose_methods_all_failed_has_failed(place, capsys, monkeypatch):
    monkeypatch.setattr(compare, "_apart", lambda arguments: (1, "", "error: the training diverged\n  found: NaN\n"))
    status, out, _ = run(capsys, *comparison(place, "--methods", "lora,ia3"))
    assert status == 1
    assert out.count("not trained: error: the training diverged · found: NaN") == 2


def test_a_comparison_that_is_interrupted_keeps_what_is_finished(place, capsys, monkeypatch):
    def apart(arguments):
        if "ia3" in arguments:
            raise KeyboardInterrupt
        return run(capsys, *arguments)

    monkeypatch.setattr(compare, "_apart", apart)
    status, out, err = run(capsys, *comparison(place, "--methods", "lora,ia3,bitfit"))
    assert status == 130
    assert "stopped   in ia3; what was trained before is kept" in err
    assert "| lora |" in out
    assert "ia3" not in out
    assert (place / "all" / "lora" / TENSORS).exists()
    assert [result["method"] for result in json.loads((place / "all" / compare.RESULTS).read_text())] == ["lora"]


def test_a_comparison_that_is_interrupted_at_once_leaves_nothing(place, capsys, monkeypatch):
    monkeypatch.setattr(compare, "_apart", raising(KeyboardInterrupt()))
    assert run(capsys, *comparison(place))[0] == 130
    assert not (place / "all").exists()
    assert partials(place) == []


@pytest.fixture
def hostile_folder(tmp_path, monkeypatch):
    """The current folder, with files that are named like modules; each says that it ran."""
    for name in ("traceback", "rich", "torch", "yaml"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w'); raise ImportError")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_process_of_our_own_runs_nothing_of_the_current_folder(hostile_folder):
    assert compare._apart(["--version"]) == (0, f"inlay {inlay.__version__}\n", "")
    assert compare._apart(["plan", "--no-such-flag"])[0] == 2
    assert not (hostile_folder / "ran").exists()


def test_python_m_runs_nothing_of_the_current_folder(hostile_folder):
    done = subprocess.run([sys.executable, "-m", "inlay", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"inlay {inlay.__version__}\n"), done.stderr
    assert not (hostile_folder / "ran").exists()


def test_the_folder_would_have_run(hostile_folder):
    subprocess.run([sys.executable, "-c", "import traceback"], capture_output=True)
    assert (hostile_folder / "ran").exists()


def test_a_request_to_end_reaches_the_process_of_a_comparison(monkeypatch, tmp_path):
    """It is told to end, and waited for."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\ntrap 'echo ended > ended; exit 130' TERM\necho > ready\nwhile :; do sleep 0.05; done\n"
    )
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(script))

    def interrupt(number, frame):
        if not (tmp_path / "ready").exists():
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            compare._apart(["train"])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "ended").exists()
    assert time.monotonic() - start < 30
