"""What changes around a run while it is under way changes nothing of what it learns."""

import datetime
import time

import pytest

import inlay
from inlay.formats.peft import TENSORS
from inlay.io import records
from inlay.streams import rows as streams
from tests.support import bases


@pytest.fixture
def learned(tmp_path, one_thread):
    """(what a listener is given the run's files and step) -> the bytes and the record of the adapter."""
    bases.directory(tmp_path / "base")
    base = inlay.load(tmp_path / "base", dtype="float32")

    def learned(name, listen=lambda rows, held, step: None):
        rows = bases.jsonl(tmp_path / f"{name}.jsonl", bases.rows(40))
        held = bases.jsonl(tmp_path / f"{name}-held.jsonl", bases.rows(20, seed=1))
        inlay.train(
            base,
            rows,
            eval_data=held,
            output=tmp_path / name,
            method=inlay.Lora(r=2, lora_dropout=0.1),
            max_steps=9,
            eval_every=3,
            save_every=2,
            on_step=lambda progress: listen(rows, held, progress.step),
        )
        base.detach(name)
        return (tmp_path / name / TENSORS).read_bytes(), records.read(tmp_path / name)

    return learned


def rewritten(rows, held, step):
    if step == 2:
        for path in (rows, held):
            path.write_text(path.read_text().replace("a", "e")[:400])


def removed(rows, held, step):
    if step == 2:
        rows.unlink()
        held.unlink()


def overwritten(rows, held, step):
    if step == 2:
        for path in (rows, held):
            with path.open("rb+") as file:
                file.write(b"x" * path.stat().st_size)


def appended(rows, held, step):
    if step == 2:
        for path in (rows, held):
            with path.open("a") as file:
                file.write('{"prompt": "more", "completion": "of it"}\n')


@pytest.mark.parametrize("part", [1.0, 0.0], ids=["held", "streamed"])
@pytest.mark.parametrize("change", [rewritten, removed, overwritten, appended])
def test_a_data_file_that_changes_between_steps(learned, change, part, monkeypatch):
    monkeypatch.setattr(streams, "PART_OF_MEMORY", part)
    whole, record = learned("whole")
    other, changed = learned("other", change)
    assert other == whole
    assert changed["data"]["sha256"] == record["data"]["sha256"]


def test_a_clock_that_jumps(learned, monkeypatch):
    whole, _ = learned("whole")
    now = time.time()
    jumps = iter([now, now - 1e8, now + 1e8, 0.0] * 10_000)

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromtimestamp(next(jumps), tz)

    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(datetime, "datetime", Clock)
    other, record = learned("other")
    assert other == whole
    assert 0 < record["training"]["seconds"] < 300
