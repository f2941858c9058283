"""Rows to learn from: read from files, recognised by their keys, turned into tokens; nothing is left out uncounted.

    messages              {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    prompt+completion     {"prompt": "...", "completion": "..."}, either also as a list of messages; for scoring also
                          {"prompt": "...", "references": ["...", "..."]}
    text                  {"text": "..."}

Files: .jsonl (an object per line), .json (a list of objects), .csv (with a header), .parquet; a folder of them; or the
name of a data set on the hub, `owner/name` or `owner/name:split`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from inlay.errors import DataError, UnknownNameError, explain, nearest
from inlay.text import mask
from inlay.text.mask import Example
from inlay.training import files

FORMS = ("messages", "prompt+completion", "text")
MIN_ROWS_TO_HOLD_OUT = 20
"""Fewer rows than this are all trained on: a held-out row or two says nothing."""

_CHUNK_ROWS = 1000
"""Rows that are turned into tokens at a time."""

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

Found = TypeVar("Found")


@runtime_checkable  # the tests check it where they check shapes
class Kept(Protocol):
    """What splitting and counting need of a row, whatever its task."""

    @property
    def prompt(self) -> Any: ...

    def content(self) -> str: ...


AnyRow = TypeVar("AnyRow", bound=Kept)

_ROLES = ("system", "user", "assistant", "tool", "developer")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source, checked."""

    form: str
    """messages, prompt+completion or text."""
    source: str
    """Where it came from, such as train.jsonl:12."""
    messages: list[dict[str, str]] | None = None
    prompt: str | list[dict[str, str]] | None = None
    completion: str | list[dict[str, str]] | None = None
    references: tuple[str, ...] = ()
    text: str | None = None

    def content(self) -> str:
        """What the row says, in one canonical string, without where it came from."""
        values = [self.messages, self.prompt, self.completion, list(self.references), self.text]
        return json.dumps(values, ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows as tokens, and what became of them."""

    examples: list[Any]
    """`inlay.text.mask.Example`s, or what another task makes of its rows."""
    form: str
    max_length: int
    num_rows: int
    num_tokens: int
    num_trained: int
    """Tokens that the loss is taken on."""
    num_dropped: int
    """Rows longer than max_length that were left out."""
    num_windowed: int
    """Rows longer than max_length that were cut into windows."""


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


def read(source: str | Path, rows_of: Callable[[Sequence[tuple[int, Any]], str], list[Found]]) -> list[Found]:
    """What `rows_of` makes of the values of a file, each with its number, and of the file's name; see `read_rows`."""
    path = Path(os.path.expanduser(source))  # os.path takes names as they come: too long, or of no user
    if os.path.isdir(path):
        found = sorted(file for file in path.iterdir() if file.suffix in files.READERS and file.is_file())
        if not found:
            raise DataError(explain("this folder has no data files", found=str(path), do=f"files of {files.kinds()}"))
        return [row for file in found for row in rows_of(files.values(file), file.name)]
    if os.path.isfile(path):
        return rows_of(files.values(path), path.name)
    values, repository = _from_hub(str(source))
    return rows_of(values, repository)


def hold_out(rows: Sequence[AnyRow], fraction: float) -> tuple[list[AnyRow], list[AnyRow]]:
    """(rows to train on, rows held out): by a hash of each row's prompt, so that order does not matter and all answers
    to one prompt are on one side."""
    if len(rows) < MIN_ROWS_TO_HOLD_OUT or fraction == 0:
        return list(rows), []
    parts: tuple[list[AnyRow], list[AnyRow]] = ([], [])
    for row in rows:
        key = row.content() if row.prompt is None else json.dumps(row.prompt, ensure_ascii=False)
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        parts[number < fraction * 2**64].append(row)
    return parts if parts[0] else (list(rows), [])


def digest(rows: Sequence[Kept]) -> str:
    """SHA-256 of the rows' content, in order, in hexadecimal."""
    total = hashlib.sha256()
    for row in rows:
        total.update(row.content().encode() + b"\n")
    return total.hexdigest()


def prepare(
    rows: Sequence[Row], tokenizer: Any, max_length: int, train_on: str, too_long: str, *, may_be_empty: bool = False
) -> Prepared:
    """The rows as tokens with their targets marked, none longer than `max_length`.

    **Arguments:**

    - `train_on`: 'completions' or 'all', see `inlay.text.mask`.
    - `too_long`: 'drop' or 'window', see `inlay.text.mask.fit`.
    - `may_be_empty`: no row need be left.

    **Raises:**

    - `ConfigError`: the tokenizer has no end token.
    - `DataError`: a row has nothing to train on, or nothing is left.
    """
    mask.check_tokenizer(tokenizer)
    problems: list[str] = []
    whole = list(_examples(rows, tokenizer, train_on, problems))
    if problems:
        raise DataError(
            explain("some rows can't be trained on", found=files.first(problems), do="mend or remove these rows")
        )
    fitted = [mask.fit(example, max_length, too_long) for example in whole]
    examples = [part for parts in fitted for part in parts]
    too_many = sum(len(example.input_ids) > max_length for example in whole)
    if not examples and not may_be_empty:
        longest = max(len(example.input_ids) for example in whole)
        raise DataError(
            explain(
                "no row is left to train on: all are longer than max_length",
                found=f"{len(whole)} rows, the longest of {longest:,} tokens; max_length={max_length:,}",
                do=f"--max-length {longest}, or --too-long window",
            )
        )
    return Prepared(
        examples=examples,
        form=rows[0].form,
        max_length=max_length,
        num_rows=len(rows),
        num_tokens=sum(len(example.input_ids) for example in examples),
        num_trained=sum(sum(example.trained) for example in examples),
        num_dropped=too_many if too_long == "drop" else 0,
        num_windowed=too_many if too_long == "window" else 0,
    )


def _examples(rows: Sequence[Row], tokenizer: Any, train_on: str, problems: list[str]) -> Iterator[Example]:
    """The rows as tokens; entries in `problems` for those that can't be trained on."""
    for first in range(0, len(rows), _CHUNK_ROWS):
        part = rows[first : first + _CHUNK_ROWS]
        made = [value for row in part if (value := _tried(row, tokenizer, train_on, problems)) is not None]
        drafts = [value for value in made if isinstance(value, mask.Draft)]
        for example in [*(value for value in made if isinstance(value, Example)), *mask.encoded(tokenizer, drafts)]:
            if any(example.trained):
                yield example
            else:
                problems.append(f"{example.source}: no token of it would be trained on")


def _tried(row: Row, tokenizer: Any, train_on: str, problems: list[str]) -> mask.Draft | Example | None:
    try:
        if row.text is not None:
            return mask.document(tokenizer, row.text, row.source)
        if row.messages is not None:
            prompt, completion = [], row.messages
        else:
            prompt, completion = _messages("user", row.prompt), _messages("assistant", row.completion)
        return mask.draft(tokenizer, prompt, completion, row.source, train_on_all=train_on == "all")
    except DataError as error:
        problems.append(str(error).replace("\n  found:", ":").split("\n  hint:")[0])
        return None


def _messages(role: str, value: Any) -> list[dict[str, str]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


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


def _from_hub(name: str) -> tuple[list[tuple[int, Any]], str]:
    path = Path(name)
    known = [child.name for child in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    near = nearest(path.name, known)
    repository, _, split = name.partition(":")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or path.suffix in files.READERS:
        raise UnknownNameError(
            explain(
                "there is no such data",
                found=f"{name} does not exist",
                do=str(path.parent / near) if near else "a file, a folder, or a name on the hub such as owner/name",
            )
        )
    import datasets

    try:
        table = datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, KeyError) as error:  # datasets' own errors derive from these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownNameError(
            explain(
                "there is no such data",
                found=[f"{name} is not a file or folder here", f"as a data set on the hub: {reason}"],
                do="check the path or the name (owner/name:split), and the connection",
            )
        ) from None
    return list(enumerate(table, start=1)), repository
