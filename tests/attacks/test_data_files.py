"""Data files that are not what they say, stand for more than they are, or say one thing twice: refused in words, at once."""

import contextlib
import datetime
import json

import pyarrow
import pyarrow.parquet
import pytest

from inlay.data import arrow, files, json_text
from inlay.data.forms import read, read_rows
from inlay.errors import CapacityError, DataError, FormatError, InlayError


def refused(path, *words, error=InlayError):
    with pytest.raises(error) as caught:
        read_rows(path)
    said = str(caught.value)
    assert all(word in said for word in words), said
    return said


PAIRS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
LAYOUTS = {
    "an object per line": "\n".join(map(json.dumps, PAIRS)),
    "a list on one line": json.dumps(PAIRS),
    "a list over many lines": "\n " + json.dumps(PAIRS, indent=2) + "\n",
    "objects over many lines": "\n".join(json.dumps(row, indent=2) for row in PAIRS),
    "objects without lines": "".join(map(json.dumps, PAIRS)),
    "an object that holds the list": json.dumps({"version": "1", "data": PAIRS, "tags": ["x"]}),
    "such an object over many lines": json.dumps({"version": "1", "data": PAIRS}, indent=1),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson"])
@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_of_json_are_found_however_they_are_laid_out(tmp_path, monkeypatch, suffix, text):
    path = tmp_path / f"rows{suffix}"
    path.write_text("\ufeff" + text, "utf-8")
    for chunk in (1 << 20, 7):
        monkeypatch.setattr(json_text, "_CHUNK", chunk)
        assert [(row.prompt, row.completion) for row in read_rows(path)] == [("a", "b"), ("c", "d")]


def test_one_row_with_a_list_of_objects_is_a_row(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({"prompt": "q", "completion": "a", "tools": [{"name": "f"}]}))
    assert read_rows(tmp_path / "rows.json")[0].tools == [{"name": "f"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}, indent=1))
    assert read_rows(tmp_path / "rows.jsonl")[0].form == "messages"


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("rows.json", '[{"prompt": "a"}\n {"prompt": "b"}]', "rows.json:2, column 2: Expecting ',' delimiter"),
        ("rows.json", '[{"prompt": "a"}]\n\n x', "rows.json:3, column 2: Extra data"),
        ("rows.json", '[\n{"prompt": "a"},\n  {"prompt" "b"}]', "rows.json:3, column 13: Expecting ':'"),
        ("rows.json", '[{"prompt": "a"}', "rows.json:1, column 17"),
        ("rows.json", '{\n "data": [\n', "rows.json:3, column 1"),
        ("rows.jsonl", '{"prompt" "a"}\n{"a": 1}\n{"b" 1}', "rows.jsonl:3, column 6"),
        ("rows.jsonl", '[{"a": 1}, ' + "[" * 100_000, "rows.jsonl:1, column 12"),
        ("rows.jsonl", '{"text": ' + "1" * 5000 + "}", "rows.jsonl:1: Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_named_with_its_place(tmp_path, monkeypatch, name, text, says):
    (tmp_path / name).write_text(text)
    for chunk in (1 << 20, 5):
        monkeypatch.setattr(json_text, "_CHUNK", chunk)
        refused(tmp_path / name, says, error=FormatError)


TWICE = {
    "a.jsonl": '{"prompt": "a", "completion": "WRONG", "completion": "b"}\n' * 3,
    "b.json": '[{"prompt": "a", "completion": "WRONG", "completion": "b"}]',
    "c.jsonl": '{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
    "d.csv": "prompt,completion,completion\na,WRONG,b\n",
    "e.tsv": "prompt\tcompletion\tcompletion\na\tWRONG\tb\n",
}


@pytest.mark.parametrize(("name", "text"), TWICE.items())
def test_a_name_that_stands_twice_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    refused(tmp_path / name, "twice", f"{name}", "'co", error=FormatError)


def test_a_column_of_arrow_that_stands_twice_is_refused(tmp_path):
    values = pyarrow.array(["a"])
    table = pyarrow.Table.from_arrays([values, values], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "stands twice", "'text'", error=FormatError)
    struct = pyarrow.StructArray.from_arrays([values, values], names=["role", "role"])
    inner = pyarrow.Table.from_arrays([pyarrow.ListArray.from_arrays([0, 1], struct)], names=["messages"])
    pyarrow.parquet.write_table(inner, tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "stands twice", "'role'", "messages", error=FormatError)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"\x1f\x8b\x08\x00", "gunzip"),
        (b"PK\x03\x04", "unzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"SQLite format 3\x00", "SQLite"),
    ],
)
def test_files_that_hold_no_rows_as_they_are_are_named_for_what_they_are(tmp_path, start, says):
    for name in ("rows.jsonl", "rows.csv", "rows.parquet", "rows"):
        (tmp_path / name).write_bytes(start + b"\x00" * 50)
        refused(tmp_path / name, says, error=FormatError)


def test_a_file_is_read_as_what_it_is_whatever_its_name(tmp_path):
    table = pyarrow.Table.from_pylist(PAIRS)
    pyarrow.parquet.write_table(table, tmp_path / "rows.jsonl")
    assert read_rows(tmp_path / "rows.jsonl")[1].prompt == "c"
    (tmp_path / "rows.txt").write_text("Once upon a time")
    refused(tmp_path / "rows.txt", '{"text": ', error=FormatError)
    (tmp_path / "rows.csv").write_text("prompt;completion\na;b\n")
    refused(tmp_path / "rows.csv", "not separated by commas", error=FormatError)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    refused(tmp_path / "rows.parquet", "not a Parquet file", error=FormatError)
    (tmp_path / "rows.arrow").write_bytes(b"\xff\xff\xff\xff" + b"\x01" * 40)
    refused(tmp_path / "rows.arrow", "not an Arrow file", error=FormatError)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("open.csv", 'prompt,completion\na,"b\nc,d\ne,f\n'),  # the rest of the file would be one answer
        ("inner.csv", 'prompt,completion\na,"b" c\n'),
        ("open.tsv", 'prompt\tcompletion\na\t"b\nc\td\n'),
    ],
)
def test_quotes_that_swallow_rows_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    refused(tmp_path / name, "this is not CSV", name, error=FormatError)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
@pytest.mark.parametrize("start", [b"", b'{"text": "', b'[{"text": "a"}, "', b'text\n"'])
def test_a_file_that_was_grown_is_refused_at_the_longest_row(tmp_path, monkeypatch, name, start):
    """What `truncate -s 8G` leaves: a hole, which reads as zeros."""
    monkeypatch.setattr(files, "MAX_ROW_CHARACTERS", 1 << 16)
    with (tmp_path / name).open("wb") as file:
        file.write(start)
        file.truncate(8 << 20)
    refused(tmp_path / name)


def test_a_file_larger_than_the_memory_is_not_begun(tmp_path):
    with (tmp_path / "rows.jsonl").open("wb") as file:
        file.truncate(1 << 43)
    refused(tmp_path / "rows.jsonl", "larger than the free memory", error=CapacityError)


def test_a_row_that_is_a_library_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW_CHARACTERS", 1000)
    for name, text in {
        "a.jsonl": json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "a" * 2000}),
        "b.json": json.dumps([{"text": "a"}, {"text": "a" * 2000}]),
        "c.csv": "text\n" + "a" * 2000,
    }.items():
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, name, error=DataError if name != "c.csv" else InlayError)


def test_a_parquet_file_that_inflates_is_refused_by_its_own_figures(tmp_path, monkeypatch):
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1_000_000, pyarrow.int32()), ["a" * 1000])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column], names=["text"]), tmp_path / "many.parquet")
    monkeypatch.setattr(arrow, "MAX_INFLATED_BYTES", 100 << 20)
    monkeypatch.setattr(arrow, "_rows", None)  # not a row is looked at
    assert (tmp_path / "many.parquet").stat().st_size < 200_000
    refused(tmp_path / "many.parquet", "far larger", "1", error=CapacityError)
    long = pyarrow.Table.from_pylist([{"text": "a" * (60 << 20)}, {"text": "b" * (60 << 20)}])
    pyarrow.parquet.write_table(long, tmp_path / "long.parquet", compression="zstd", use_dictionary=False)
    refused(tmp_path / "long.parquet", "far larger", error=CapacityError)


def test_a_parquet_file_that_inflates_by_its_dictionary_is_stopped(tmp_path, monkeypatch):
    """Its figures are small: hundreds of rows, all of them one long text that is written once."""
    monkeypatch.setattr(arrow, "MAX_INFLATED_BYTES", 20 << 20)
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 300, pyarrow.int32()), ["a" * (1 << 18)])
    kept = tmp_path / "kept.parquet"  # Arrow's type is a dictionary still
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column], names=["text"]), kept)
    refused(kept, "far larger", error=CapacityError)
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_arrays([column], names=["text"]).cast(pyarrow.schema({"text": "string"})), path
    )
    refused(path, "far larger", error=CapacityError)


def test_a_row_of_parquet_is_no_longer_than_others(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "MAX_ROW_BYTES", 1 << 16)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * (1 << 20)]}), tmp_path / "rows.parquet")
    refused(tmp_path / "rows.parquet", "too long to be read", error=DataError)
    texts = ["b"] * 100 + ["a" * (1 << 20)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "one.parquet")
    refused(tmp_path / "one.parquet", "too long to be read", error=DataError)


def test_names_of_any_number_and_length_make_short_messages(tmp_path):
    rows = {f"column {i}": "a" for i in range(3000)}
    assert len(refused([rows], "column 9", "and 2,990 more")) < 1000
    assert len(refused([{"x" * 100_000: "a"}], "xxx...")) < 1000
    assert len(refused([{"messages": [{"role": "user", "content": "a", "x" * 100_000: 1}]}], "xxx...")) < 1000
    pyarrow.parquet.write_table(pyarrow.table({name: ["a"] for name in rows}), tmp_path / "rows.parquet")
    refused(tmp_path / "rows.parquet", "and 2,990 more", error=DataError)


def test_sound_files_that_compress_well_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "MAX_INFLATED_BYTES", 1 << 14)
    rows = [{"text": f"{i * i * 7919} sails of {i * 31} ships, {i}"} for i in range(2000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert len(read_rows(tmp_path / "rows.parquet")) == 2000


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.timestamp("us", "Europe/Paris"), pyarrow.timestamp("ns"), pyarrow.timestamp("s", "+30:99"), pyarrow.date32(),
        pyarrow.time64("ns"), pyarrow.duration("s"), pyarrow.decimal128(5, 2), pyarrow.binary(),
        pyarrow.list_(pyarrow.timestamp("ms", "No/Where")), pyarrow.struct({"at": pyarrow.date64()}),
        pyarrow.map_(pyarrow.string(), pyarrow.string()),
    ],
    ids=str,
)  # fmt: skip
def test_types_that_no_text_is_made_of_are_named_where_they_are_used_and_where_not(tmp_path, kind):
    table = pyarrow.table({"text": ["a", "b"], "at": pyarrow.array([None, None], kind)})
    pyarrow.parquet.write_table(table, tmp_path / "beside.parquet")
    data = read(tmp_path / "beside.parquet")
    assert ([row.text for row in data.rows], data.notes) == (["a", "b"], ("1 column not used: at",))
    pyarrow.parquet.write_table(table.rename_columns(["n", "text"]), tmp_path / "used.parquet")
    written = pyarrow.parquet.read_schema(tmp_path / "used.parquet").field("text").type
    refused(tmp_path / "used.parquet", f"text is a {written}, not a string", error=DataError)


def test_dates_beyond_those_of_python_are_no_matter_where_they_are_not_used(tmp_path):
    far = pyarrow.array([2**62, -(2**62)], pyarrow.int64()).cast(pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "at": far}), tmp_path / "rows.parquet")
    assert len(read_rows(tmp_path / "rows.parquet")) == 2
    assert "datetime" in refused([{"text": datetime.datetime(2026, 1, 1)}], error=DataError)


def test_a_broken_parquet_file_is_refused_wherever_it_is_broken(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS * 50), tmp_path / "sound.parquet")
    sound = (tmp_path / "sound.parquet").read_bytes()
    for at in range(4, len(sound) - 8, 23):
        for damaged in (sound[:at], sound[:at] + bytes([sound[at] ^ 0xFF]) + sound[at + 1 :]):
            (tmp_path / "rows.parquet").write_bytes(damaged)
            with contextlib.suppress(InlayError):
                read_rows(tmp_path / "rows.parquet")
