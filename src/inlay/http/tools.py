"""Calls of functions in answers, where the chat template writes them in a way that leaves no doubt.

    <tool_call>{"name": "tide", "arguments": {"harbour": "Brest"}}</tool_call>

A template is asked to write a call; where it writes it so, as those of Hermes and Qwen do, an answer is read so. Others write
calls as JSON alone, which an answer may be without being a call, or in a language of their own: they are refused.
"""

import contextlib
import json
import re
import uuid
from typing import Any

from inlay.errors import DataError
from inlay.serve.words import Stops
from inlay.text import template

OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_CALL = re.compile(rf"{OPEN}\s*(\{{.*?\}})\s*{_CLOSE}", re.DOTALL)
_PROBE = {"name": "tide", "arguments": {"harbour": "Brest"}}


def are_readable(tokenizer: Any) -> bool:
    """The calls in answers can be told from other text, by what the template makes of one."""
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "When is the tide?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": _PROBE}]},
    ]
    with contextlib.suppress(DataError):
        found = _CALL.findall(template.render(tokenizer, said, "a trial"))
        marks = {OPEN, _CLOSE} & {*tokenizer.all_special_tokens}  # these are left out of texts
        return not marks and [_read(text) for text in found] == [_PROBE]
    return False


def _read(text: str) -> Any:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_call = isinstance(call, dict) and isinstance(call.get("name"), str) and isinstance(call.get("arguments"), dict)
    return call if is_call and call.keys() == {"name", "arguments"} else None


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
        calls = [_read(text) for text in _CALL.findall(after)]
        if not calls or None in calls or _CALL.sub("", after).strip():
            return after, []
        return "", [_call(call["name"], call["arguments"]) for call in calls]


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
