"""OpenAI's own client against a server: what it asks for is answered, and as the base answers alone."""

import contextlib
import itertools
import json
import math

import openai
import pytest
import torch

import inlay
from inlay.base.load import load
from tests.support import servers

CHAT = [{"role": "user", "content": "hi"}]
GREEDY = {"temperature": 0, "max_tokens": 8}
PROMPT = "u: hi;a: "


@pytest.fixture(scope="module")
def alone(tiny):
    """What every model answers without a server: the base, and each adapter."""
    names = [None, *servers.NAMES]
    found = {name: servers.alone(tiny.base, name and tiny.adapters / name, CHAT, max_new_tokens=8) for name in names}
    assert len(set(found.values())) == len(names), "each answers otherwise"
    return found


def _chat(client, model="tiny", **settings):
    return client.chat.completions.create(model=model, messages=CHAT, **{**GREEDY, **settings})


def _refused(kind, says, ask):
    with pytest.raises(kind, match=says) as error:
        ask()
    assert error.value.body["message"]
    return error.value


@pytest.mark.parametrize("name", [None, *servers.NAMES])
def test_every_model_answers_as_it_does_alone(alone, client, served, name):
    for model in ["tiny"] if name is None else [name, f"tiny:{name}"]:
        answer = _chat(client, model)
        assert answer.choices[0].message.content == alone[name]
        assert answer.model == model
        usage = answer.usage
        assert (usage.prompt_tokens, usage.total_tokens) == (9, 9 + usage.completion_tokens)
        assert usage.base_digest == served.base.fingerprint.weights
        assert usage.adapter_digest == (None if name is None else served.service.slots.digest(name))


def test_a_stream_says_the_same_in_parts(alone, client):
    parts = list(_chat(client, "red", stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == alone["red"]
    assert parts[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] in ("length", "stop")
    assert (parts[-1].choices, parts[0].usage) == ([], None)
    assert parts[-1].usage.completion_tokens == _chat(client, "red").usage.completion_tokens
    assert len({part.id for part in parts}) == 1


def test_digests_stand_in_headers(client, served):
    raw = client.chat.completions.with_raw_response.create(model="red", messages=CHAT, **GREEDY)
    assert raw.headers["inlay-base-digest"] == served.base.fingerprint.weights
    assert raw.headers["inlay-adapter-digest"] == served.service.slots.digest("red")
    assert client.models.retrieve("red").digest == served.service.slots.digest("red")


def test_models_are_the_base_and_every_adapter_under_two_names(client):
    listed = {model.id for model in client.models.list()}
    assert listed == {"tiny", *servers.NAMES, *(f"tiny:{name}" for name in servers.NAMES)}
    found = client.models.retrieve("tiny:red")
    assert (found.parent, found.answers, found.chat_template) == ("tiny", ["chats", "completions"], "own")
    _refused(openai.NotFoundError, "no model of that name", lambda: client.models.retrieve("violet"))


def test_a_text_ends_before_a_stop_string_and_no_part_of_it_is_shown(alone, client):
    text = alone["red"]
    at = next(i for i in range(2, 7) if text.find(text[i : i + 2]) == i)
    stop = text[at : at + 2]
    answer = _chat(client, "red", stop=["surely not there", stop, stop + "further"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text[:at], "stop")
    parts = [part.choices[0].delta.content or "" for part in _chat(client, "red", stop=stop, stream=True)]
    assert "".join(parts) == text[:at]
    assert answer.usage.completion_tokens == at + 2
    said = _chat(client, "red", stop=stop, logprobs=True).choices[0].logprobs.content
    assert "".join(one.token for one in said) == text[:at]


def test_a_token_that_ends_the_answer_is_no_part_of_it(alone, client, served):
    text = alone["red"]
    token = served.base.tokenizer.convert_tokens_to_ids(text[1])
    answer = _chat(client, "red", extra_body={"stop_token_ids": [token]})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text[:1], "stop")


def test_a_seed_gives_the_same_answers_and_each_of_n_its_own(client):
    drawn = {"temperature": 1.5, "n": 3, "seed": 7}
    first, second = (_chat(client, "red", **drawn).choices for _ in range(2))
    texts = [choice.message.content for choice in first]
    assert texts == [choice.message.content for choice in second]
    assert [choice.index for choice in first] == [0, 1, 2]
    assert len(set(texts)) > 1
    parts, streamed = ["", "", ""], _chat(client, "red", stream=True, **drawn)
    for part in streamed:
        parts[part.choices[0].index] += part.choices[0].delta.content or ""
    assert parts == texts
    others = {_chat(client, "red", temperature=1.5).choices[0].message.content for _ in range(3)}
    assert len(others) > 1, "without a seed each answer is drawn anew"


def test_settings_reach_the_draw(alone, client, served):
    token = served.base.tokenizer.convert_tokens_to_ids("Z")
    biased = _chat(client, "red", logit_bias={str(token): 100})
    assert biased.choices[0].message.content == "Z" * 8
    assert _chat(client, "tiny", frequency_penalty=2).choices[0].message.content != alone[None]
    assert _chat(client, "tiny", presence_penalty=2).usage.completion_tokens == 8
    assert _chat(client, "red", temperature=1, extra_body={"top_k": 1}).choices[0].message.content == alone["red"]
    assert _chat(client, "red", temperature=1, top_p=1e-9).choices[0].message.content == alone["red"]
    assert _chat(client, "red", temperature=1, extra_body={"min_p": 1}).choices[0].message.content == alone["red"]
    assert _chat(client, "tiny", extra_body={"repetition_penalty": 50.0}).choices[0].message.content != alone[None]


def _logits(served, name, ids):
    version = served.service.slots.acquire(name)
    try:
        with torch.no_grad(), served.base.using(version.adapter.name):
            return served.base.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    finally:
        served.service.slots.release(version)


def test_logprobs_are_those_of_the_pass_that_trains(client, served):
    answer = _chat(client, "red", logprobs=True, top_logprobs=3).choices[0]
    said = answer.logprobs.content
    assert "".join(one.token for one in said) == answer.message.content
    ids = served.base.tokenizer(PROMPT + answer.message.content)["input_ids"]
    wanted = _logits(served, "red", ids)[len(PROMPT) - 1 :]
    for one, row, token in zip(said, wanted, ids[len(PROMPT) :], strict=False):
        assert math.isclose(one.logprob, float(row[token]), abs_tol=1e-4)
        assert one.bytes == list(one.token.encode())
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    parts = list(_chat(client, "red", logprobs=True, stream=True))
    streamed = [one for part in parts if part.choices[0].logprobs for one in part.choices[0].logprobs.content]
    assert [one.token for one in streamed] == [one.token for one in said]
    starts = [0, *itertools.accumulate(len(one.token) for one in said)][:-1]
    assert [one.text_offset for one in streamed] == [one.text_offset for one in said] == starts


@pytest.mark.parametrize("most", [0, 3])
def test_a_completion_repeats_its_prompt_and_says_how_likely_it_was(client, served, most):
    settings = {"model": "red", "prompt": PROMPT, "echo": True, "logprobs": 2, "max_tokens": most, "temperature": 0}
    (choice,) = client.completions.create(**settings).choices
    ids = served.base.tokenizer(choice.text)["input_ids"]
    assert choice.text.startswith(PROMPT)
    assert len(choice.text) == len(PROMPT) + most
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == list(range(len(choice.text)))
    rows = _logits(served, "red", ids)
    wanted = [float(row[token]) for row, token in zip(rows, ids[1:], strict=False)]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
    parts = [part.choices[0] for part in client.completions.create(stream=True, **settings)]
    assert "".join(part.text for part in parts) == choice.text
    assert [token for part in parts if part.logprobs for token in part.logprobs.tokens] == choice.logprobs.tokens


def test_completions_take_several_prompts_as_texts_or_tokens(client, served):
    texts = ["abc", "u: hi;a: "]
    ids = [served.base.tokenizer(text)["input_ids"] for text in texts]
    answers = [client.completions.create(model="blue", prompt=given, n=2, temperature=0) for given in (texts, ids)]
    one, other = ([choice.text for choice in answer.choices] for answer in answers)
    assert one == other
    assert (len(one), one[0], one[2]) == (4, one[1], one[3])
    assert all(choice.finish_reason for choice in answers[0].choices)
    alone = client.completions.create(model="blue", prompt=texts[0], temperature=0).choices[0].text
    assert (one[0], len(alone)) == (alone, 16)


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def _form(**form):
    return {"temperature": 1.2, "max_tokens": 40, "seed": 3, **form}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_a_schema_is_one(client, served, stream):
    characters = set(served.base.tokenizer.get_vocab())
    assert {"a", '"', ":", ","} <= characters
    assert "{" not in characters, "the small tokenizer has no braces"
    schema = {"type": "array", "items": {"enum": ["x", "yy"]}, "minItems": 1, "maxItems": 2}
    form = {"type": "json_schema", "json_schema": {"name": "list", "schema": schema}}
    answer = _chat(client, "red", response_format=form, stream=stream, **_form())
    text = (
        "".join(part.choices[0].delta.content or "" for part in answer) if stream else answer.choices[0].message.content
    )
    assert set(json.loads(text)) <= {"x", "yy"}


def test_answers_are_held_to_expressions_choices_and_grammars(client):
    def ask(**form):
        choice = _chat(client, "green", extra_body={"structured_outputs": form}, **_form()).choices[0]
        assert choice.finish_reason == "stop"
        return choice.message.content

    assert ask(regex="[0-9]{3}(-[ab]+)").startswith(tuple("0123456789"))
    assert ask(choice=["yes", "no"]) in ("yes", "no")
    assert ask(grammar='start: "q" ("w" | "e")') in ("qw", "qe")
    plain = _chat(client, "red", **_form()).choices[0].message.content
    assert _chat(client, "red", response_format={"type": "text"}, **_form()).choices[0].message.content == plain


def test_a_form_that_no_token_goes_on_with_is_said(client):
    def ask(**settings):
        return _chat(client, "red", response_format={"type": "json_object"}, **settings)

    _refused(openai.InternalServerError, "could not be held to its form", ask)
    with pytest.raises(openai.APIError, match="could not be held to its form"):
        list(ask(stream=True))


FORMS = {
    "no schema": {"type": "json_schema", "json_schema": {"name": "x"}},
    "broken": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}},
    "unknown": {"type": "json_schema", "json_schema": {"schema": {"not": {"type": "string"}}}},
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_none_are_refused(client, name):
    says = "has no schema" if name == "no schema" else "can't be held to this form"
    _refused(openai.BadRequestError, says, lambda: _chat(client, "red", response_format=FORMS[name]))


def _deep(depth):
    form = {"type": "string"}
    for _ in range(depth):
        form = {"type": "array", "items": form}
    return form


EXPLODING = {
    "json": _deep(300),
    "choice": ["x" * 900] * 900,
    "regex": "(a?){2000}(a?){2000}a{4000}",
    "grammar": "start: a\na: a a | a a a | " + " | ".join(f'"{i}"' for i in range(30)),
}


@pytest.mark.parametrize("kind", EXPLODING)
def test_a_grammar_that_explodes_costs_nobody_else_an_answer(alone, client, kind):
    with contextlib.suppress(openai.BadRequestError, openai.InternalServerError):  # or an answer: it may be bounded
        _chat(client, "red", max_tokens=20, extra_body={"structured_outputs": {kind: EXPLODING[kind]}}, timeout=60)
    assert _chat(client, "green").choices[0].message.content == alone["green"]


BAD = {
    "an unknown model": ({"model": "violet"}, openai.NotFoundError, "no model of that name"),
    "an unknown field": ({"extra_body": {"best_of_all": 1}}, openai.BadRequestError, "best_of_all"),
    "several adapters": ({"model": ["red", "blue"]}, openai.BadRequestError, "model"),
    "no messages": ({"messages": []}, openai.BadRequestError, "messages"),
    "an unknown role": ({"messages": [{"role": "king", "content": "x"}]}, openai.BadRequestError, "king"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        openai.BadRequestError,
        "image_url",
    ),
    "half a character": (
        {"messages": [{"role": "user", "content": "\ud800"}]},
        (openai.BadRequestError, UnicodeEncodeError),
        "half a character|surrogates",
    ),
    "too many tokens": ({"max_tokens": 1000}, openai.BadRequestError, "too long"),
    "a long prompt": ({"messages": [{"role": "user", "content": "x" * 99}]}, openai.BadRequestError, "too long"),
    "a hot draw": ({"temperature": -1}, openai.BadRequestError, "temperature"),
    "a token that there is not": ({"logit_bias": {"9999": 1}}, openai.BadRequestError, "no such token"),
    "two lengths": ({"max_completion_tokens": 3}, openai.BadRequestError, "different things"),
    "top_logprobs alone": ({"top_logprobs": 3}, openai.BadRequestError, "without logprobs"),
    "functions": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        openai.BadRequestError,
        "not read here",
    ),
    "two forms": (
        {
            "response_format": {"type": "json_object"},
            "extra_body": {"structured_outputs": {"regex": "a"}},
        },
        openai.BadRequestError,
        "two forms",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_openais_form(client, alone, name):
    settings, kind, says = BAD[name]
    with pytest.raises(kind, match=says):
        client.chat.completions.create(**{"model": "red", "messages": CHAT, **GREEDY, **settings})
    assert _chat(client, "red").choices[0].message.content == alone["red"]


def test_a_base_for_text_has_no_vectors(client):
    _refused(
        openai.BadRequestError,
        "does not answer embeddings",
        lambda: client.embeddings.create(model="tiny", input="x"),
    )


def test_text_of_several_bytes_is_never_shown_in_halves(client, served):
    assert served.base.tokenizer.decode(served.base.tokenizer("abc")["input_ids"]) == "abc"
    parts = [part.choices[0].delta.content or "" for part in _chat(client, "red", stream=True)]
    assert not any("�" in part for part in parts)


def _sum(client, adapters, model="tiny", **more):
    return _chat(client, model, extra_body={"adapters": adapters}, **more)


def test_a_request_takes_several_adapters_each_times_its_weight(alone, client, served):
    whole = _sum(client, {"red": 1})
    assert (whole.choices[0].message.content, whole.usage.adapter_digest) == (
        alone["red"],
        served.service.slots.digest("red"),
    )
    assert _sum(client, {"red": 0, "tiny:green": 0.0}).choices[0].message.content == alone[None]
    answer = _sum(client, {"red": 0.5, "green": 2}, logprobs=True)
    digests = [served.service.slots.digest(name) for name in ("red", "green")]
    assert answer.usage.adapter_digest == f"0.5*{digests[0]}+2.0*{digests[1]}"
    said, tokenizer = answer.choices[0].logprobs.content, served.base.tokenizer
    ids = [*tokenizer(PROMPT)["input_ids"], *(tokenizer.convert_tokens_to_ids(one.token) for one in said)]
    wanted = _logits_of_sum(served, {"red": 0.5, "green": 2}, ids[:-1])[len(PROMPT) - 1 :]
    for one, row, token in zip(said, wanted, ids[len(PROMPT) :], strict=True):
        assert math.isclose(one.logprob, float(row[token]), abs_tol=1e-4)
    other = _sum(client, {"red": 2, "green": 0.5})
    assert other.choices[0].message.content != answer.choices[0].message.content
    assert other.system_fingerprint != answer.system_fingerprint
    assert not any(version.users for version in served.service.slots.loaded())


def _logits_of_sum(served, weights, ids):
    """What the base says with one adapter that has the factors of several."""
    base = load(served.directory, dtype="float32")
    parts = [(base.attach(served.adapters / name, name), weight) for name, weight in weights.items()]
    whole = base.create(inlay.Lora(r=4, lora_alpha=4), "whole")
    whole.params = {
        path: {
            "lora_A": torch.cat([one.params[path]["lora_A"] for one, _ in parts]),
            "lora_B": torch.cat([2 * weight * one.params[path]["lora_B"] for one, weight in parts], 1),
        }
        for path in whole.params
    }
    with torch.no_grad():
        return base.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_a_sum_that_can_not_be_made_is_refused(client):
    for adapters, model, says in (
        ({"red": 1, "tiny:red": 1}, "tiny", "each of which stands there once"),
        ({"red": 1, "tiny": 1}, "tiny", "each of which stands there once"),
        ({"green": 1}, "red", "by the model of the base"),
        ({}, "tiny", "adapters"),
        ({"red": 1e9}, "tiny", "adapters.red"),
    ):
        _refused(openai.BadRequestError, says, lambda: _sum(client, adapters, model))  # noqa: B023  # called at once
    _refused(openai.NotFoundError, "no model of that name", lambda: _sum(client, {"violet": 1}))


def test_what_nobody_foresaw_ends_a_stream_with_its_fault(client, monkeypatch):
    monkeypatch.setattr("inlay.http.chat._Form.part", lambda *given: 1 / 0)
    with pytest.raises(openai.APIError, match="the server failed on this request"):
        list(_chat(client, "red", stream=True))
    monkeypatch.undo()
    assert _chat(client, "red").usage.completion_tokens == 8
