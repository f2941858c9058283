"""Ends that nobody planned: a signal at any moment, an output that can't be written. What was learned is kept; nothing is half there."""

import json
import signal
import subprocess
import time

import pytest

from inlay.formats.peft import TENSORS
from inlay.io import output
from inlay.io.records import RECORD
from inlay.training import job as jobs
from tests.support import bases, forks
from tests.support.command import run


@pytest.fixture
def place(tmp_path):
    bases.directory(tmp_path / "base")
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(40))
    return tmp_path


def train(place, out, *extra):
    return ["train", place / "base", place / "rows.jsonl", "--output", out, "--max-steps", 3, "--r", 2, *extra]


def start(*arguments):
    return forks.Process(forks.INLAY, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def leftovers(place):
    return [path.name for path in place.rglob("*partial*")]


def test_a_request_to_end_keeps_what_was_learned(place):
    process = start(*train(place, place / "new", "--max-steps", 100_000, "--eval-every", 5))
    for line in process.stderr:
        if line.startswith("step ") and not line.split()[1].startswith("0/"):
            break
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was learned so far is kept" in err
    assert json.loads((place / "new" / RECORD).read_text())["training"]["interrupted"] is True
    assert leftovers(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_result_is_written_waits_for_it(place, capsys, monkeypatch, number):
    whole = jobs.Job._write

    def write(self, *given):
        whole(self, *given)
        signal.raise_signal(number)

    monkeypatch.setattr(jobs.Job, "_write", write)
    before = signal.getsignal(number)
    status, _, err = run(capsys, *train(place, place / "new"))
    assert status == 0, err
    assert (place / "new" / TENSORS).exists()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_model_is_merged_leaves_nothing(place, capsys, monkeypatch, number):
    from inlay.export import merge

    assert run(capsys, *train(place, place / "new"))[0] == 0
    monkeypatch.setattr(merge.checkpoint, "copy_rest", lambda source, target: signal.raise_signal(number))
    status, _, err = run(capsys, "merge", place / "base", place / "new", "--output", place / "merged")
    assert status == 130
    assert "interrupted" in err
    assert not (place / "merged").exists()
    assert leftovers(place) == []


def test_a_demo_that_is_stopped_leaves_nothing(place):
    process = start("demo", "--output", place / "demo")
    until = time.monotonic() + 60
    while not (place / "demo" / "tell-train.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not (place / "demo").exists()


def test_a_name_longer_than_the_file_system_takes_is_refused_before_anything_is_learned(place, capsys):
    status, out, err = run(capsys, *train(place, place / ("n" * 300)))
    assert (status, out) == (1, "")
    assert "there is no place for the output" in err
    assert "loss" not in err


def test_a_long_name_that_it_takes_is_written(place, capsys):
    assert run(capsys, *train(place, place / ("n" * 250)))[0] == 0
    assert (place / ("n" * 250) / TENSORS).exists()


def test_a_link_is_not_replaced(place, capsys):
    (place / "empty").mkdir()
    (place / "link").symlink_to(place / "empty")
    status, _, err = run(capsys, *train(place, place / "link"))
    assert status == 1
    assert "exists already" in err
    assert (place / "link").is_symlink()


def test_an_empty_directory_is_filled(place, capsys):
    (place / "new").mkdir()
    assert run(capsys, *train(place, place / "new"))[0] == 0
    assert (place / "new" / TENSORS).exists()


def test_what_the_system_refuses_at_the_end_loses_nothing(place, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    whole = output.tempfile.mkdtemp

    def mkdtemp(prefix, dir):
        if prefix.startswith(".new.partial"):
            raise PermissionError(13, "Permission denied")
        return whole(prefix=prefix, dir=dir)

    monkeypatch.setattr(output.tempfile, "mkdtemp", mkdtemp)
    status, _, err = run(capsys, *train(place, place / "new"))
    assert status == 1
    assert "there is no place for the output" in err
    kept = err.split("kept:")[1].split()[0]
    assert run(capsys, "inspect", kept)[0] == 0


def test_a_conversation_outlives_a_message_that_does_not_fit(place, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("say 3\n" + "x" * 100 + "\nsay 4\n/adapter nobody\n"))
    status, out, err = run(capsys, "chat", place / "base", "--max-new-tokens", 3)
    assert status == 0
    assert "longer than this model's positions" in err
    assert "/new forgets all; then /retry" in err
    assert out.strip()
    assert "'nobody'; there are none" in err
