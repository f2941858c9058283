"""Rows out of files: what is accepted, what is refused and in which words, and that nothing is lost uncounted."""

import json

import pytest

from inlay.data.forms import read_rows
from inlay.data.rows import Row
from inlay.data.split import digest
from inlay.errors import DataError, FormatError, UnknownNameError
from inlay.tasks.causal_lm import prepare
from tests.support import bases, templates

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def read(tmp_path, content, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text(content, "utf-8")
    return read_rows(path)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"messages": MESSAGES}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt+completion"),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, "prompt+completion"),
        ({"text": "a"}, "text"),
    ],
)
def test_a_form_is_told_by_its_keys(tmp_path, row, form):
    (only,) = read(tmp_path, lines(row))
    assert (only.form, only.source) == (form, "rows.jsonl:1")


def test_the_first_reference_is_the_completion_and_all_are_kept(tmp_path):
    (row,) = read(tmp_path, lines({"prompt": "a", "references": ["b", "c"]}))
    assert (row.completion, row.references) == ("b", ("b", "c"))


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    rows = read(tmp_path, "\ufeff" + lines({"text": "a"}) + "\n\n" + lines({"text": "b\u2028c"}, {"text": "d"}))
    assert [row.source for row in rows] == ["rows.jsonl:1", "rows.jsonl:4", "rows.jsonl:5"]


@pytest.mark.parametrize("first", ['{"text": "a"}\n', '{\n"text":\n"a"\n}\n'])
@pytest.mark.parametrize("mark", ["\ufeff", "\ufeff \n", "\n\ufeff"])
def test_files_that_were_joined_may_each_begin_with_a_mark(tmp_path, first, mark):
    rows = read(tmp_path, first + mark + lines({"text": "b"}, {"text": "\ufeffc"}) + "\n\ufeff")
    assert [row.text for row in rows] == ["a", "b", "\ufeffc"]


def test_an_object_with_one_list_is_that_list(tmp_path):
    rows = read(tmp_path, json.dumps({"version": 1, "data": [{"text": "a"}, {"text": "b"}]}), "rows.json")
    assert [row.text for row in rows] == ["a", "b"]


def test_a_long_field_of_a_csv_file_is_read_whole(tmp_path):
    (row,) = read(tmp_path, "prompt,completion\na," + "b" * 200_000 + "\n", "rows.csv")
    assert len(row.completion) == 200_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"text" "b"}\n{"te\n', ["rows.jsonl:2, column 9", "rows.jsonl:3, column 2"]),
        ("[" * 100_000, ["rows.jsonl:1", "recursion"]),
    ],
)
def test_every_malformed_line_is_named_with_its_place(tmp_path, content, says):
    with pytest.raises(FormatError) as caught:
        read(tmp_path, content)
    assert all(text in str(caught.value) for text in says)


def test_a_malformed_json_file_is_named_with_its_line(tmp_path):
    with pytest.raises(FormatError, match=r"rows\.json:3, column 1"):
        read(tmp_path, '[\n{"text": "a"},\n]', "rows.json")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([1], "a list, not an object"),
        ({"prompt": "a", "completion": 3}, "completion is a int, not a string"),
        ({"prompt": "a", "completion": None}, "completion is null"),
        ({"text": None}, "text is null"),
        ({"text": "\ud800"}, "half a character"),
        ({"messages": []}, "an empty list, not a list of messages"),
        ({"messages": [{"role": "user"}]}, "message 0 has no content"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "role 'narrator'"),
        ({"prompt": "a", "references": []}, "references is empty"),
        ({"mesages": MESSAGES}, "mesages: did you mean messages?"),
        ({"promt": "a", "complation": "b"}, "promt: did you mean prompt?; complation: did you mean completion?"),
    ],
)
def test_a_row_of_no_form_is_named_with_what_is_wrong(tmp_path, row, says):
    with pytest.raises(DataError) as caught:
        read(tmp_path, lines({"text": "a"}, row))
    assert "rows.jsonl:2: " in str(caught.value)
    assert says in str(caught.value)


def test_ten_problems_are_named_and_the_rest_counted(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, lines(*[{"text": 1}] * 25))
    assert str(caught.value).count("rows.jsonl:") == 10
    assert "and 15 more" in str(caught.value)


def test_rows_of_two_forms_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"messages at rows\.jsonl:2, text at rows\.jsonl:1"):
        read(tmp_path, lines({"text": "a"}, {"messages": MESSAGES}))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="empty"):
        read(tmp_path, content)


def test_a_missing_file_is_refused_with_the_nearest(tmp_path):
    read(tmp_path, lines({"text": "a"}))
    with pytest.raises(UnknownNameError, match=r"hint: .*rows\.jsonl"):
        read_rows(tmp_path / "row.jsonl")


def test_only_files_of_a_folder_are_read(tmp_path):
    (tmp_path / "old.jsonl").mkdir()
    assert [row.text for row in (read(tmp_path, lines({"text": "a"})), read_rows(tmp_path))[1]] == ["a"]


def test_a_digest_follows_the_content_and_not_the_file(tmp_path):
    one = read(tmp_path, lines({"text": "a"}, {"text": "b"}))
    assert digest(one) == digest(read(tmp_path, lines({"text": "a"}, {"text": "b"}), "other.jsonl"))
    assert digest(one) != digest(one[::-1])
    assert digest(one) != digest(read(tmp_path, lines({"text": "a"}, {"text": "c"})))


def test_rows_that_cannot_be_trained_on_are_named_together(tmp_path):
    rows = read(tmp_path, lines({"prompt": "a", "completion": "b"}, *[{"prompt": "a", "completion": " "}] * 3))
    with pytest.raises(DataError) as caught:
        prepare(rows, bases.tokenizer(), 50, "completions", "drop")
    assert [f"rows.jsonl:{n}" in str(caught.value) for n in (1, 2, 3, 4)] == [False, True, True, True]


def test_a_row_that_the_template_refuses_is_named(tmp_path):
    tok = bases.tokenizer(template=templates.NO_SYSTEM)
    rows = read(tmp_path, lines({"messages": MESSAGES}, {"messages": [{"role": "system", "content": "s"}, *MESSAGES]}))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no system role"):
        prepare(rows, tok, 50, "completions", "drop")


@pytest.mark.parametrize("too_long", ["drop", "window"])
def test_nothing_left_says_how_long_the_longest_row_is(tmp_path, too_long):
    rows = read(tmp_path, lines({"text": "abc"}, {"text": "abcdefg"}))
    with pytest.raises(DataError, match=r"longest of 8 tokens(.|\n)*--max-length 8"):
        prepare(rows, bases.tokenizer(), 1, "completions", too_long)


def test_rows_keep_their_order_and_number_over_many_chunks(monkeypatch):
    monkeypatch.setattr("inlay.tasks.causal_lm._CHUNK_ROWS", 3)
    rows = [Row("prompt+completion", f"x:{i}", prompt="a" * i, completion="b") for i in range(1, 9)]
    prepared = prepare(rows, bases.tokenizer(), 50, "completions", "drop")
    assert [example.source for example in prepared.examples] == [row.source for row in rows]
    assert prepared.num_trained == 2 * len(rows)  # the letter and the end
    assert prepared.num_tokens == sum(len(row.prompt) + 4 for row in rows)


def test_a_length_that_the_model_has_no_positions_for_is_not_advised():
    for positions, says in (
        (None, "--max-length 91, or"),
        (91, "--max-length 91, or"),
        (90, "shorter rows: the model has 90 positions, or"),
    ):
        with pytest.raises(DataError, match=f"hint:  {says} --too-long window"):
            prepare(letters(90, 80), bases.tokenizer(), 20, "all", "drop", positions=positions)


def letters(*lengths):
    return [Row("text", f"x:{i}", text="a" * length) for i, length in enumerate(lengths)]


def test_many_rows_that_are_too_long_say_what_would_keep_them():
    rows = letters(*[5] * 8, 40, 90)
    assert prepare(rows, bases.tokenizer(), 20, "all", None).advice == "--max-length 91 keeps 100 %"
    assert prepare(rows, bases.tokenizer(), 20, "all", "window").advice == ""
    assert prepare(letters(*[5] * 9, 90), bases.tokenizer(), 20, "all", None).advice == ""  # a tenth
    some = letters(*[5] * 80, *[40] * 18, 90, 91)
    assert (
        prepare(some, bases.tokenizer(), 20, "all", None).advice
        == "--max-length 41 keeps 98 %, --max-length 92 keeps 100 %"
    )
    assert prepare(some, bases.tokenizer(), 20, "all", None, positions=60).advice == "--max-length 41 keeps 98 %"
    assert prepare(rows, bases.tokenizer(), 20, "all", None, positions=30).advice == "--max-length 30 keeps 80 %"


def test_most_rows_are_left_out_only_if_that_was_asked_for():
    rows = letters(5, 5, 5, 40, 41, 42, 90)
    with pytest.raises(DataError) as caught:
        prepare(rows, bases.tokenizer(), 20, "all", None)
    said = str(caught.value)
    assert said.startswith("4 of 7 rows are longer than max_length, and would be left out")
    assert "--max-length 91 keeps 100 %, or --too-long window, or --too-long drop" in said
    assert prepare(rows, bases.tokenizer(), 20, "all", "drop").num_dropped == 4
    assert prepare(rows, bases.tokenizer(), 20, "all", "window").num_windowed == 4
    assert prepare(rows, bases.tokenizer(), 20, "all", None, may_be_empty=True).num_dropped == 4
    assert prepare(letters(5, 5, 40, 40), bases.tokenizer(), 20, "all", None).num_dropped == 2  # half


def test_a_problem_of_a_row_brings_what_to_do(tmp_path):
    rows = read(tmp_path, lines({"messages": MESSAGES[:1]}))
    with pytest.raises(DataError, match="hint:  add its answer, or --train-on all"):
        prepare(rows, bases.tokenizer(), 50, "completions", "drop")
