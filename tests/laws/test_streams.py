"""Rows of a large file stay on the disk, and a run over them ends with the same bytes as over rows that are held."""

import json
import os
import random

import pytest

import inlay
import inlay.planning.train  # before Python has met its bounds in a test
from inlay.data import forms, split
from inlay.disk import OnDisk
from inlay.errors import DataError, FormatError, OutputError
from inlay.streams import rows as streams
from inlay.streams.samples import Samples
from inlay.tasks import causal_lm
from inlay.text.mask import Example
from tests.support import bases

AWKWARD = b'\xef\xbb\xbf\r\n{"prompt": "a\\nb", "completion": "\xc3\xa9", "lang": "fr"}\r\n\n   \n{"prompt": "c", "completion": "d"}'
"""A mark at the start, empty lines, both ends of lines, and none at the end."""


@pytest.fixture
def streamed(monkeypatch):
    monkeypatch.setattr(streams, "PART_OF_MEMORY", 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return bases.directory(tmp_path_factory.mktemp("streams") / "base")


def file(tmp_path, content, name="rows.jsonl"):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def test_a_small_file_is_held(tmp_path):
    assert isinstance(streams.read(bases.jsonl(tmp_path / "rows.jsonl", bases.rows(3))).rows, list)


@pytest.mark.parametrize("content", [AWKWARD, b"".join(json.dumps(row).encode() + b"\n" for row in bases.rows(40))])
def test_rows_are_those_that_would_be_held(tmp_path, streamed, content):
    path = file(tmp_path, content)
    found, held = streams.read(path), forms.read(path)
    assert isinstance(found.rows, OnDisk)
    assert [*found.rows] == [*held.rows]
    assert (found.name, found.notes, found.unused) == (held.name, held.notes, held.unused)
    assert found.rows[-1] == held.rows[-1]
    assert found.rows[1:7:2] == held.rows[1:7:2]
    with pytest.raises(IndexError):
        found.rows[len(held.rows)]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b'{"text": "a"}\n{"text": \n', FormatError),
        (b'{"text": "a"}\n{"text": "\xff"}\n', FormatError),
        (b'{"text": "a", "text": "b"}\n{"text": "a"}\n', FormatError),
        (b'{"text": "a"}\n{"txet": "a"}\n', DataError),
        (b'{"text": "a"}\n{"prompt": "a", "completion": "b"}\n', DataError),
        (b'{"text": "a"}\n' + b'{"a":' * 5000 + b"1" + b"}" * 5000, FormatError),
        (b'{"text": "a"}\n' + b'["a"]\n', DataError),
        (b'{"text": "a"}\n\x00\x01\x02\n', FormatError),
    ],
)
def test_what_would_be_refused_is_refused(tmp_path, streamed, content, error):
    path = file(tmp_path, content)
    for read in (streams.read, forms.read):
        with pytest.raises(error):
            read(path)


def test_a_line_without_end_is_refused_early(tmp_path, streamed, monkeypatch):
    monkeypatch.setattr("inlay.data.files.MAX_ROW_CHARACTERS", 1000)
    with pytest.raises(DataError, match="too long to be read"):
        streams.read(file(tmp_path, b'{"text": "a"}\n{"text": "' + b"a" * 9000 + b'"}\n'))


@pytest.mark.parametrize("content", [b'[{"text": "a"}]', b'{"text":\n "a"}\n', b"\n", b'"a"\n', b""])
def test_other_layouts_are_read_as_before(tmp_path, streamed, content):
    assert not streams.is_large(file(tmp_path, content))


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("prompts", [1, 3, 200])
def test_the_same_rows_are_held_out(tmp_path, streamed, fraction, prompts):
    path = bases.jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"p{i % prompts}", "completion": f"c{i}"} for i in range(200)]
    )
    parts = [split.hold_out(read(path).rows, fraction) for read in (streams.read, forms.read)]
    assert [[*part] for part in parts[0]] == [[*part] for part in parts[1]]
    assert all(isinstance(part, OnDisk) for part in parts[0])


def test_samples_come_back_as_they_were():
    draw = random.Random(2)
    made = [
        Example([draw.randrange(1 << 20) for _ in range(n)], [draw.randrange(2) for _ in range(n)], f"{name}:{i}", ends)
        for i, (n, name, ends) in enumerate([(3, "a", (7,)), (90_000, "b:c", (7, 8)), (1, "a", ()), (400_000, "a", (7,)), (5, "a", (7,))])
    ]  # fmt: skip
    samples = Samples()
    samples += made[:2]
    assert samples[1] == made[1]
    samples += made[2:]
    assert [*samples] == made
    assert samples[-2:] == made[-2:]


def test_a_disk_that_is_full_is_said(monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    samples = Samples()
    monkeypatch.setattr(samples, "_file", Full())

    def add_and_read():
        nonlocal samples
        samples += [Example([1, 2], [0, 1], "a:1", (2,))]
        return samples[0]

    with pytest.raises(OutputError, match="the disk is full"):
        add_and_read()


def test_a_run_ends_with_the_same_bytes(base, tmp_path, monkeypatch):
    path = bases.jsonl(tmp_path / "rows.jsonl", [*bases.rows(60), *bases.rows(2)])
    files, seen = [], []
    for part in (1.0, 0.0):
        monkeypatch.setattr(streams, "PART_OF_MEMORY", part)
        out = tmp_path / f"out{part}"
        inlay.train(
            inlay.load(base),
            path,
            output=out,
            max_steps=6,
            batch_size=5,
            max_length=20,
            method=inlay.Lora(r=2),
            progress=False,
        )
        record = json.loads((out / "inlay.json").read_text("utf-8"))
        seen.append((record["data"], record["training"]["losses"], record["training"]["eval_losses"], record["text"]))
        files.append((out / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert seen[0] == seen[1]


def appended(path):
    with path.open("ab") as file:
        file.write(b'{"prompt": "more", "completion": "of it"}\n')


def cut(path):
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 20)


def rewritten(path):
    """As many bytes as before, of the same time."""
    before, content = path.stat(), path.read_bytes()
    with path.open("rb+") as file:
        file.write(content.replace(b'"', b" ", 2).replace(b"  ", b'""', 1))
        file.seek(len(content) - 6)
        file.write(b"ZZ")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "found"), [(appended, "bytes when"), (cut, "bytes when"), (rewritten, "is not what")]
)
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, streamed, change, found):
    path = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(40))
    rows = streams.read(path).rows
    assert rows[39]
    change(path)
    with pytest.raises(DataError, match="changed while it was read") as refused:
        rows[39]
    assert found in str(refused.value)


def test_a_file_that_is_touched_or_replaced_is_read_on(tmp_path, streamed):
    path = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(40))
    rows, held = streams.read(path).rows, forms.read(path).rows
    os.utime(path)
    assert [*rows] == held
    bases.jsonl(tmp_path / "other.jsonl", bases.rows(7, seed=1)).replace(path)
    assert [*rows] == held


@pytest.mark.parametrize("change", [appended, cut, rewritten])
def test_a_run_refuses_what_changes_before_its_rows_are_tokens(base, tmp_path, streamed, change, monkeypatch):
    path, prepare = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(60)), causal_lm.prepare

    def later(rows, *how, **more):
        change(path)
        return prepare(rows, *how, **more)

    monkeypatch.setattr(causal_lm, "prepare", later)
    with pytest.raises(DataError, match="changed while it was read"):
        inlay.train(inlay.load(base), path, output=tmp_path / "out", max_steps=2, progress=False)
    assert not (tmp_path / "out").exists()


def test_no_row_is_held(tmp_path, streamed):
    """What a row holds is counted while samples are made: at most those that are looked at together."""
    path = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(1500))
    rows = streams.read(path).rows
    made = causal_lm.prepare(rows, bases.tokenizer(), 100, "completions", None)
    assert isinstance(made.examples, Samples)
    assert len(made.examples) == 1500
    held = forms.read(path).rows
    assert [*made.examples] == causal_lm.prepare(held, bases.tokenizer(), 100, "completions", None).examples
