"""In the manners of forty families: what is trained on is marked by hand; what a row says is conserved, whatever it says."""

import contextlib
import dataclasses
import json
import random
import re
from pathlib import Path

import pytest

from inlay.errors import DataError, FormatError
from inlay.text import bounded, mask, stops
from inlay.text.template import Conversation, prompt_ids, render
from tests.templates import families, others, thinkers
from tests.templates.families import CONVERSATIONS, tokenizer

ALL = {**families.FAMILIES, **thinkers.FAMILIES, **others.FAMILIES}
MARKED = Path(__file__).parent / "marked.txt"


def marked():
    """family -> conversation -> its rows with marks, or the words of the refusal."""
    found = {}
    for line in MARKED.read_text("utf-8").splitlines():
        if line.startswith("== "):
            family = found.setdefault(line.removeprefix("== "), {})
        else:
            name, _, row = line.partition(": ")
            family.setdefault(name, []).append(row)
    return found


EXPECTED = marked()


def made(family, name):
    messages, tools = CONVERSATIONS[name]
    return mask.conversation(tokenizer(family), messages, "x:1", tools=tools)


def test_at_least_forty_families_are_marked_for_every_conversation():
    assert set(EXPECTED) == set(ALL)
    assert len(ALL) >= 40
    assert all(set(rows) == set(CONVERSATIONS) for rows in EXPECTED.values())


@pytest.mark.parametrize("family", ALL)
def test_exactly_the_marked_tokens_are_trained_on(family):
    tok = tokenizer(ALL[family])
    for name, expected in EXPECTED[family].items():
        if expected[0].startswith("! "):
            with pytest.raises(DataError) as caught:
                made(ALL[family], name)
            assert str(caught.value).split("\n")[0] == expected[0].removeprefix("! ")
            assert "x:1" in str(caught.value)
            assert "hint:" in str(caught.value)
        else:
            assert [mask.show(tok, row) for row in made(ALL[family], name)] == expected


@pytest.mark.parametrize("family", ALL)
def test_the_end_of_an_answer_is_what_generation_stops_at(family):
    tok = tokenizer(ALL[family])
    ends = {token for name in ("one", "two") for row in made(ALL[family], name) for token in row.ends}
    wanted = ALL[family].stops or (ALL[family].eos,)
    assert {tok.decode([token]) for token in ends} == {wanted[0]}
    derived = {tok.decode([token]) for token in stops.stop_ids(tok, {})}
    assert derived == {ALL[family].eos, *wanted}
    record = {"text": stops.record_of("messages", ends, tok)}
    assert set(stops.stop_ids(tok, record)) == ends | {tok.eos_token_id}


WORDS = (
    "tide", "Brest", "nine minutes", "a", "assistant", "user\n", "{\"x\": 1}", "'", '"', "\\n", "é", "你好", "🙂", "\n\n", "  two", "<b>", "</s>", "<s>",
    "<|im_end|>", "<|im_start|>assistant", "[/INST]", "<|eot_id|>", "<end_of_turn>", "{{ x }}", "|", "`code`", "<tool_response>", "1.0", "true",
)  # fmt: skip
"""What contents are made of: what templates look for, what ends turns, what JSON escapes."""


def phrase(rng, longest=5):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, longest))).strip() or "x"


def conversation(rng):
    """Messages and tools of all kinds."""
    often = 0.4 * (rng.random() < 0.5)  # half of them have nothing but questions and answers
    messages = [{"role": "system", "content": phrase(rng)}] if rng.random() < often else []
    for i in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": phrase(rng)})
        if rng.random() < often:
            arguments = {
                rng.choice(["at", "day", "n"]): rng.choice([phrase(rng), 3, -0.5, True, None, ["x", 1], {"k": "v"}])
            }
            call = {"id": f"call1234{i}", "type": "function", "function": {"name": "tide", "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": phrase(rng), "tool_call_id": call["id"], "name": "tide"})
        answer = {"role": "assistant", "content": phrase(rng)}
        if rng.random() < often:
            answer["reasoning_content"] = phrase(rng)
        messages.append(answer)
    return messages, (families.TOOLS if rng.random() < often else None)


def runs(example):
    """(start, stop) of the runs of trained tokens."""
    edges = [i for i in range(1, len(example.trained)) if example.trained[i] != example.trained[i - 1]]
    edges += [len(example.trained)] * (len(edges) % 2)
    return list(zip(edges[::2], edges[1::2], strict=True))


def has_said(text, content):
    """A text has a content, without regard to white space and to how JSON escapes it."""
    forms = (content, repr(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1])
    return any("".join(form.split()) in "".join(text.split()) for form in forms)


def check(tok, messages, tools, rows):
    """The laws: each answer once, behind what generation is given for it, with all that it says, and an end."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    found = [(row, run) for row in rows for run in runs(row)]
    assert len(found) == len(turns)
    ends = set(stops.stop_ids(tok, {"text": stops.record_of("messages", [e for row in rows for e in row.ends], tok)}))
    for i, (row, (start, stop)) in zip(turns, found, strict=True):
        assert list(row.input_ids[:start]) == prompt_ids(tok, messages[:i], tools=tools)
        assert row.input_ids[stop - 1] in ends
        assert not ends & set(row.input_ids[start : stop - 1])  # generation would stop before
        answer = tok.decode(row.input_ids[start:stop])
        for value in (messages[i]["content"], messages[i].get("reasoning_content", "")):
            assert has_said(answer, value)
        for call in messages[i].get("tool_calls", []):
            assert call["function"]["name"] in answer
    for row in rows:
        before = tok.decode(row.input_ids)
        last = max(turns[[r is row for r, _ in found].index(True)], 0)
        assert all(has_said(before, m["content"]) for m in messages[: last + 1] if m["role"] != "assistant")


@pytest.mark.parametrize("family", ALL)
def test_whatever_a_conversation_says_is_conserved_or_refused(family):
    rng, tok, num_trained = random.Random(f"{family} 7"), tokenizer(ALL[family]), 0
    for _ in range(10):
        messages, tools = conversation(rng)
        try:
            rows = mask.conversation(tok, messages, "x:1", tools=tools)
        except DataError as error:
            refusal = str(error)
        else:
            refusal = "x:1 hint:"
            num_trained += 1
            check(tok, messages, tools, rows)
        assert "x:1" in refusal
        assert "hint:" in refusal
    assert num_trained > 0


@pytest.mark.parametrize("family", ALL)
def test_a_beginning_is_what_it_is_as_a_conversation_of_its_own(family):
    rng, tok, num_compared = random.Random(f"{family} 9"), tokenizer(ALL[family]), 0
    for _ in range(3):
        messages, tools = conversation(rng)
        whole = Conversation(tok, messages, "x:1", tools)
        for stop in range(1, len(messages) + 1):
            try:
                expected = Conversation(tok, messages[:stop], "x:1", tools).rendered(stop)
                prompt = render(tok, messages[:stop], "x:1", add_generation_prompt=True, tools=tools)
            except DataError as error:
                with pytest.raises(DataError, match=re.escape(str(error))):
                    whole.rendered(stop), whole.text(stop, True)
                continue
            made = whole.rendered(stop)
            assert (made.text, made.spans, made.faults) == (expected.text, expected.spans, expected.faults)
            assert whole.text(stop, True) == prompt
            num_compared += 1
    assert num_compared


WRITES_NAMES = (
    "{% for m in messages %}<|im_start|>{{ m.role + (' ' + m.name if m.name else '') + '\n' + m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("family", [*ALL, "writes names"])
def test_who_says_something_is_written_or_the_row_is_refused(family):
    writes = family == "writes names"
    tok = tokenizer(dataclasses.replace(ALL["chatml"], template=WRITES_NAMES) if writes else ALL[family])
    for i, role in enumerate(("user", "assistant")):
        messages = [dict(families.USER), dict(families.ANSWER), families.SOFT, families.SIX]
        messages[i]["name"] = "Alix"
        if writes and role == "user":
            (row,) = mask.conversation(tok, messages, "x:1")
            assert tok.decode(row.input_ids).count("<|im_start|>user Alix\nBoil an egg?") == 1
            continue
        # nothing gives generation the name of who is to answer, so a template that writes it is refused too
        expected = (
            "asks for this answer behind another text" if writes else f"the name of the {role}|roles must alternate"
        )
        with pytest.raises(DataError, match=expected) as caught:
            mask.conversation(tok, messages, "x:1")
        assert all(each in str(caught.value) for each in ("x:1", "hint:"))
    with pytest.raises(DataError, match="the name of the user") if not writes else contextlib.nullcontext():
        prompt_ids(tok, [{**families.USER, "name": "Alix"}])


def in_one_go(template, variables):
    return [text for group in bounded.begun(template, variables) for text in bounded.ended(group)]


def test_texts_that_are_asked_for_together_are_those_that_are_asked_for_alone():
    template = "{{ messages[0].content * 3 }}{{ 1 / messages[0].content | length }}"
    prepared = [json.dumps({"messages": [{"content": "x" * n}]}) for n in (1, 0, 9_000, 20_000, 3, 0, 9_000)]
    together = in_one_go(template, prepared)
    assert together == [f"{'xxx' * n}{1 / n}" if n else None for n in (1, 0, 9_000, 20_000, 3, 0, 9_000)]
    assert in_one_go("{{ messages | length }}", prepared) == ["1"] * 7


def test_texts_of_several_rows_may_be_under_way_at_once():
    ask = "{{ messages[0].content }}"
    rows = [[json.dumps({"messages": [{"content": f"{i} {n} " + "x" * 900 * i}]}) for n in range(3)] for i in range(20)]
    groups = [bounded.begun(ask, row) for row in rows]
    found = {i: [text for group in groups[i] for text in bounded.ended(group)] for i in (19, 3, 0, *range(20))}
    assert all(found[i] == [json.loads(text)["messages"][0]["content"] for text in rows[i]] for i in range(20))


def test_what_ends_the_process_costs_texts_beside_it_nothing(monkeypatch):
    def content(text):
        return json.dumps({"messages": [{"content": text}]})

    ask = "{% if messages[0].content == 'big' %}{{ 'a'.center(30000000000) }}{% else %}{{ messages[0].content }}{% endif %}"
    end = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(bounded, "SECONDS", 0.2)
    bounded._process().close()
    before, endless, behind = (
        bounded.begun(*each) for each in ((ask, [content("a"), content("big")]), (end, ["{}"]), (ask, [content("b")]))
    )
    assert bounded.ended(behind[0]) == [None]
    assert (bounded.ended(before[0]), bounded.ended(endless[0])) == (["a", None], [None])
    waiting = bounded.begun(end, ["{}"])
    assert bounded.rendered(ask, content("b"), "x:1") == "b"  # it is asked for when nothing else is under way
    assert bounded.ended(waiting[0]) == [None]
    bounded._process().close()


def test_a_template_that_forgets_one_thing_is_caught():
    """Each of these drops something of the row that the laws above are about."""
    tok = tokenizer(ALL["qwen-3"])
    messages, tools = CONVERSATIONS["tools"]
    messages = [{"role": "system", "content": "Be brief."}, *messages]
    assert mask.conversation(tok, messages, "x:1", tools=tools)
    forgetful = {
        "(t | tojson)": "('')",
        "messages[0].content": "''",
        "(c.function.arguments | tojson)": "'{}'",
        "c.function.name": "'f'",
        "m.content + '\n</tool_response>'": "'\n</tool_response>'",
        "{% set content = m.content %}": "{% set content = '' %}",
    }
    for part, other in forgetful.items():
        assert part in thinkers.QWEN3, part
        tok.chat_template = thinkers.QWEN3.replace(part, other)
        with pytest.raises((DataError, FormatError), match="x:1"):
            mask.conversation(tok, messages, "x:1", tools=tools)
    tok.chat_template = thinkers.QWEN3
