"""Layouts of rows: each becomes one of three forms, and nothing that a row says is lost without a word."""

import json
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from inlay.data import forms
from inlay.data.forms import read, read_rows
from inlay.data.keys import COMPLETIONS, CONTEXTS, CONVERSATIONS, IGNORED, PROMPTS
from inlay.errors import DataError

ASKED = {"role": "user", "content": "How high is the tide at Brest?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": {"harbour": "Brest"}}}
SCHEMA = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}


def row_of(value):
    """The row, and the columns that it does not use."""
    unused = Counter()
    (row,) = forms.rows_of([(1, value)], "x", unused)
    return row, dict(unused)


def refusal(value):
    with pytest.raises(DataError) as caught:
        row_of(value)
    return str(caught.value)


def said(row):
    """Who says what, prompt and completion included."""
    parts = [("user", row.prompt), ("assistant", row.completion), ("text", row.text), (None, row.messages)]
    found = []
    for role, part in parts:
        if isinstance(part, str):
            found.append((role, part))
        found += [(message["role"], message["content"]) for message in part] if isinstance(part, list) else []
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"prompt": "q", "completion": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"prompt": "q", "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"instruction": "q", "output": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"instruction": "q", "input": "", "output": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"instruction": "q", "input": "i", "output": "a"}, [("user", "q\n\ni"), ("assistant", "a")]),
        ({"instruction": "q", "context": "c", "response": "a"}, [("user", "q\n\nc"), ("assistant", "a")]),
        ({"input": "q", "output": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"question": "q", "answer": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [3, 9]}}, [("user", "c\n\nq"), ("assistant", "a")]),
        ({"query": "q", "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"problem": "q", "solution": "a"}, [("user", "q"), ("assistant", "a")]),
        (
            {"instruction": "q", "output": "a", "system": "s", "history": [["b", "c"]]},
            [("system", "s"), ("user", "b"), ("assistant", "c"), ("user", "q"), ("assistant", "a")],
        ),
        ({"system_prompt": "s", "question": "q", "response": "a"}, [("system", "s"), ("user", "q"), ("assistant", "a")]),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            [("system", "s"), ("user", "q"), ("assistant", "a")],
        ),
        ({"conversation": [{"role": "User", "content": "q"}, {"role": "model", "content": "a"}]}, [("user", "q"), ("assistant", "a")]),
        ({"messages": json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])}, [("user", "q"), ("assistant", "a")]),
        ({"text": "t"}, [("text", "t")]),
    ],
)  # fmt: skip
def test_the_layouts_of_others_are_read_as_they_are(value, expected):
    row, unused = row_of(value)
    assert said(row) == expected
    assert unused == {}


def test_several_answers_are_references():
    assert row_of({"question": "q", "answers": ["a", "b"]})[0].references == ("a", "b")
    row, _ = row_of({"question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}})
    assert (row.completion, row.references) == ("a", ("a", "b"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"prompt": "q", "completion": "a", "input": "i", "lang": "br"}, ["input", "lang"]),
        ({"prompt": "q", "completion": "a", "answer": "b"}, ["answer"]),
        ({"instruction": "q", "output": "a", "text": "q a"}, ["text"]),
        ({"messages": [ASKED], "prompt": "q", "prompt_id": "1"}, ["prompt", "prompt_id"]),
        ({"text": "t", "meta": {"a": 1}, "id": 3, "source": "web", "metadata": {}}, ["meta"]),
        ({"text": "t", "label": None, "tag": float("nan")}, []),
    ],
)
def test_columns_that_are_not_used_are_counted_by_name(value, expected):
    assert list(row_of(value)[1]) == expected


def test_what_is_not_used_is_said_once_with_the_number_of_its_rows(tmp_path):
    rows = [{"text": "a", "lang": "br", "id": 1}, {"text": "b", "lang": "fr", "year": 3}]
    assert read(rows).notes == ("2 columns not used: lang, year (in 1 rows)",)
    assert read([{"text": "a", "id": 1}]).notes == ()


def test_parts_of_text_are_joined_and_others_refused_by_name():
    parts = [{"type": "text", "text": "Boil "}, {"type": "input_text", "text": "an egg?"}]
    assert said(row_of({"messages": [{"role": "user", "content": parts}]})[0]) == [("user", "Boil an egg?")]
    picture = {"type": "image_url", "image_url": {"url": "egg.png"}}
    assert "message 0 has a part of type image_url" in refusal({"messages": [{"role": "user", "content": [picture]}]})
    cached = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    assert "cache_control" in refusal({"messages": [{"role": "user", "content": [cached]}]})


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "assistant",
            "tool_calls": [{**CALL, "function": {"name": "tide", "arguments": '{"harbour": "Brest"}'}}],
        },
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "tool_calls": [{"id": "c1", "name": "tide", "arguments": {"harbour": "Brest"}}]},
    ],
)
def test_calls_reach_the_row_with_their_arguments_as_objects(turn):
    row, _ = row_of({"messages": [ASKED, turn], "tools": [SCHEMA]})
    message = row.messages[1]
    assert message["content"] == ""
    assert message["tool_calls"] == [CALL]
    assert row.tools == [SCHEMA]


def test_the_older_forms_of_calls_become_todays():
    call = {"name": "tide", "arguments": '{"harbour": "Brest"}'}
    answer = {"role": "function", "name": "tide", "content": "2.1 m"}
    value = {"messages": [ASKED, {"role": "assistant", "content": None, "function_call": call}, answer]}
    for schema in (SCHEMA["function"], SCHEMA):  # the second is a column of that name in the form of today
        assert row_of({**value, "functions": [schema]})[0].tools == [SCHEMA]
    row, _ = row_of({**value, "functions": [SCHEMA["function"]]})
    assert row.messages[1]["tool_calls"][0]["function"] == {"name": "tide", "arguments": {"harbour": "Brest"}}
    assert row.messages[2] == {"role": "tool", "name": "tide", "content": "2.1 m"}
    assert row.tools == [SCHEMA]
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "2.1 m"},
    ]
    row, _ = row_of({"conversations": turns, "tools": json.dumps([SCHEMA])})
    assert [message["role"] for message in row.messages] == ["user", "assistant", "tool"]
    assert row.messages[1]["tool_calls"][0]["function"] == {"name": "tide", "arguments": {"harbour": "Brest"}}
    assert row.tools == [SCHEMA]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_kept_by_whatever_name(key):
    row, _ = row_of({"messages": [ASKED, {"role": "assistant", "content": "24", key: "two dozens"}]})
    assert row.messages[1]["reasoning_content"] == "two dozens"


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ([{}, {}], None),
        ([{"weight": 0}, {"weight": 1}], (True, False, True, True)),
        ([{"weight": 0.0}, {}], (True, False, True, True)),
        ([{"train": False}, {"train": True}], (True, False, True, True)),
        ([{"training": True}, {"training": False}], (True, True, True, False)),
        ([{"loss": False}, {"weight": 1, "loss": True}], (True, False, True, True)),
    ],
)
def test_turns_say_whether_they_are_trained_on(flags, trained):
    turns = [{"role": "assistant", "content": "a", **flag} for flag in flags]
    row, _ = row_of({"messages": [ASKED, turns[0], ASKED, turns[1]]})
    assert row.trained == trained
    assert all(message.keys() == {"role", "content"} for message in row.messages)


def test_flags_of_a_completion_stand_behind_those_of_its_prompt():
    value = {"prompt": "q", "completion": [{"role": "assistant", "content": "a", "weight": 0}, ASKED], "system": "s"}
    assert row_of(value)[0].trained == (True, True, False, True)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"messages": [{**ASKED, "mood": "kind"}]}, "message 0 has an unknown key, mood"),
        ({"messages": [ASKED, {"role": "assistant", "contents": "a"}]}, "unknown key, contents, did you mean content?"),
        ({"messages": [ASKED, "b"]}, "message 1 is a str"),
        ({"messages": [{"content": "a"}]}, "message 0 has no role"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "has content that is a dict, not a string"),
        ({"messages": [{"role": "user", "content": "a", "value": "b"}]}, "has both content and value"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "weight 0.5, not 0 or 1"),
        ({"messages": [{"role": "user", "content": "a", "train": True}]}, "is of the user, and train is True"),
        ({"messages": [{"role": "user", "content": "a", "thinking": "b"}]}, "is of the user, and has thoughts"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "tide", "arguments": "{"}}]}]}, "has arguments that are not JSON"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "tide", "arguments": "[1]"}}]}]}, "has arguments that are a list, not an object"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "extra": 1}]}]}, "a call with an unknown key, extra"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"id": "c1"}]}]}, "not of a function with a name"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "name": "ebb"}]}]}, "a call with name beside its function"),
        ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{**CALL, "arguments": {"at": "Cork"}}]}]}, "a call with arguments beside"),
        ({"messages": [ASKED], "tools": "no JSON"}, "tools are not JSON"),
        ({"messages": [ASKED], "tools": [1]}, "tools is a list, not a list of schemas"),
        ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "two different system messages"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "keep chosen as completion"),
        ({"prompt": "q", "completion": "a", "label": False}, "is a preference"),
        ({"problem": "q", "solution": "a", "answer": "3"}, "answer and solution both answer"),
        ({"instruction": "q", "question": "r", "output": "a"}, "instruction and question both ask"),
        ({"instruction": "q", "input": "i", "context": "c", "output": "a"}, "input and context both go with instruction"),
        ({"instruction": "q", "input": 3, "output": "a"}, "input is a int"),
        ({"instruction": "q", "output": "a", "history": [["b"]]}, "history is not a list of pairs"),
    ],
)  # fmt: skip
def test_what_a_turn_or_a_row_can_not_say_is_named(value, says):
    assert says in refusal(value)
    assert "x:1: " in refusal(value)


def test_values_without_end_are_refused():
    deep = []
    for _ in range(200):
        deep = [deep]
    call = {**CALL, "function": {"name": "tide", "arguments": {"a": deep}}}
    assert "nested more than" in refusal({"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}]})
    call = {**CALL, "function": {"name": "tide", "arguments": {"a": {1, 2}}}}
    assert "holds what JSON has not" in refusal({"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}]})


def test_rows_of_python_are_left_as_they_were():
    value = {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL], "name": None}]}
    before = json.dumps(value)
    row_of(value)
    assert json.dumps(value) == before


def test_a_digest_of_the_forms_that_there_were_is_what_it_was():
    """As inlay.json files hold them: of plain rows the content is written as ever."""
    assert row_of({"text": "a"})[0].content() == '[null, null, null, [], "a"]'
    assert row_of({"prompt": "a", "completion": "b"})[0].content() == '[null, "a", "b", [], null]'
    messages = [{"content": "a", "role": "user"}, {"role": "assistant", "content": "b"}]
    assert row_of({"messages": messages})[0].content() == json.dumps([messages, None, None, [], None])


def test_schemas_and_flags_are_part_of_what_a_row_says():
    turns = [ASKED, {"role": "assistant", "content": "a", "weight": 0}]
    contents = [row_of(value)[0].content() for value in (
        {"messages": turns},
        {"messages": [turns[0], {**turns[1], "weight": 1}]},
        {"messages": turns, "tools": [SCHEMA]},
        {"messages": [ASKED, {"role": "assistant", "content": "a"}]},
    )]  # fmt: skip
    assert len(set(contents)) == 4


texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=8)
thoughts = st.sampled_from(["reasoning_content", "reasoning", "thinking"])
calls = st.builds(
    lambda name, value, as_text: {"id": "c1", "type": "function", "function": {"name": name, "arguments": json.dumps({"a": value}) if as_text else {"a": value}}},
    texts, texts, st.booleans(),
)  # fmt: skip
turns = st.one_of(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["system", "user", "tool", "human"]), texts),
    st.builds(lambda text: {"role": "user", "content": [{"type": "text", "text": text}]}, texts),
    st.builds(lambda text, key, thought: {"role": "assistant", "content": text, key: thought, "name": None}, texts, thoughts, texts),
    st.builds(lambda some: {"role": "assistant", "content": None, "tool_calls": some}, st.lists(calls, min_size=1, max_size=2)),
    st.builds(lambda text: {"from": "gpt", "value": text, "weight": 1}, texts),
)  # fmt: skip
conversations = st.lists(turns, min_size=1, max_size=4)
extra = st.dictionaries(
    st.sampled_from([
        "input", "context", "system", "system_prompt", "text", "history", "tools", "functions", "references", "answers",
        "answer", "lang", "id", "label", "prompt", "completion", "question",
    ]),
    st.one_of(texts, texts, st.none(), st.lists(texts, max_size=2), st.lists(st.tuples(texts, texts), min_size=1, max_size=2),
              st.builds(lambda text: [{"name": text}], texts)),
    max_size=3,
)  # fmt: skip
laid_out = st.one_of(
    *(st.fixed_dictionaries({asks: texts, answers: texts}) for asks in PROMPTS for answers in COMPLETIONS),
    *(st.fixed_dictionaries({key: conversations}) for key in CONVERSATIONS),
    st.fixed_dictionaries({"prompt": conversations, "completion": conversations}),
    st.fixed_dictionaries({"text": texts}),
)
with_context = st.one_of(
    *(
        st.fixed_dictionaries({asks: texts, context: texts, "answer": texts})
        for asks, names in CONTEXTS.items()
        for context in names
    ),
    st.fixed_dictionaries({"instruction": texts, "output": texts, "system": texts, "history": st.lists(st.tuples(texts, texts))}),
    st.fixed_dictionaries({"conversations": conversations, "system_prompt": texts, "tools": st.builds(lambda text: [{"name": text}], texts)}),
)  # fmt: skip
columns = st.builds(lambda extra, row: {**extra, **row}, extra, st.one_of(laid_out, with_context, with_context))


def told_apart(value, path="1"):
    """The value with every text in it made different from all others."""
    if isinstance(value, dict):
        return {
            key: item if key in ("role", "from", "type") else told_apart(item, f"{path}.{i}")
            for i, (key, item) in enumerate(value.items())
        }
    if isinstance(value, list | tuple):
        return [told_apart(item, f"{path}.{i}") for i, item in enumerate(value)]
    return f"{value}<{path}>" if isinstance(value, str) and not value.startswith('{"a": ') else value


def leaves(value):
    """Every string and number of a value but what only says how it is laid out."""
    if isinstance(value, dict):
        return [
            leaf
            for key, item in value.items()
            if key not in ("role", "from", "type", "weight")
            for leaf in leaves(item)
        ]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    if isinstance(value, str) and value.startswith('{"a": '):
        return leaves(json.loads(value))
    return [] if value is None or value == "" else [value]


@settings(max_examples=200)
@given(columns.map(told_apart))
def test_whatever_a_row_says_is_kept_or_named_or_the_row_is_refused(value):
    try:
        row, unused = row_of(value)
    except DataError:
        return
    kept = json.dumps([json.loads(row.content())], ensure_ascii=False)
    for key, item in value.items():
        if key in unused or key in IGNORED:
            continue
        lost = [leaf for leaf in leaves(item) if json.dumps(leaf, ensure_ascii=False)[1:-1] not in kept]
        assert lost == [], f"{key} lost {lost}"


@given(st.lists(turns, min_size=1, max_size=5), st.booleans())
def test_whatever_a_conversation_says_is_in_its_messages(conversation, is_beside):
    value = {"messages": conversation} | ({"tools": [SCHEMA]} if is_beside else {})
    row, unused = row_of(value)
    kept = json.dumps(json.loads(row.content()), ensure_ascii=False)
    assert unused == {}
    assert len(row.messages) == len(conversation)
    for leaf in leaves(conversation):
        assert json.dumps(leaf, ensure_ascii=False)[1:-1] in kept
    assert (row.tools == [SCHEMA]) == is_beside


def test_the_same_rows_are_read_from_python_as_from_a_file(tmp_path):
    rows = [{"instruction": "q", "input": "i", "output": "a"}, {"instruction": "r", "input": "", "output": "b"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [row.content() for row in read_rows(rows)] == [row.content() for row in read_rows(tmp_path / "rows.jsonl")]


def _results(*ids):
    return [{"role": "tool", "tool_call_id": each, "content": f"of {each}"} for each in ids]


def test_results_stand_in_the_order_of_their_calls():
    calls = {"role": "assistant", "tool_calls": [CALL | {"id": each} for each in ("a", "b", "c")]}
    end = {"role": "assistant", "content": "High."}
    row, _ = row_of({"messages": [ASKED, calls, *_results("c", "a", "b"), end]})
    assert [message["content"] for message in row.messages[2:5]] == ["of a", "of b", "of c"]
    row, _ = row_of({"messages": [ASKED, calls, *_results("b", "a"), end]})
    assert [message["content"] for message in row.messages[2:4]] == ["of a", "of b"]
    without = {"role": "tool", "content": "first"}
    row, _ = row_of({"messages": [ASKED, calls, *_results("b"), without, end]})
    assert [message["content"] for message in row.messages[2:4]] == ["of b", "first"]
    assert "tool_call_id x, and no call before it" in refusal({"messages": [ASKED, calls, *_results("a", "x"), end]})
