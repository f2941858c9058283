"""`/v1/chat/completions`: conversations, calls of functions, answers of a form."""

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from inlay.data import messages as turns
from inlay.errors import ConfigError, explain
from inlay.http import tools
from inlay.http.bodies import Chat, Drawn, NamedTool, ResponseFormat
from inlay.http.exchange import answered
from inlay.http.service import Service, Wanted
from inlay.http.tools import Calls
from inlay.serve import grammar
from inlay.serve.answers import Answer, Group, Piece, TokenSaid
from inlay.serve.slots import Version
from inlay.serve.words import token_of
from inlay.text import template


async def chat(service: Service, body: Chat, request: Request) -> Response:
    """The answer to a conversation."""
    service.check_answers(service.worker.engine is not None, "chats")
    schemas = _schemas(service, body)
    messages = messages_of(service, body.messages)
    if body.top_logprobs and not body.logprobs:
        raise ConfigError(explain("top_logprobs says nothing without logprobs", found="logprobs is not true"))
    top = (body.top_logprobs or 0) if body.logprobs else None
    wanted = Wanted(num_logprobs=top, form=form_asked(service, body, schemas))
    most = _one_of({"max_completion_tokens": body.max_completion_tokens, "max_tokens": body.max_tokens})
    tokenizer = service.base.tokenizer

    async def begin(version: Version | None) -> tuple[Group, _Form]:
        ids = await service.apart(template.prompt_ids, tokenizer, messages, tools=schemas)
        group = await service.ask([ids], version, body, wanted, most)
        return group, _Form(tokenizer, len(ids), len(group.answers), bool(schemas))

    return await answered(service, request, body, begin)


def messages_of(service: Service, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a conversation. What a developer says is the system's, where the template does not know developers."""
    messages = turns.conversation(given, "messages")[0]
    if "developer" in str(service.base.tokenizer.chat_template):
        return messages
    return [each | {"role": "system"} if each["role"] == "developer" else each for each in messages]


def form_of(body: Drawn, response: ResponseFormat | None) -> tuple[grammar.Kind, Any] | None:
    """The form that an answer is to have, by `response_format` or `structured_outputs`.

    **Raises:**

    - `ConfigError`: there are several, or one lacks its schema.
    """
    outputs = body.structured_outputs
    found: list[tuple[grammar.Kind, Any]] = []
    if outputs is not None:
        given: dict[grammar.Kind, Any] = {
            "json": outputs.json_,
            "regex": outputs.regex,
            "choice": outputs.choice,
            "grammar": outputs.grammar,
        }
        found = [(kind, value) for kind, value in given.items() if value is not None]
        if len(found) != 1:
            raise ConfigError(
                explain("structured_outputs names not one form", found=f"{len(found)} of {', '.join(given)}")
            )
    if response is not None and response.type == "json_object":
        found.append(("json", {"type": "object"}))
    if response is not None and response.type == "json_schema":
        schema = response.json_schema and response.json_schema.schema_
        if schema is None:
            raise ConfigError(explain("response_format has no schema", found="json_schema.schema is not there"))
        found.append(("json", schema))
    if len(found) > 1:
        raise ConfigError(explain("an answer can't have two forms", found="response_format and structured_outputs"))
    return found[0] if found else None


def _schemas(service: Service, body: Chat) -> list[dict[str, Any]] | None:
    """The functions that may be called.

    **Raises:**

    - `ConfigError`: one has to be and there is none, or the calls of this model are not known.
    """
    is_forced = body.tool_choice not in (None, "auto", "none")
    if not body.tools and is_forced:
        raise ConfigError(explain("tool_choice asks for a call, and there is no function", found="no tools"))
    if not body.tools or body.tool_choice == "none":
        return None
    if service.call_form is None:
        wrong = "this model's chat template writes calls of functions in a way that is not read here"
        raise ConfigError(explain(wrong, found="tools", do='tool_choice="none"'))
    return turns.schemas(body.tools, "tools")


def form_asked(service: Service, body: Chat, schemas: list[dict[str, Any]] | None) -> tuple[grammar.Kind, Any] | None:
    """The form of an answer: that of its calls where these are forced, alone or strict, else what is asked for."""
    form, calls, choice = form_of(body, body.response_format), service.call_form, body.tool_choice
    is_free, is_single = choice in (None, "auto"), body.parallel_tool_calls is False
    if schemas is None or calls is None or (is_free and not is_single and not tools.are_strict(schemas)):
        return form
    if form is not None:
        found = "tools whose calls are forced, single or strict, beside response_format or structured_outputs"
        raise ConfigError(explain("an answer can't have two forms", found=found, do="leave one of them out"))
    name = choice.function.name if isinstance(choice, NamedTool) else None
    return "grammar", calls.held(schemas, forced=not is_free, name=name, several=not is_single)


def _one_of(given: dict[str, int | None]) -> int | None:
    """What one of several fields says, which mean the same."""
    values = {value for value in given.values() if value is not None}
    if len(values) > 1:
        found = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ConfigError(explain("two fields say different things", found=found, do="leave one of them out"))
    return next(iter(values), None)


class _Form:
    """How a chat is written; see `inlay.http.exchange.Form`."""

    kind, prefix, chunk_kind = "chat.completion", "chatcmpl", "chat.completion.chunk"

    def __init__(self, tokenizer: Any, num_prompt: int, num_answers: int, has_tools: bool):
        self._tokenizer, self.num_prompt = tokenizer, num_prompt
        self._calls = [Calls() if has_tools else None for _ in range(num_answers)]

    def first(self, number: int, answer: Answer) -> dict[str, Any]:
        """Who speaks."""
        return _choice(number, {"delta": {"role": "assistant", "content": ""}}, None)

    def part(self, number: int, piece: Piece) -> dict[str, Any] | None:
        """What was said."""
        calls = self._calls[number]
        text = piece.text if calls is None else calls.add(piece.text)
        if not text and not piece.said:
            return None
        return _choice(number, {"delta": {"content": text}}, self._logprobs(piece.said, answer=None))

    def last(self, number: int, answer: Answer) -> dict[str, Any]:
        """Why it is over, and the calls."""
        text, made = self._ended(number)
        delta: dict[str, Any] = {"content": text} if text else {}
        if made:
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(made)]
        return _choice(number, {"delta": delta}, None, "tool_calls" if made else answer.reason)

    def whole(self, number: int, answer: Answer) -> dict[str, Any]:
        """The message."""
        calls = self._calls[number]
        text = answer.text if calls is None else calls.add(answer.text)
        more, made = self._ended(number)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": (text + more) or (None if made else ""),
            "refusal": None,
        }
        if made:
            message["tool_calls"] = made
        logprobs = self._logprobs(answer.said, answer)
        return _choice(number, {"message": message}, logprobs, "tool_calls" if made else answer.reason)

    def _ended(self, number: int) -> tuple[str, list[dict[str, Any]]]:
        calls = self._calls[number]
        return ("", []) if calls is None else calls.end()

    def _logprobs(self, said: list[TokenSaid], answer: Answer | None) -> dict[str, Any] | None:
        if not said and (answer is None or answer.request.num_logprobs is None):
            return None
        return {"content": [self._logprob(one) for one in said], "refusal": None}

    def _logprob(self, one: TokenSaid) -> dict[str, Any]:
        top = [{**token_of(self._tokenizer, token), "logprob": value} for token, value in one.logprob.top.items()]
        known = token_of(self._tokenizer, one.logprob.token)
        return {**known, "logprob": one.logprob.value, "top_logprobs": top, "text_offset": one.start}


def _choice(
    number: int, content: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": number, **content, "logprobs": logprobs, "finish_reason": reason}
