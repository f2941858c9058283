"""Layouts of rows, recognised by their keys: what stands in a row is used, ignored by a short list, or counted as not used.

    messages              {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    prompt+completion     {"prompt": "...", "completion": "..."}, either also as a list of messages; for scoring also
                          {"prompt": "...", "references": ["...", "..."]}
    text                  {"text": "..."}

Every other layout, of Alpaca, ShareGPT, OpenAI and others, becomes one of these by the names in `inlay.data.keys`;
`docs/guides/data.md` shows them all. A value that is null is as if it were not there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inlay.data import messages, sources
from inlay.data.files import Numbered, what
from inlay.data.keys import (
    COMPLETIONS,
    CONTEXTS,
    CONVERSATIONS,
    HISTORY,
    PREFERENCES,
    PROMPTS,
    SYSTEMS,
    TOOLS,
    cut,
    in_words,
    unused_of,
)
from inlay.data.rows import Message, Row
from inlay.errors import DataError, explain, few, nearest

MAX_DEPTH = 100
"""Values nested more deeply than this are no arguments of a function."""

_NAMED = (*CONVERSATIONS, *PROMPTS, *COMPLETIONS, "text")


def read_rows(source: sources.Source) -> Sequence[Row]:
    """The rows of a file, a folder of files, a data set on the hub, a list, a data frame; see `read`."""
    return read(source).rows


def read(source: sources.Source, splits: tuple[str, ...] = sources.TRAIN) -> sources.Data[Row]:
    """The rows of a source, and what there is to say about it; see `inlay.data.sources.read`.

    **Raises:**

    - `UnknownNameError`: there is no such file, folder or data set.
    - `FormatError`: a file is malformed or of an unknown kind.
    - `DataError`: it is empty, or its rows are of no form that is known or hold what can't be used; up to ten problems in one
      message.
    """
    found = sources.read(source, rows_of, splits)
    forms = {row.form: row.source for row in reversed([*found.rows, *found.held_out])}
    if len(forms) > 1:
        listed = ", ".join(f"{form} at {where}" for form, where in forms.items())
        raise DataError(explain("the rows are not all of one form", found=listed, do="one form per data set"))
    return found


def rows_of(values: Iterable[Numbered], name: str, unused: Counter[str]) -> list[Row]:
    """The rows that values of a file called `name` are; columns that are not used are counted in `unused`."""
    problems: list[str] = []
    is_known = False
    rows: list[Row] = []
    for number, value in values:
        try:
            rows.append(_row(value, f"{name}:{number}", unused))
        except DataError as error:
            problems.append(f"{name}:{number}: {error}")
            is_known = is_known or (isinstance(value, Mapping) and any(key in value for key in _NAMED))
    if problems:
        wrong, do = "some rows are of no form that is known", "messages, prompt and completion, or text"
        if is_known:
            wrong, do = "some rows can't be used as they stand", "mend these rows, or remove them"
        raise DataError(explain(wrong, found=few(problems), do=do))
    return rows


class _Columns:
    """The columns of a row that are not null, and which of them were taken."""

    def __init__(self, value: Mapping[str, Any]):
        self.given = {key: item for key, item in value.items() if not is_null(item)}
        self._left = dict.fromkeys(self.given)

    def take(self, key: str) -> Any:
        """The value of a column, which is then used."""
        self._left.pop(key, None)
        return self.given[key]

    def first(self, keys: Iterable[str]) -> str | None:
        """The first of some columns that is there and not empty."""
        given = {key: self.given[key] for key in keys if key in self.given}
        return next((key for key, item in given.items() if not isinstance(item, str | list) or item), None)

    def unused(self) -> list[str]:
        """Those that were not taken, but for the ones that say nothing."""
        return unused_of(self._left)


def is_null(value: Any) -> bool:
    """Nothing stands in a column: null, or what data frames write for it."""
    return value is None or (isinstance(value, float) and value != value)


def _row(value: Any, source: str, unused: Counter[str]) -> Row:
    if not isinstance(value, Mapping):
        raise DataError(f"{what(value)}, not an object")
    columns = _Columns(value)
    row = _laid_out(columns, source, value)
    _check_values(row)
    unused.update(columns.unused())
    return row


def _laid_out(columns: _Columns, source: str, value: Mapping[str, Any]) -> Row:
    given = columns.given
    if conversation := next((key for key in CONVERSATIONS if key in given), None):
        return _conversation(columns, conversation, source)
    if all(key in given for key in PREFERENCES):
        raise DataError("chosen and rejected are preferences, which are not trained on: keep chosen as completion")
    if "prompt" in given and ("completion" in given or "references" in given):
        return _prompted(columns, "prompt", "completion" if "completion" in given else None, source)
    asks, answers = ([key for key in names if key in given] for names in (PROMPTS, COMPLETIONS))
    if asks and answers:
        _check_one([key for key in asks if key not in CONTEXTS.get(asks[0], ())], "ask")
        _check_one(answers, "answer")
        return _prompted(columns, asks[0], answers[0], source)
    if "text" not in given:
        raise DataError(_unknown(value))
    if isinstance(text := columns.take("text"), str):
        return Row("text", source, text=text)
    raise DataError(f"text is {what(text)}, not a string")


def _check_one(names: list[str], kind: str) -> None:
    if len(names) > 1:
        raise DataError(f"{' and '.join(names)} both {kind}: rename or remove one of them")


def _unknown(value: Mapping[str, Any]) -> str:
    """That a row is of no layout, and what was meant."""
    keys = [str(key) for key, item in value.items() if not is_null(item)]
    nulls = [f"{cut(key)} is null" for key, item in value.items() if is_null(item)]
    meant = {key: "text" if key == "content" else nearest(cut(key), _NAMED) for key in keys[:10] if key not in _NAMED}
    notes = nulls + [f"{key}: did you mean {other}?" for key, other in meant.items() if other]
    return f"keys {in_words(keys) or 'none'}" + (f" ({'; '.join(notes[:5])})" if notes else "")


def _conversation(columns: _Columns, key: str, source: str) -> Row:
    found, trained = messages.conversation(columns.take(key), key)
    if system := _system(columns):
        if found[0]["role"] in ("system", "developer"):
            if found[0]["content"].strip() != system.strip():
                raise DataError("a column and the first message are two different system messages")
        else:
            found = [{"role": "system", "content": system}, *found]
            trained = None if trained is None else [True, *trained]
    return Row(
        "messages", source, messages=found, tools=_tools(columns), trained=None if trained is None else tuple(trained)
    )


def _prompted(columns: _Columns, asks: str, answers: str | None, source: str) -> Row:
    """A row of what is asked and answered; without the name of an answer, `references` answer."""
    if isinstance(columns.given.get("label"), bool):
        raise DataError("a label of true or false beside a completion is a preference: keep the good rows, without it")
    references = _references(columns, answers)
    answer = columns.take(answers) if answers and not (answers == "answers" and references) else references[0]
    prompt, first = _said(columns.take(asks), asks)
    completion, second = _said(answer, answers or "references")
    if isinstance(prompt, str):
        prompt = _with_context(columns, asks, prompt)
    opening = _opening(columns, prompt)
    if opening:
        last = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        first = None if first is None else [True] * len(opening) + first
        prompt = [*opening, *last]
    trained = None
    if first is not None or second is not None:
        counts = [1 if isinstance(part, str) else len(part) for part in (prompt, completion)]
        trained = (*(first or [True] * counts[0]), *(second or [True] * counts[1]))
    return Row(
        "prompt+completion",
        source,
        prompt=prompt,
        completion=completion,
        references=references,
        tools=_tools(columns),
        trained=trained,
    )


def _opening(columns: _Columns, prompt: str | list[Message]) -> list[Message]:
    """The messages that columns of their own put before a prompt: what the system says, and earlier turns."""
    before = _history(columns)
    system = _system(columns)
    made = [*([{"role": "system", "content": system}] if system else []), *before]
    is_twice = not isinstance(prompt, str) and (before or prompt[0]["role"] in ("system", "developer"))
    if made and is_twice:
        raise DataError("a column and the prompt's own messages say what comes first")
    return made


def _said(value: Any, key: str) -> tuple[str | list[Message], list[bool] | None]:
    """(A text or messages, which of them are trained on)."""
    if isinstance(value, str):
        return value, None
    if not isinstance(value, list | tuple):
        raise DataError(f"{key} is {what(value)}, not a string")
    try:
        return messages.conversation(value, key)
    except DataError as error:
        raise DataError(f"{key}: {error}") from None


def _references(columns: _Columns, answers: str | None) -> tuple[str, ...]:
    """All the answers to a prompt, where a row has several."""
    key = "references" if "references" in columns.given else "answers" if answers == "answers" else None
    if key is None or (key == "answers" and isinstance(columns.given[key], str)):
        return ()
    found = columns.take(key)
    if key == "answers" and isinstance(found, Mapping) and isinstance(found.get("text"), list):
        found = found["text"]  # as SQuAD has them
    if not (isinstance(found, list | tuple) and all(isinstance(text, str) for text in found)):
        raise DataError(f"{key} is not a list of strings")
    if not found and answers in (None, "answers"):
        raise DataError(f"no completion, and {key} is empty")
    return tuple(found)


def _with_context(columns: _Columns, asks: str, prompt: str) -> str:
    """An instruction with its input behind it, or a question with its context before it."""
    keys = [key for key in CONTEXTS.get(asks, ()) if columns.first([key])]
    if len(keys) > 1:
        raise DataError(f"{' and '.join(keys)} both go with {asks}: remove one of them")
    for key in CONTEXTS.get(asks, ()):
        if key in columns.given and key not in keys:
            columns.take(key)  # empty: there is nothing to add
    if not keys:
        return prompt
    text = columns.take(keys[0])
    if not isinstance(text, str):
        raise DataError(f"{keys[0]} is {what(text)}, not a string")
    return f"{prompt}\n\n{text}" if asks == "instruction" else f"{text}\n\n{prompt}"


def _history(columns: _Columns) -> list[Message]:
    if HISTORY not in columns.given:
        return []
    pairs = columns.take(HISTORY)
    sound = isinstance(pairs, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    if not sound or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise DataError("history is not a list of pairs of strings")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _system(columns: _Columns) -> str:
    keys = [key for key in SYSTEMS if key in columns.given]
    if len(keys) > 1:
        raise DataError(f"{' and '.join(keys)} are both system messages: remove one of them")
    text = columns.take(keys[0]) if keys else ""
    if not isinstance(text, str):
        raise DataError(f"{keys[0]} is {what(text)}, not a string")
    return text


def _tools(columns: _Columns) -> list[dict[str, Any]] | None:
    keys = [key for key in TOOLS if key in columns.given]
    if len(keys) > 1:
        raise DataError(f"{' and '.join(keys)} are both schemas of functions: remove one of them")
    return messages.schemas(columns.take(keys[0]), keys[0]) if keys else None


def _check_values(row: Row) -> None:
    """Refuse what is no text: half a character, values that JSON has not, or nested without end."""
    if _is_deep([row.messages, row.prompt, row.completion, row.tools], MAX_DEPTH):
        raise DataError(f"values are nested more than {MAX_DEPTH} deep")
    try:
        row.content().encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{error.object[error.start]!a} is half a character (a lone surrogate)") from None
    except (TypeError, ValueError) as error:  # from Python: a time stamp among the arguments, a list that holds itself
        raise DataError(f"holds what JSON has not: {error}") from None


def _is_deep(value: Any, left: int) -> bool:
    if not isinstance(value, dict | list | tuple):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return left == 0 or any(_is_deep(item, left - 1) for item in inner)
