"""Calls of functions in answers, where the chat template writes them in a way that leaves no doubt.

    <tool_call>{"name": "tide", "arguments": {"harbour": "Brest"}}</tool_call>

A template is asked to write a call; where it writes it so, as those of Hermes and Qwen do, an answer is read so, and can be
held to it: by a grammar of what the template writes around a name and arguments, and of the schemas of these. Others write
calls as JSON alone, which an answer may be without being a call, or in a language of their own: they are refused.
"""

import contextlib
import dataclasses
import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from inlay.errors import ConfigError, DataError, explain, nearest
from inlay.serve.words import Stops
from inlay.text import template

OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BEGIN, _END = re.compile(rf"\s*{OPEN}\s*"), re.compile(rf"\s*{_CLOSE}\s*")
_PROBE = {"name": "tide", "arguments": {"harbour": "Brest"}}
_NAME, _ARGUMENTS = re.compile('"tide"'), re.compile(r'\{\s*"harbour"\s*:\s*"Brest"\s*\}')
_AUTO = f"""start: TEXT | head call more
head[lazy]: TEXT "{OPEN}"
TEXT: /(.|\\n)*/
"""
_FORCED = f"""start: "{OPEN}" call more
"""


@dataclasses.dataclass(frozen=True)
class CallForm:
    """How a template writes calls: one as texts around a name and arguments, and what stands between two."""

    texts: tuple[str, str, str]
    name_is_first: bool
    between: str | None
    """None: the template writes no two calls."""

    def held(self, schemas: Sequence[dict[str, Any]], *, forced: bool, name: str | None, several: bool) -> str:
        """A grammar, of Lark's, of the answers that call these functions with arguments of their schemas.

        **Arguments:**

        - `forced`: nothing but calls, at least one; else any text, which calls may follow.
        - `name`: this function alone.
        - `several`: any number of calls, where the template writes several; else one.

        **Raises:**

        - `ConfigError`: there is no function of that name, or one is not described as OpenAI describes functions.
        """
        functions = {str(function["name"]): function for function in map(_function, schemas)}
        if name is not None and name not in functions:
            found, near = f"{name!r}; tools has {', '.join(functions)}", nearest(name, functions)
            raise ConfigError(explain("tool_choice names no function of tools", found=found, do=near or ""))
        chosen = list(functions) if name is None else [name]
        first, middle, last = self.texts
        rules = ["call: " + " | ".join(f"call_{i}" for i in range(len(chosen)))]
        for i, each in enumerate(chosen):
            called, arguments = json.dumps(each), f"arguments_{i}"
            order = (
                [json.dumps(first + called + middle), arguments]
                if self.name_is_first
                else [json.dumps(first), arguments, json.dumps(middle + called)]
            )
            rules.append(f"call_{i}: {' '.join(order)} {json.dumps(last + _CLOSE)}")
            rules.append(f"{arguments}: %json {json.dumps(_parameters(functions[each]))}")
        again = f"({json.dumps(self.between + OPEN)} call)*" if several and self.between is not None else '""'
        return (_FORCED if forced else _AUTO) + "\n".join([f"more: {again}", *rules])


def form_of(tokenizer: Any) -> CallForm | None:
    """How a tokenizer's chat template writes calls; None where these can't be told from other text."""
    marks = {OPEN, _CLOSE} & {*tokenizer.all_special_tokens}  # these are left out of texts
    if marks or (one := _written(tokenizer, 1)) is None:
        return None
    text = one.removeprefix(OPEN).removesuffix(_CLOSE)
    name, arguments = _NAME.search(text), _ARGUMENTS.search(text)
    if name is None or arguments is None:  # with characters escaped, say
        return None
    left, right = sorted((name.span(), arguments.span()))
    between = None if (two := _written(tokenizer, 2)) is None else two.removeprefix(one).removesuffix(one)
    return CallForm((text[: left[0]], text[left[1] : right[0]], text[right[1] :]), name.span() == left, between)


def _written(tokenizer: Any, count: int) -> str | None:
    """What a template writes of so many equal calls, from the first mark to the last, where they can be read in it."""
    calls = [{"id": f"call0000{i}", "type": "function", "function": _PROBE} for i in range(count)]
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "When is the tide?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    with contextlib.suppress(DataError):
        text = template.render(tokenizer, said, "a trial")
        text = text[max(text.find(OPEN), 0) : text.rfind(_CLOSE) + len(_CLOSE)]
        if _calls(text) == [_PROBE] * count:
            return text
    return None


def _calls(text: str) -> list[dict[str, Any]] | None:
    """The calls that a text is a list of; None where it is something else."""
    found, at = list[dict[str, Any]](), 0
    while begin := _BEGIN.match(text, at):
        try:
            call, at = json.JSONDecoder().raw_decode(text, begin.end())
        except (ValueError, RecursionError):
            return None
        is_call = (
            isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
        )
        end = _END.match(text, at)
        if not (is_call and call.keys() == {"name", "arguments"} and end):
            return None
        found.append(call)
        at = end.end()
    return found if at == len(text) else None


def _function(schema: dict[str, Any]) -> dict[str, Any]:
    """What a schema says of a function.

    **Raises:**

    - `ConfigError`: it has no name, or arguments that are no object.
    """
    function = schema.get("function", schema)
    name, parameters = (function.get(key) for key in ("name", "parameters")) if isinstance(function, dict) else (0, 0)
    is_object = parameters is None or (isinstance(parameters, dict) and parameters.get("type", "object") == "object")
    if not (isinstance(name, str) and name and is_object):
        do = '{"type": "function", "function": {"name": "tide", "parameters": {"type": "object", ...}}}'
        raise ConfigError(explain("a call can't be held to this function", found=json.dumps(schema)[:200], do=do))
    return function


def _parameters(function: dict[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments: none, where it has none."""
    if (parameters := function.get("parameters")) is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **parameters}


def are_strict(schemas: Sequence[dict[str, Any]]) -> bool:
    """Calls of one of these functions are to be held to its schema whenever it is called."""
    inner = [schema.get("function", schema) for schema in schemas]
    return any(isinstance(function, dict) and bool(function.get("strict")) for function in inner)


class Calls:
    """The text of an answer, without the calls at its end."""

    def __init__(self) -> None:
        self._before, self._text = Stops([OPEN]), ""

    def add(self, text: str) -> str:
        """What may be shown of the answer now: nothing from the first call on."""
        self._text += text
        return "" if self._before.found is not None else self._before.add(text)

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """(what is left of the text, the calls): where what follows the first call is no list of calls, it is text."""
        if self._before.found is None:
            return self._before.end(), []
        after = self._text[self._text.find(OPEN) :]
        if (calls := _calls(after)) is None:
            return after, []
        return "", [_call(call["name"], call["arguments"]) for call in calls]


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
