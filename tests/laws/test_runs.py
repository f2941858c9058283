"""The record of runs is sound whoever writes it when, and no run suffers for it."""

import contextlib
import hashlib
import signal
import sqlite3
import subprocess
import time

import pytest

import inlay
from inlay.errors import CompatibilityError, FormatError, OutputError, UnknownNameError
from inlay.runs import database, provenance, record, recording
from inlay.runs.database import Database
from tests.support import bases, forks, runs
from tests.support.command import run as command
from tests.support.command import run_json

RELEASED = {1: "3fe71a426bc562cbd2808353400a4108cd1690f089f467a0c71931b7192490d1"}
"""Version -> the SHA-256 of the statements that lead to it: what was released is never changed."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    path = tmp_path / "kept" / "runs.sqlite"
    monkeypatch.setenv("INLAY_RUNS", str(path))
    return path


def is_sound(path):
    with sqlite3.connect(path) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_is_put_comes_back(place):
    held, made = Database(place), runs.run()
    held.put(made)
    found = held.run(made.id)
    assert found.curve == made.curve
    for name in (*database.PLAIN, *database.PARTS):
        assert getattr(found, name) == getattr(made, name), name
    more = [record.Point(41, 0.5), record.Point(42, 0.25, 1.5, 80.0, 50_000)]
    made.curve += more
    made.outcome, made.ended, made.scores = record.DONE, made.started + 90, {"eval_loss": 1.5}
    held.put(made)
    assert held.run(made.id).curve[-2:] == more
    assert [(one.outcome, one.scores, one.seconds) for one in held.runs()] == [(record.DONE, {"eval_loss": 1.5}, 90)]
    with pytest.raises(UnknownNameError):
        held.run(77)


def test_every_earlier_version_is_brought_to_the_newest(place, monkeypatch):
    newer = (*database.MIGRATIONS, ("ALTER TABLE runs ADD COLUMN mood TEXT", "UPDATE runs SET mood = 'calm'"))
    for version in range(len(newer)):
        path = place.with_name(f"{version}.sqlite")
        monkeypatch.setattr(database, "MIGRATIONS", newer[:version])
        if version:
            Database(path).put(runs.run())
        monkeypatch.setattr(database, "MIGRATIONS", newer)
        Database(path).put(made := runs.run())
        assert len(Database(path).runs()) == 1 + bool(version)
        assert Database(path).run(made.id).curve == made.curve
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)
            moods = [mood for (mood,) in connection.execute("SELECT mood FROM runs ORDER BY id")]
            assert moods == ["calm"] * bool(version) + [None]
    monkeypatch.undo()
    with pytest.raises(CompatibilityError, match="newer Inlay"):
        Database(path).runs()


def test_a_migration_that_fails_leaves_the_version_before(place, monkeypatch):
    Database(place).put(runs.run())
    broken = (*database.MIGRATIONS, ("ALTER TABLE runs ADD COLUMN mood TEXT", "ALTER TABLE nowhere ADD COLUMN x"))
    monkeypatch.setattr(database, "MIGRATIONS", broken)
    with pytest.raises(OutputError, match="nowhere"):
        Database(place).runs()
    monkeypatch.undo()
    assert len(Database(place).runs()) == 1
    assert is_sound(place)


WRITE = """
import sys
from tests.support import runs
from inlay.runs.database import Database
from pathlib import Path
held, number = Database(Path(sys.argv[1]), 60), int(sys.argv[2])
for turn in range(int(sys.argv[3])):
    made = runs.run(steps=40, data={"source": f"{number}.{turn}"})
    whole, made.curve = made.curve, []
    for point in whole[::4]:
        made.curve.append(point)
        held.put(made)
    print(made.id, flush=True)
"""


def test_eight_processes_write_at_once(place):
    started = [forks.Process(WRITE, place, number, 2, stdout=subprocess.PIPE) for number in range(8)]
    ids = [int(word) for process in started for word in process.communicate(timeout=120)[0].split()]
    assert [process.returncode for process in started] == [0] * 8
    found = Database(place).runs()
    assert sorted(ids) == [one.id for one in found]
    assert {one.data["source"] for one in found} == {f"{number}.{turn}" for number in range(8) for turn in range(2)}
    assert {len(Database(place).run(one.id).curve) for one in found} == {11}
    assert is_sound(place)


def test_a_kill_while_it_is_written_leaves_it_sound(place):
    for delay in range(12):
        process = forks.Process(WRITE, place, delay, 1000, stdout=subprocess.PIPE)
        assert process.stdout.readline()
        time.sleep(0.003 * delay)
        process.kill()
        process.communicate()
        assert is_sound(place)
    found = Database(place).runs()
    assert len(found) >= 12
    Database(place).put(made := runs.run())
    assert len(Database(place).run(made.id).curve) == 41


KILLED = """
import time
from inlay.runs.recording import note, recording
with recording("train", ["base"]):
    note(base={"name": "tiny"})
    print("begun", flush=True)
    time.sleep(60)
"""


def test_what_was_running_when_its_process_went_was_killed(place, capsys):
    process = forks.Process(KILLED, stdout=subprocess.PIPE)
    assert process.stdout.readline()
    assert [one["outcome"] for one in run_json(capsys, "runs")["runs"]] == ["running"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [one["outcome"] for one in run_json(capsys, "runs")["runs"]] == ["killed"]
    other = {**provenance.process(), "began": 1.0}
    assert provenance.is_gone(other), "another process has its number"
    assert not provenance.is_gone({**other, "host": "elsewhere"})
    assert not provenance.is_gone(provenance.process())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return inlay.load(bases.directory(tmp_path_factory.mktemp("base") / "tiny"), dtype="float32")


def trained(base, target, **how):
    try:
        return inlay.train(base, bases.rows(44), output=target, max_steps=4, batch_size=3, progress=False, **how)
    finally:
        if target.name in base.adapters:
            base.detach(target.name)


def damaged(path):
    Database(path).put(runs.run())
    path.write_bytes(path.read_bytes()[:3000] + b"x" * 3000)


def foreign(path):
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but long enough to be looked at" * 9)


def below_a_file(path):
    path.parent.write_text("a file where the folder would lie")


def read_only(path):
    path.mkdir(parents=True)


@pytest.mark.parametrize("spoil", [damaged, foreign, below_a_file, read_only])
def test_a_database_that_can_not_be_written_costs_one_warning(place, base, tmp_path, spoil):
    spoil(place)
    with pytest.warns(UserWarning, match=r"the record of runs is not written") as said:
        report = trained(base, tmp_path / "mine")
    assert len([one for one in said if "record of runs" in str(one.message)]) == 1
    assert report.steps == 4
    assert (tmp_path / "mine").is_dir()
    if spoil is not below_a_file:
        with pytest.raises((FormatError, OutputError)) as caught:
            Database(place).runs()
        assert caught.value.hint


def test_a_locked_database_costs_one_warning_and_is_written_when_it_is_free(place, base, tmp_path, monkeypatch):
    Database(place).put(runs.run())
    monkeypatch.setattr(recording.Database, "found", classmethod(lambda cls, timeout: Database(place, 0.05)))
    holder = sqlite3.connect(place, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.warns(UserWarning, match="database is locked"):
        trained(base, tmp_path / "mine", on_step=lambda progress: progress.step == 3 and holder.rollback())
    found = Database(place).runs()
    assert [one.outcome for one in found] == ["running", "done"]
    assert len(Database(place).run(2).curve) == 5


def test_a_run_from_python_is_recorded(place, base, tmp_path):
    report = trained(base, tmp_path / "mine")
    (found,) = Database(place).runs()
    assert (found.command, found.outcome, found.standing, found.arguments) == ("train", "done", "done", [])
    assert found.base["weights"] == base.fingerprint.weights
    assert found.adapter["path"] == str(tmp_path / "mine")
    assert found.data["rows"] + found.data["held_out"] == 44
    assert found.scores["eval_loss"] == report.eval_loss
    assert found.ended >= found.started
    curve = Database(place).run(found.id).curve
    assert [point.step for point in curve] == [0, 1, 2, 3, 4]
    assert curve[-1].held_out == report.eval_loss
    assert curve[-1].tokens == report.tokens


def test_how_a_run_ended_is_recorded(place, base, tmp_path, capsys):
    def fail(progress):
        if progress.step == 2:
            raise OSError("the moon is gone\nand more")

    with pytest.warns(UserWarning, match="holds what was learned"), pytest.raises(OSError, match="moon"):
        trained(base, tmp_path / "one", on_step=fail)
    for verb, error in (("merge", OutputError("no place\n  found: here")), ("eval", KeyboardInterrupt())):
        with contextlib.suppress(OutputError, KeyboardInterrupt), recording.recording(verb, ["a"]):
            recording.note(base={"name": "x"})
            raise error
    with recording.recording("eval"):
        pass  # nothing was found to work on
    ends = [(one.command, one.outcome, one.error) for one in Database(place).runs()]
    assert ends == [("train", "failed", "the moon is gone"), ("merge", "failed", "no place"), ("eval", "stopped", "")]


def test_commands_are_recorded_with_their_arguments_and_compared(place, tmp_path, capsys):
    model = bases.directory(tmp_path / "tiny")
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(44))
    how = ("--max-steps", 3, "--batch-size", 3, "--dtype", "float32")
    for name, rate in (("one", 1e-3), ("two", 2e-2)):
        status, _, err = command(
            capsys, "train", model, rows, "--output", tmp_path / name, "--learning-rate", rate, *how
        )
        assert status == 0, err
    for verb in (("eval", model, rows), ("merge", model, tmp_path / "one", "--output", tmp_path / "whole")):
        more = ("--adapter", tmp_path / "one", "--dtype", "float32") if verb[0] == "eval" else ()
        assert command(capsys, *verb, *more)[0] == 0
    for verb in (
        ("quantize", model, "--scheme", "int8", "--output", tmp_path / "small"),
        ("combine", tmp_path / "one", tmp_path / "two", "--output", tmp_path / "both"),
    ):
        status, _, err = command(capsys, *verb)
        assert status == 0, err
    assert command(capsys, "train", model, rows, "--output", tmp_path / "x", "--show-tokens", 1)[0] == 0
    listed = run_json(capsys, "runs", "--last", 9)["runs"]
    assert [one["command"] for one in listed] == ["train", "train", "eval", "merge", "quantize", "combine"]
    assert {one["outcome"] for one in listed} == {"done"}
    assert listed[0]["arguments"][:2] == [str(model), str(rows)]
    differs = run_json(capsys, "runs", "compare", 1, 2)["differs"]
    assert differs["settings"]["learning_rate"] == [1e-3, 2e-2]
    assert differs["scores"]["eval_loss"][0] > differs["scores"]["eval_loss"][1]
    assert "data" not in differs
    assert "base" not in differs
    _, out, _ = command(capsys, "runs", "compare", 1, 2)
    assert "learning_rate: 0.001 → 0.02" in out
    shown = run_json(capsys, "runs", "show", 1)
    assert [point["step"] for point in shown["curve"]] == [0, 1, 2, 3]
    _, out, _ = command(capsys, "runs", "list")
    assert len(out.splitlines()) == 6
    assert command(capsys, "runs", "show", 99)[0] == 1


SECRET = "hf_" + "q" * 34


def test_nothing_secret_is_kept(place):
    arguments = ["base", "--hub-token", "abc", f"--api-key={SECRET}", "--keys", "x", "--show-tokens", "2", f"a{SECRET}"]
    arguments += ["https://ada:pass@host/rows.jsonl", SECRET]
    with recording.recording("train", arguments):
        recording.note(base={"name": "x"}, notes={"again": f"inlay train {SECRET}", "url": "s3://me:mine@bucket"})
    (found,) = Database(place).runs()
    assert found.arguments[:7] == ["base", "--hub-token", "***", "--api-key=***", "--keys", "***", "--show-tokens"]
    assert found.arguments[-1] == "***"
    for secret in (SECRET[3:], "abc", "pass", "mine@"):
        assert secret.encode() not in place.read_bytes(), secret


def test_nothing_is_recorded_where_that_is_said_nor_by_other_ranks(place, base, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    trained(base, tmp_path / "one")
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("INLAY_RUNS", "none")
    trained(base, tmp_path / "two")
    assert not place.exists()
    monkeypatch.delenv("INLAY_RUNS")
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "data" / "store"))
    assert database.place() == tmp_path / "data" / "runs.sqlite"


def test_what_was_released_of_the_migrations_stays():
    for version, digest in RELEASED.items():
        statements = "\n".join(database.MIGRATIONS[version - 1])
        assert hashlib.sha256(statements.encode()).hexdigest() == digest
    assert len(RELEASED) == len(database.MIGRATIONS)
