"""What a row says, as text: what is asked in it, and what is answered."""

import json
from collections.abc import Iterator
from typing import Any

from inlay.data.rows import Kept, Row


def said(row: Kept) -> tuple[str, str]:
    """(What is asked, what is answered).

    Of a conversation the assistant's turns are answered; of a row with keys of its own `prompt` is asked, and all is answered.
    """
    if not isinstance(row, Row):
        return "\n".join(strings(row.prompt)), "\n".join(strings(_values(row)))
    if row.text is not None:
        return "", row.text
    if isinstance(row.prompt, str) and isinstance(row.completion, str):
        return row.prompt, row.completion
    asked, answered = list[str](), list[str]()
    for part, is_answer in ((row.messages, None), (row.prompt, False), (row.completion, True)):
        for message in [part] if isinstance(part, str) else part or ():
            own = isinstance(message, dict) and message["role"] == "assistant" if is_answer is None else is_answer
            (answered if own else asked).extend(strings(_spoken(message)))
    return "\n".join(asked), "\n".join(answered)


def strings(value: Any) -> Iterator[str]:
    """All the texts in a value of lists and objects, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def _values(row: Kept) -> Any:
    """The values of a row, which its content says as JSON."""
    try:
        return json.loads(row.content())
    except ValueError:  # another package's rows may say it in another way
        return row.content()


def _spoken(message: Any) -> Any:
    """What somebody says in a message, without who it is."""
    if not isinstance(message, dict):
        return message
    return [value for key, value in message.items() if key not in ("role", "name", "tool_call_id")]
