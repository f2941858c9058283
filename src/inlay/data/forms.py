"""Rows to learn from: read from files, recognised by their keys.

    messages              {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    prompt+completion     {"prompt": "...", "completion": "..."}, either also as a list of messages; for scoring also
                          {"prompt": "...", "references": ["...", "..."]}
    text                  {"text": "..."}

Files: .jsonl (an object per line), .json (a list of objects), .csv (with a header), .parquet; a folder of them; or the
name of a data set on the hub, `owner/name` or `owner/name:split`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inlay.data import files
from inlay.data.rows import Row
from inlay.data.sources import read
from inlay.errors import DataError, explain, nearest

FORMS = ("messages", "prompt+completion", "text")

_KIN = {
    "conversations": "messages, of role and content",
    "instruction": "prompt",
    "question": "prompt",
    "input": "prompt",
    "output": "completion",
    "response": "completion",
    "answer": "completion",
    "content": "text",
}
"""Keys of other tools -> the nearest of ours."""

_ROLES = ("system", "user", "assistant", "tool", "developer")


def read_rows(source: str | Path) -> list[Row]:
    """The rows of a file, a folder of files, or a data set on the hub.

    **Raises:**

    - `UnknownNameError`: there is no such file, folder or data set.
    - `FormatError`: a file is malformed or of an unknown kind.
    - `DataError`: it is empty, or its rows are of no form that is known; up to ten problems in one message.
    """
    rows = read(source, _rows)
    forms = {row.form: row.source for row in reversed(rows)}
    if len(forms) > 1:
        listed = ", ".join(f"{form} at {where}" for form, where in forms.items())
        raise DataError(explain("the rows are not all of one form", found=listed, do="one form per data set"))
    return rows


def _rows(values: Sequence[tuple[int, Any]], name: str) -> list[Row]:
    problems: list[str] = []
    rows = [row for number, value in values if (row := _checked(value, f"{name}:{number}", problems))]
    if problems:
        raise DataError(
            explain(
                "some rows are of no form that is known",
                found=files.first(problems),
                do="messages, prompt and completion, or text",
            )
        )
    return rows


def _checked(value: Any, source: str, problems: list[str]) -> Row | None:
    """One checked row, or None and an entry in `problems`."""
    row = _row(value, source, problems)
    try:
        if row is not None:
            row.content().encode()
    except UnicodeEncodeError as error:
        problems.append(f"{source}: {error.object[error.start]!a} is half a character (a lone surrogate)")
        return None
    return row


def _row(value: Any, source: str, problems: list[str]) -> Row | None:
    if not isinstance(value, dict):
        problems.append(f"{source}: a {type(value).__name__}, not an object")
    elif "messages" in value:
        if _is_messages(value["messages"], source, problems):
            return Row("messages", source, messages=value["messages"])
    elif "prompt" in value and ("completion" in value or "references" in value):
        return _prompt_row(value, source, problems)
    elif "text" in value:
        if isinstance(value["text"], str):
            return Row("text", source, text=value["text"])
        problems.append(f"{source}: text is {files.what(value['text'])}, not a string")
    else:
        keys = [str(key) for key in value]
        wanted = ("messages", "prompt", "completion", "text")
        meant = {key: _KIN.get(key) or nearest(key, wanted) for key in keys if key not in wanted}
        near = [f"{key}: did you mean {other}?" for key, other in meant.items() if other]
        problems.append(f"{source}: keys {', '.join(keys) or 'none'}" + (f" ({'; '.join(near)})" if near else ""))
    return None


def _prompt_row(value: dict[str, Any], source: str, problems: list[str]) -> Row | None:
    references = value.get("references", [])
    if not (isinstance(references, list) and all(isinstance(text, str) for text in references)):
        problems.append(f"{source}: references is not a list of strings")
        return None
    if "completion" not in value and not references:
        problems.append(f"{source}: no completion, and references is empty")
        return None
    completion = value["completion"] if "completion" in value else references[0]
    for key, part in (("prompt", value["prompt"]), ("completion", completion)):
        if isinstance(part, list):
            if not _is_messages(part, f"{source}: {key}", problems):
                return None
        elif not isinstance(part, str):
            problems.append(f"{source}: {key} is {files.what(part)}, not a string")
            return None
    return Row("prompt+completion", source, prompt=value["prompt"], completion=completion, references=tuple(references))


def _is_messages(value: Any, source: str, problems: list[str]) -> bool:
    if not isinstance(value, list) or not value:
        problems.append(f"{source}: messages is {files.what(value)}, not a list of messages")
        return False
    for i, message in enumerate(value):
        if isinstance(message, dict) and message.get("tool_calls") and message.get("content") is None:
            message["content"] = ""  # what a turn that only calls a tool has in some data sets
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            problems.append(f"{source}: message {i} has no role and content")
            return False
        if message.get("role") not in _ROLES:
            problems.append(f"{source}: message {i} has role {message.get('role')!r}; roles are {', '.join(_ROLES)}")
            return False
    return True
