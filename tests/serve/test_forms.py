"""Answers whose text is known before: calls of functions, objects, characters of several bytes; and adapters with virtual tokens."""

import json
import types
from pathlib import Path

import httpx
import openai
import pytest
from transformers import AutoTokenizer

import inlay
from inlay.base.load import load
from inlay.http.bodies import Chat
from inlay.http.chat import form_asked, messages_of
from inlay.http.server import Setup
from inlay.serve import grammar
from tests.serve.test_words import HERMES
from tests.support import models, servers

CHAT = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Brest"}}\n</tool_call>'


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A server whose small base has the tokens of GPT-2's kind, and adapters with virtual tokens."""
    place = tmp_path_factory.mktemp("forms")
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "data" / "byte_level")
    tokenizer.chat_template = HERMES
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    ends = {name: tokenizer.eos_token_id for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    model = models.model("llama", sizes=sizes | ends)
    model.generation_config.update(**ends)
    model.save_pretrained(place / "wide")
    tokenizer.save_pretrained(place / "wide")
    base = load(place / "wide", dtype="float32")
    adapters = {}
    for seed, method in enumerate([inlay.Prefix(num_virtual_tokens=3), inlay.Prompt(num_virtual_tokens=2)]):
        name = type(method).__name__.lower()
        models.randomize(base.create(method, name, seed=seed), seed=seed)
        (place / name).mkdir()
        base.save(name, place / name, {})
        base.detach(name)
        adapters[name] = place / name
    with servers.running(base, Setup(adapters=adapters, cache_tokens=4096)) as (service, address):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            yield types.SimpleNamespace(client=client, service=service, base=base, adapters=adapters)


def _said(wide, text, stream=False, **settings):
    """The answer of a model that can say nothing else than `text`."""
    form = {"extra_body": {"structured_outputs": {"choice": [text]}}}
    given = {"model": "wide", "messages": CHAT, "max_tokens": 200, **form, **settings}
    return wide.client.chat.completions.create(stream=stream, **given)


def _assembled(parts):
    """(text, calls, reason) of a stream."""
    text, calls, reason = "", [], None
    for part in parts:
        (choice,) = part.choices
        text += choice.delta.content or ""
        calls += choice.delta.tool_calls or []
        reason = choice.finish_reason or reason
    return text, calls, reason


@pytest.mark.parametrize("before", ["", "let me see "])
def test_a_call_of_a_function_is_one(wide, before):
    choice = _said(wide, before + CALL, tools=TOOLS).choices[0]
    assert (choice.message.content, choice.finish_reason) == (before or None, "tool_calls")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
        "function",
        "tide",
        {"harbour": "Brest"},
    )
    text, (streamed,), reason = _assembled(_said(wide, before + CALL, stream=True, tools=TOOLS))
    assert (text, reason, streamed.index) == (before, "tool_calls", 0)
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    plain = _said(wide, before + CALL).choices[0]  # without functions to call it is text
    assert (plain.message.content, plain.message.tool_calls, plain.finish_reason) == (before + CALL, None, "stop")
    kept = _said(wide, before + CALL, tools=TOOLS, tool_choice="none").choices[0]
    assert kept.message.tool_calls is None


def test_a_call_and_its_result_go_back_into_the_conversation(wide):
    call = _said(wide, CALL, tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "12:40"}
    said = [*CHAT, call.model_dump(exclude_none=True, exclude={"refusal"}), result]
    answer = wide.client.chat.completions.create(model="wide", messages=said, tools=TOOLS, max_tokens=3)
    assert answer.usage.prompt_tokens > 60
    said[-1] = result | {"tool_call_id": "another"}
    with pytest.raises(openai.BadRequestError, match="no call before it has that id"):
        wide.client.chat.completions.create(model="wide", messages=said, tools=TOOLS, max_tokens=3)


def _tool(name, properties, **more):
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


HARBOURS, DEPTHS = ["Brest", "Le }</tool_call> Havre"], [3, 5]
PORTS = [
    _tool("tide", {"harbour": {"enum": HARBOURS}, "night": {"type": "boolean"}}),
    _tool("depth", {"metres": {"enum": DEPTHS}}),
    {"type": "function", "function": {"name": "now"}},
]


def _is_right(call):
    """A call has a name of `PORTS`, and arguments of its schema."""
    arguments = json.loads(call.function.arguments)
    if call.function.name == "tide":
        return arguments.keys() == {"harbour", "night"} and arguments["harbour"] in HARBOURS
    return arguments == {} if call.function.name == "now" else arguments["metres"] in DEPTHS and len(arguments) == 1


def _forced(wide, seed, **settings):
    drawn = {"temperature": 1.5, "max_tokens": 300, "seed": seed, "messages": CHAT, "tools": PORTS}
    return wide.client.chat.completions.create(model="wide", **{**drawn, **settings})


def test_a_call_that_is_required_is_made(wide):
    names = set()
    for seed in range(4):
        (choice,) = _forced(wide, seed, tool_choice="required", parallel_tool_calls=False).choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls
        assert _is_right(call)
        names.add(call.function.name)
        text, calls, reason = _assembled(
            _forced(wide, seed, tool_choice="required", parallel_tool_calls=False, stream=True)
        )
        assert (text, reason, [one.function.arguments for one in calls]) == (
            "",
            "tool_calls",
            [call.function.arguments],
        )
    assert len(names) > 1, "which one is the model's choice"


@pytest.mark.parametrize("name", ["tide", "depth", "now"])
def test_the_call_that_is_named_is_made(wide, name):
    choice = {"type": "function", "function": {"name": name}}
    for seed in range(3):
        (made,) = _forced(wide, seed, tool_choice=choice, parallel_tool_calls=False).choices
        (call,) = made.message.tool_calls
        assert (call.function.name, made.finish_reason, _is_right(call)) == (name, "tool_calls", True)


def test_a_call_that_is_cut_is_not_made(wide):
    (choice,) = _forced(wide, 0, tool_choice="required", max_tokens=5).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
    assert choice.message.content.startswith("<tool")


STRICT = [_tool("tide", {"harbour": {"enum": HARBOURS}, "night": {"type": "boolean"}}, strict=True), *PORTS[1:]]


@pytest.mark.parametrize(
    ("settings", "free", "several"),
    [
        ({"tools": STRICT}, True, True),
        ({"parallel_tool_calls": False}, True, False),
        ({"tool_choice": "required"}, False, True),
        ({"tool_choice": "required", "parallel_tool_calls": False}, False, False),
        ({"tool_choice": {"type": "function", "function": {"name": "tide"}}}, False, True),
    ],
)
def test_what_calls_are_held_to(wide, settings, free, several):
    tokenizer = wide.base.tokenizer
    body = Chat(model="wide", messages=CHAT, **{"tools": PORTS, **settings})
    kind, lark = form_asked(wide.service, body, body.tools)
    form = grammar.compiled(kind, lark, tokenizer)

    def takes(text):
        guide, ids = form.deep_copy(), tokenizer(text)["input_ids"]
        return guide.try_consume_tokens(ids) == len(ids) and guide.is_accepting()

    call = CALL.replace('"Brest"', '"Brest", "night": true')
    assert takes("no call, and <tool") == free
    assert takes(f"let me see\n{call}") == free
    assert takes(call)
    assert takes(call + call) == several
    assert takes(call.replace("Brest", HARBOURS[1]))
    assert not takes(call.replace("Brest", "Paris"))
    assert not takes(f"{call} and more")
    assert not takes(call[:-3])


def test_free_calls_that_are_held_leave_text_alone(wide):
    assert form_asked(wide.service, Chat(model="wide", messages=CHAT, tools=PORTS), PORTS) is None
    (choice,) = _forced(wide, 1, parallel_tool_calls=False, max_tokens=20).choices
    assert choice.message.content


def _refused(wide, says, **settings):
    with pytest.raises(openai.BadRequestError, match=says):
        _forced(wide, 0, **settings)


def test_calls_that_can_not_be_forced_are_refused(wide, monkeypatch):
    nobody = {"type": "function", "function": {"name": "tid"}}
    _refused(wide, "names no function of tools", tool_choice=nobody)
    _refused(wide, "hint:  tide", tool_choice=nobody)
    _refused(wide, "there is no function", tool_choice="required", tools=openai.NOT_GIVEN)
    _refused(wide, "tool_choice", tool_choice="whatever")
    _refused(wide, "two forms", tool_choice="required", response_format={"type": "json_object"})
    for function in ({"parameters": {}}, {"name": "f", "parameters": {"type": "array"}}):
        tool = {"type": "function", "function": function}
        _refused(wide, "can't be held to this function", tool_choice="required", tools=[tool])
    broken = _tool("f", {"x": {"type": "string", "not": {"const": 1}}})
    _refused(wide, "can't be held to this form", tool_choice="required", tools=[broken])
    monkeypatch.setitem(vars(wide.service), "call_form", None)
    _refused(wide, "not read here", tool_choice="required")


@pytest.mark.parametrize("text", ["日本語の text", "👩‍👩‍👧 naïve", "a\n\n  b"])
def test_characters_of_several_bytes_come_whole(wide, text):
    assert _said(wide, text).choices[0].message.content == text
    parts = [part.choices[0].delta.content or "" for part in _said(wide, text, stream=True, logprobs=True)]
    assert "".join(parts) == text
    assert not any("�" in part for part in parts)
    said = _said(wide, text, logprobs=True).choices[0].logprobs.content
    assert len(said) >= len(parts) - 2
    assert all(one.bytes is None or bytes(one.bytes).decode() == one.token for one in said)


def test_an_object_of_a_schema_is_one(wide):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    for seed in range(3):
        answer = wide.client.chat.completions.create(
            model="wide", messages=CHAT, max_tokens=100, seed=seed, temperature=1.3, response_format=form
        )
        found = json.loads(answer.choices[0].message.content)
        assert found["a"] in ("x", "yy")
        assert isinstance(found["b"], bool)
        assert set(found) == {"a", "b"}


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_adapters_with_virtual_tokens_answer_and_say_how_likely_prompts_are(wide, name):
    expected = servers.alone(wide.base, wide.adapters[name], CHAT, max_new_tokens=6)
    answer = wide.client.chat.completions.create(model=name, messages=CHAT, max_tokens=6, temperature=0)
    assert answer.choices[0].message.content == expected
    assert answer.usage.prompt_tokens == len(wide.base.tokenizer("user: hi;a: ")["input_ids"])
    (choice,) = wide.client.completions.create(
        model=name, prompt="once upon", echo=True, logprobs=1, max_tokens=2, temperature=0
    ).choices
    assert choice.text.startswith("once upon")
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == len(wide.base.tokenizer("once upon")["input_ids"]) + 2


TALK = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
AS_THEY_ARE = {
    "the client of OpenAI, all spelled out": {
        **{
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "logit_bias": {},
            "n": 1,
            "top_p": 1,
            "stop": None,
            "tools": [],
        },
        **{
            "logprobs": False,
            "top_logprobs": None,
            "max_tokens": None,
            "response_format": {"type": "text"},
            "store": False,
        },
        **{"tool_choice": "auto", "parallel_tool_calls": True, "functions": [], "function_call": "none", "user": "u"},
        **{
            "modalities": ["text"],
            "audio": None,
            "prediction": None,
            "web_search_options": None,
            "verbosity": "medium",
        },
        **{"reasoning_effort": None, "service_tier": "auto", "metadata": {"a": "b", "c": 1}, "stream": False},
        **{"stream_options": {"include_usage": True, "include_obfuscation": False}, "prompt_cache_retention": "24h"},
    },
    "that of vLLM": {
        **{"best_of": 1, "use_beam_search": False, "length_penalty": 1.0, "min_tokens": 0, "skip_special_tokens": True},
        **{"spaces_between_special_tokens": True, "include_stop_str_in_output": False, "top_k": -1, "min_p": 0.0},
        **{"repetition_penalty": 1.0, "add_generation_prompt": True, "continue_final_message": False},
        **{"chat_template_kwargs": {}, "stop_token_ids": [], "ignore_eos": False},
    },
    "contents in parts": {
        "messages": [{"role": each["role"], "content": [{"type": "text", "text": each["content"]}]} for each in TALK]
    },
    "a developer": {"messages": [{"role": "developer", "content": "s"}, TALK[1]]},
    "what is null": {"messages": [each | {"name": None, "tool_calls": None, "refusal": None} for each in TALK]},
}


def _post(wide, path, **body):
    body = {"model": "wide", "temperature": 0, "max_completion_tokens": 6, "messages": TALK, **body}
    if path == "completions":
        body = {name: body[name] for name in body if name not in ("messages", "max_completion_tokens")}
    return httpx.post(f"{wide.client.base_url}{path}", json=body, timeout=60)


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_fields_that_clients_send_as_they_are_change_nothing(wide, name):
    plain, asked = (_post(wide, "chat/completions", **body) for body in ({}, AS_THEY_ARE[name]))
    assert (plain.status_code, asked.status_code) == (200, 200), asked.text
    assert asked.json()["choices"] == plain.json()["choices"]


def test_a_developer_stays_one_where_the_template_knows_developers(wide, monkeypatch):
    messages = AS_THEY_ARE["a developer"]["messages"]
    assert [each["role"] for each in messages_of(wide.service, messages)] == ["system", "user"]
    monkeypatch.setattr(wide.base.tokenizer, "chat_template", HERMES + "{# developer #}")
    assert [each["role"] for each in messages_of(wide.service, messages)] == ["developer", "user"]


def test_completions_as_langchain_asks_for_them(wide):
    sent = {"frequency_penalty": 0, "logprobs": None, "n": 1, "presence_penalty": 0, "seed": None, "top_p": 1}
    for prompt in ("hi", ["hi"]):
        plain, asked = (
            _post(wide, "completions", prompt="hi", max_tokens=5),
            _post(wide, "completions", prompt=prompt, max_tokens=5, best_of=1, suffix=None, echo=False, **sent),
        )
        assert asked.json()["choices"] == plain.json()["choices"], asked.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reasoning_effort", "low"),
        ("verbosity", "low"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("web_search_options", {}),
        ("best_of", 2),
        ("min_tokens", 3),
        ("length_penalty", 0.5),
        ("use_beam_search", True),
        ("skip_special_tokens", False),
        ("include_stop_str_in_output", True),
        ("continue_final_message", True),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("stream_options", {"include_obfuscation": True}),
        ("response_format", {"type": "xml"}),
        ("guided_json", {"type": "object"}),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(wide, field, value):
    refused = _post(wide, "chat/completions", **{field: value})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"
    if field == "guided_json":
        assert "not a field that is known here" in error["message"]


def test_a_conversation_comes_back_as_the_client_keeps_it(wide):
    """What OpenAI's client makes of an answer is a message of the next request, whole."""
    made = _forced(wide, 0, tool_choice="required", parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": made.tool_calls[0].id, "content": [{"type": "text", "text": "12:40"}]}
    answer = _post(wide, "chat/completions", messages=[*CHAT, made.model_dump(), result], tools=PORTS)
    assert answer.status_code == 200, answer.text
