"""Answers whose text is known before: calls of functions, objects, characters of several bytes; and adapters with virtual tokens."""

import json
import types
from pathlib import Path

import openai
import pytest
from transformers import AutoTokenizer

import inlay
from inlay.base.load import load
from inlay.http.server import Setup
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
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
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
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        wide.client.chat.completions.create(model="wide", messages=CHAT, tools=TOOLS, tool_choice="required")


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
