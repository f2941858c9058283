"""Turns of a conversation, in the words of any tool, as messages: role, content, and what belongs to them.

A key that is not known is refused: it may be what the turn means. What is null is as if it were not there.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.data import json_text
from inlay.data.files import what
from inlay.data.keys import FLAGS, KEPT, ROLES, TEXT_PARTS, THOUGHTS, WHAT, WHO, cut, in_words
from inlay.data.rows import Message
from inlay.errors import DataError, nearest

CALLS = ("tool_calls", "function_call")
"""Keys of a turn that calls functions; the second is OpenAI's older form, of one call."""

_KNOWN = (*WHO, *WHAT, *THOUGHTS, *FLAGS, *KEPT, *CALLS)


def conversation(value: Any, key: str) -> tuple[list[Message], list[bool] | None]:
    """(The messages of a list of turns, for each whether it is trained on, or None where no turn says so).

    **Arguments:**

    - `value`: the list, or its JSON text.
    - `key`: the column that holds it, for a message.

    **Raises:**

    - `DataError`: it is no list of turns; one line says which turn, and why.
    """
    turns = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        turns = decoded(value, f"{key} are")
    if not isinstance(turns, list | tuple) or not turns:
        raise DataError(f"{key} is {what(turns)}, not a list of messages")
    messages: list[Message] = []
    flags: list[bool | None] = []
    for i, turn in enumerate(turns):
        try:
            message, flag = _turn(turn)
        except DataError as error:
            raise DataError(f"message {i} {error}") from None
        messages.append(message)
        flags.append(flag)
    _sort_results_(messages)
    if all(flag is None for flag in flags):
        return messages, None
    return messages, [flag is not False for flag in flags]


def _sort_results_(messages: list[Message]) -> None:
    """Bring the results of calls into the order of the calls: that is all by which most templates tell whose a result is.

    **Raises:**

    - `DataError`: a result is of no call.
    """
    known: list[Any] = []
    for i, message in enumerate(messages):
        calls = [call.get("id") for call in message.get("tool_calls", ())]
        known += calls
        said = message.get("tool_call_id")
        if said is not None and known and None not in known and said not in known:
            raise DataError(f"message {i} has the tool_call_id {cut(said)}, and no call before it has that id")
        results = list(itertools.takewhile(lambda each: each["role"] == "tool", messages[i + 1 :])) if calls else []
        ids = [result.get("tool_call_id") for result in results]
        if all(each in calls for each in ids) and None not in ids:
            results.sort(key=lambda result: calls.index(result["tool_call_id"]))
            messages[i + 1 : i + 1 + len(ids)] = results


def schemas(value: Any, key: str) -> list[dict[str, Any]] | None:
    """The schemas of functions in a list of them, or in its JSON text; None where there are none.

    **Raises:**

    - `DataError`: it is no list of objects.
    """
    found = decoded(value, f"{key} are") if isinstance(value, str) and value.strip() else value
    if found is None or found == "" or (isinstance(found, list | tuple) and not found):
        return None
    if not isinstance(found, list | tuple) or not all(isinstance(schema, dict) and schema for schema in found):
        raise DataError(f"{key} is {what(found)}, not a list of schemas")
    if key == "functions":
        return [schema if "function" in schema else {"type": "function", "function": schema} for schema in found]
    return list(found)


def decoded(text: str, what_is: str) -> Any:
    """The value of JSON text in a row; `what_is` says in a message what it should be, such as 'tools are'.

    **Raises:**

    - `DataError`: it is not JSON.
    """
    try:
        return json_text.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what_is} not JSON: {str(error).split(';')[0]}: {text[:60]!r}") from None


def _turn(turn: Any) -> tuple[Message, bool | None]:
    """(A turn as a message, whether it is trained on where it says so)."""
    if not isinstance(turn, Mapping):
        raise DataError(f"is {what(turn)}, not an object with role and content")
    given = {key: value for key, value in turn.items() if value is not None}
    _check_keys(given)
    role = _role(given)
    message: Message = {}
    for key, value in given.items():
        message |= _said(key, value, role)
    if "content" not in message:
        if role != "assistant" or not ("tool_calls" in message or "reasoning_content" in message):
            raise DataError("has no content")
        message["content"] = ""  # a turn that only calls a function has none in many data sets
    if role not in ("assistant", "function_call") and {"tool_calls", "reasoning_content"} & message.keys():
        raise DataError(f"is of the {role}, and has {'calls' if 'tool_calls' in message else 'thoughts'}")
    return message, _flag(given, message["role"])


def _said(key: str, value: Any, role: str) -> Message:
    """What one key of a turn is in a message."""
    if key in WHO:
        return {"role": "assistant" if role == "function_call" else role}
    if key in WHAT and role == "function_call":
        return {"content": "", "tool_calls": [_call(decoded(_text(value, key), "has a function call that is"))]}
    if key in CALLS:
        calls = _calls(value, key)
        return {"tool_calls": calls} if calls else {}
    for names, name in ((WHAT, "content"), (THOUGHTS, "reasoning_content"), (KEPT, key)):
        if key in names:
            return {name: _text(value, key)}
    return {}


def _check_keys(given: Mapping[str, Any]) -> None:
    unknown = [str(key) for key in given if key not in _KNOWN]
    if unknown:
        near = nearest(cut(unknown[0]), _KNOWN)
        hint = f", did you mean {near}?" if near else f"; known are {', '.join(_KNOWN)}"
        raise DataError(f"has an unknown key, {cut(unknown[0])}{hint}")
    for names in (WHO, WHAT, THOUGHTS, CALLS):
        both = [name for name in names if name in given]
        if len(both) > 1:
            raise DataError(f"has both {' and '.join(both)}")


def _role(given: Mapping[str, Any]) -> str:
    said = next((given[key] for key in WHO if key in given), None)
    if said is None:
        raise DataError("has no role")
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        roles = dict.fromkeys(ROLES.values())
        raise DataError(
            f"has role {cut(said)!r}; roles are {', '.join(role for role in roles if role != 'function_call')}"
        )
    return role


def _text(value: Any, key: str) -> str:
    """A text, or the text of a list of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise DataError(f"has {key} that is {what(value)}, not a string")
    return "".join(map(_part, value))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise DataError(f"has a part that is {what(part)}, not an object with type and text")
    given = {key: value for key, value in part.items() if value is not None}
    kind = given.get("type", "text" if "text" in given else None)
    if kind not in TEXT_PARTS:
        raise DataError(f"has a part of type {cut(kind)}, and text alone can be trained on")
    if given.keys() - {"type", "text"} or not isinstance(given.get("text"), str):
        raise DataError(f"has a part of type {kind} with {in_words([*given])}, not type and text")
    return given["text"]


def _calls(value: Any, key: str) -> list[dict[str, Any]]:
    found = decoded(value, f"has {key} that are") if isinstance(value, str) else value
    if key == "function_call":
        return [_call(found)]
    if not isinstance(found, list | tuple):
        raise DataError(f"has {key} that are {what(found)}, not a list")
    return [_call(call) for call in found]


def _call(value: Any) -> dict[str, Any]:
    """A call as OpenAI's form has it, its arguments an object."""
    if not isinstance(value, Mapping):
        raise DataError(f"has a call that is {what(value)}, not an object")
    outer = {key: item for key, item in value.items() if item is not None}
    inner = outer.pop("function", None)
    if inner is None:
        inner = {key: outer.pop(key) for key in ("name", "arguments") if key in outer}
    elif twice := [key for key in ("name", "arguments") if key in outer]:
        raise DataError(f"has a call with {' and '.join(twice)} beside its function, which has its own")
    inner = {key: item for key, item in inner.items() if item is not None} if isinstance(inner, Mapping) else {}
    unknown = [str(key) for key in (*outer, *inner) if key not in ("id", "type", "index", "name", "arguments")]
    if unknown or not isinstance(inner.get("name"), str) or outer.get("type", "function") != "function":
        wrong = (
            f"a call with an unknown key, {cut(unknown[0])}"
            if unknown
            else "a call that is not of a function with a name"
        )
        raise DataError(f"has {wrong}: {json.dumps(value, default=str, ensure_ascii=False)[:80]}")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        arguments = decoded(arguments, "has arguments that are") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise DataError(f"has arguments that are {what(arguments)}, not an object")
    return {"type": "function", **outer, "function": {**inner, "arguments": arguments}}


def _flag(given: Mapping[str, Any], role: str) -> bool | None:
    """Whether a turn is trained on, where it says so."""
    flags = {key: given[key] for key in FLAGS if key in given}
    for key, value in flags.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(f"has {key} {cut(repr(value))}, not 0 or 1")
        if value and role != "assistant" and key != "weight":
            raise DataError(f"is of the {role}, and {key} is {value!r}: answers of the assistant alone are trained on")
    said: Sequence[bool] = [bool(value) for value in flags.values()]
    return None if not said or role != "assistant" else all(said)
