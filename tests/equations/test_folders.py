"""Where rows come from: splits of folders, the hub's and `datasets`' layouts, lists and frames of Python."""

import json
import os

import datasets
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from inlay.data.forms import read, read_rows
from inlay.data.sources import TEST, VALIDATION, name_of
from inlay.errors import DataError, FormatError, UnknownNameError


def put(folder, *names):
    """Files of two rows each, which say where they stand."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": f"{name} {i}", "completion": "a"} for i in range(2)]
        if path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            path.write_text("\n".join(map(json.dumps, rows)))


def files_of(rows):
    return sorted({row.prompt.rsplit(" ", 1)[0] for row in rows})


@pytest.mark.parametrize(
    ("names", "train", "held", "left"),
    [
        (["train.jsonl", "valid.jsonl", "test.jsonl"], ["train.jsonl"], ["valid.jsonl"], "test.jsonl"),
        (["my-train.jsonl", "my_dev.jsonl"], ["my-train.jsonl"], ["my_dev.jsonl"], ""),
        (["tell-train.jsonl", "tell-held-out.jsonl"], ["tell-train.jsonl"], ["tell-held-out.jsonl"], ""),
        (["train-1.jsonl", "train2.jsonl", "eval.jsonl"], ["train-1.jsonl", "train2.jsonl"], ["eval.jsonl"], ""),
        (["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"], [], ""),
        (["a.jsonl", "test.jsonl"], ["a.jsonl"], [], "test.jsonl"),
        (["a.jsonl", "train.jsonl"], ["train.jsonl"], [], "a.jsonl"),
        (["contest.jsonl", "training.jsonl"], ["training.jsonl"], [], "contest.jsonl"),
        (["train/a.jsonl", "test/b.jsonl", "validation/c.jsonl"], ["train/a.jsonl"], ["validation/c.jsonl"], "test/b.jsonl"),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            [],
            "data/test-00000-of-00001.parquet",
        ),
        (["main/train-00000-of-00001.parquet"], ["main/train-00000-of-00001.parquet"], [], ""),
        (["rows.jsonl", "old/rows.jsonl"], ["rows.jsonl"], [], "old/rows.jsonl"),
        (["rows.jsonl", ".ipynb_checkpoints/rows.jsonl", "._rows.jsonl"], ["rows.jsonl"], [], ""),
        (["train.jsonl", "more.jsonl.gz"], ["train.jsonl"], [], "more.jsonl.gz"),
        (["train.jsonl", "more.xlsx", "old.TAR"], ["train.jsonl"], [], "more.xlsx, old.TAR"),
        (["a.JSONL", "b.jsonl"], ["a.JSONL", "b.jsonl"], [], ""),
        (["a.jsonl", "1/2/3/4/5/b.jsonl"], ["a.jsonl"], [], "1/2/3/4/5"),
    ],
)  # fmt: skip
def test_files_of_a_folder_are_trained_on_by_their_split(tmp_path, names, train, held, left):
    put(tmp_path, *names)
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "README.md").write_text("# Rows")
    data = read(tmp_path)
    assert files_of(data.rows) == train
    assert files_of(data.held_out) == held
    assert data.held_out_name == ", ".join(held)
    assert data.notes == ((f"left alone: {left}",) if left else ())


def test_the_split_that_is_read_is_the_one_that_is_wanted(tmp_path):
    put(tmp_path, "train.jsonl", "valid.jsonl", "test.jsonl")
    assert files_of(read(tmp_path, TEST).rows) == ["test.jsonl"]
    assert files_of(read(tmp_path, VALIDATION).rows) == ["valid.jsonl"]
    assert files_of(read(f"{tmp_path}:train", TEST).rows) == ["train.jsonl"]
    assert files_of(read(f"{tmp_path}:dev").rows) == ["valid.jsonl"]
    assert read(f"{tmp_path}:test").held_out == []
    with pytest.raises(UnknownNameError, match="has test, train, validation, not extra"):
        read(f"{tmp_path}:extra")
    put(tmp_path / "only", "rows.jsonl")
    assert files_of(read(tmp_path / "only", TEST).rows) == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("names", "error", "says"),
    [
        (["test.jsonl"], DataError, "no rows to train on"),
        (["valid.jsonl", "test.jsonl"], DataError, "test.jsonl, valid.jsonl"),
        (["test-train.jsonl"], FormatError, "test-train: test, train"),
        (["main/train.jsonl", "socratic/train.jsonl"], DataError, "main: 1 files"),
        (["data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"], DataError, "train-00001-of-00003"),
        (["rows.jsonl.gz", "rows.zip"], DataError, "rows.jsonl.gz, rows.zip"),
        (["README.md"], DataError, "no data files"),
    ],
)
def test_folders_without_one_set_of_rows_to_train_on_are_refused(tmp_path, names, error, says):
    put(tmp_path, *names)
    with pytest.raises(error) as caught:
        read(tmp_path)
    assert says in str(caught.value)


ROWS = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    for i, call in enumerate(
        [
            {"type": "function", "function": {"name": "tide", "arguments": {"harbour": "Brest"}}},
            {"type": "function", "function": {"name": "wind", "arguments": {"speed": {"knots": 3}}}},
        ]
    )
]


def same(rows, expected=ROWS):
    assert [row.messages for row in rows] == [row["messages"] for row in expected]


def test_a_data_set_that_was_saved_is_read_without_what_arrow_filled_in(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    same(read_rows(tmp_path / "saved"))
    whole = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    whole.save_to_disk(tmp_path / "dict")
    data = read(tmp_path / "dict")
    same(data.rows)
    assert data.notes == ("left alone: test/data-00000-of-00001.arrow",)
    same(read_rows(f"{tmp_path / 'dict'}:test"), ROWS[:1])


def saved(folder, **rows):
    datasets.DatasetDict({name: datasets.Dataset.from_list(of) for name, of in rows.items()}).save_to_disk(folder)
    return folder


def test_splits_of_one_kind_that_were_saved_keep_their_names(tmp_path):
    """One of the two would be left out without a word."""
    two = saved(tmp_path / "two", train_sft=ROWS, train_gen=ROWS[:1], test_sft=ROWS[:1])
    with pytest.raises(DataError, match=r"no rows to train on\n(.|\n)*train_gen/.*train_sft/"):
        read(two)
    same(read_rows(f"{two}:train_sft"))
    same(read_rows(f"{two}:train_gen"), ROWS[:1])
    with pytest.raises(DataError, match="no rows to train on"):
        read(saved(tmp_path / "unnamed", alpha=ROWS, beta=ROWS))
    one = saved(tmp_path / "one", train_sft=ROWS, more=ROWS[:1], test=ROWS[:1])
    same(read(one).rows)
    same(read_rows(f"{one}:more"), ROWS[:1])
    with pytest.raises(UnknownNameError, match="has test, train, not dev"):
        read(f"{one}:dev")


def test_a_data_set_that_was_saved_over_a_larger_one_has_its_own_files_alone(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path, num_shards=2)
    datasets.Dataset.from_list(ROWS[:1]).save_to_disk(tmp_path, num_shards=1)
    assert len([*tmp_path.glob("*.arrow")]) == 3  # two of then
    same(read_rows(tmp_path), ROWS[:1])
    (tmp_path / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="a part of this data set is missing"):
        read(tmp_path)
    for names in ('[{"filename": "../rows.arrow"}]', "[3]", '"rows"'):
        (tmp_path / "state.json").write_text(f'{{"_data_files": {names}}}')
        with pytest.raises(FormatError, match="does not say which files it has"):
            read(tmp_path)


def test_links_that_are_not_followed_are_named(tmp_path):
    put(tmp_path, "here/a.jsonl", "there/b.jsonl")
    (tmp_path / "here" / "train").symlink_to(tmp_path / "there")
    (tmp_path / "here" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    data = read(tmp_path / "here")
    assert files_of(data.rows) == ["here/a.jsonl"]
    assert data.notes == ("left alone: train, gone.jsonl",)


def test_arrays_and_pipes_are_refused_in_words(tmp_path):
    with pytest.raises(DataError, match="messages is a ndarray, not a list"):
        read_rows([{"messages": numpy.array(ROWS[0]["messages"], dtype=object)}])
    with pytest.raises(DataError, match="input is a ndarray, not a string"):
        read_rows([{"instruction": "a", "input": numpy.array(["b", "c"]), "output": "d"}])
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UnknownNameError, match="is neither a file nor a folder"):
        read_rows(tmp_path / "rows.jsonl")


def test_parquet_and_every_value_of_python_give_the_same_rows(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=1)
    with pyarrow.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    set_ = datasets.Dataset.from_list(ROWS)
    for source in (tmp_path / "rows.parquet", tmp_path / "rows.arrow", ROWS, tuple(ROWS), set_, pandas.DataFrame(ROWS)):
        same(read_rows(source))
    data = read(datasets.DatasetDict(train=set_, validation=set_.select([1])))
    same(data.rows)
    same(data.held_out, ROWS[1:])


def test_nulls_of_a_call_stay_where_a_person_wrote_them(tmp_path):
    call = {"type": "function", "function": {"name": "tide", "arguments": {"harbour": None}}}
    rows = [{"messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}]}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    assert read_rows(tmp_path / "rows.jsonl")[0].messages[1]["tool_calls"] == [call]


def test_missing_values_of_a_data_frame_are_not_there():
    frame = pandas.DataFrame({"prompt": ["a", "b"], "completion": ["c", "d"], "system": ["s", float("nan")]})
    assert [row.prompt for row in read_rows(frame)] == [
        [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        "b",
    ]
    with pytest.raises(FormatError, match="can't be read"):
        read_rows(pandas.DataFrame({"text": ["a", 3]}))
    with pytest.raises((DataError, FormatError), match=r"twice|[Dd]uplicate"):
        read_rows(pandas.DataFrame([["a", "b"]], columns=["text", "text"]))


@pytest.mark.parametrize("source", [{"prompt": ["a"]}, 3, b"rows", iter([{"text": "a"}]), [], None])
def test_values_that_hold_no_rows_are_refused(source):
    with pytest.raises(DataError):
        read_rows(source)


def test_a_source_is_named_without_where_it_lies(tmp_path):
    put(tmp_path, "secret/rows.jsonl", "secret/train.jsonl")
    assert name_of(tmp_path / "secret" / "rows.jsonl") == "rows.jsonl"
    assert name_of(str(tmp_path / "secret") + "/") == "secret"
    assert name_of(f"{tmp_path / 'secret'}:train") == "secret:train"
    assert name_of("gone/rows.jsonl") == "rows.jsonl"
    assert name_of("someone/rows:test") == "someone/rows:test"
    assert name_of(ROWS) == "list of 2 rows"
    assert name_of(pandas.DataFrame(ROWS)) == "data frame of 2 rows"
    assert name_of(datasets.Dataset.from_list(ROWS)) == "data set of 2 rows"
