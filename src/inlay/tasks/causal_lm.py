"""The next token: rows are texts, prompts with completions, or conversations; packed where the model allows it.

Rows are read in `inlay.data.forms`, their tokens marked in `inlay.text.mask`; a sample is a `inlay.text.mask.Example`.
"""

import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from inlay.data.rows import Message, Row
from inlay.disk import OnDisk
from inlay.engines import LANGUAGE_MODEL
from inlay.errors import DataError, explain, few
from inlay.packing import rows as packing
from inlay.streams.rows import read
from inlay.streams.samples import Samples
from inlay.tasks import _packed, _references
from inlay.tasks._encode import check_tokenizer, text_of
from inlay.tasks._lengths import fit, left_out, unheard
from inlay.tasks._packed import num_computed as num_computed
from inlay.tasks._packed import unpacked_because as unpacked_because
from inlay.tasks.contract import Given, Item, Loaded, Prediction, Prepared, TaskSpec
from inlay.text import mask
from inlay.text.answers import Draft, begun
from inlay.text.mask import Example

Value = TypeVar("Value")

_NUM_AHEAD = 3
"""Rows whose texts the template makes while the one before them is looked at."""

_CHUNK_ROWS = 200
"""Rows that are turned into tokens at a time."""


def prepare(
    rows: Sequence[Row],
    tokenizer: Any,
    max_length: int,
    train_on: str,
    too_long: str | None,
    *,
    may_be_empty: bool = False,
    positions: int | None = None,
    progress: Callable[[int, int], None] = unheard,
) -> Prepared:
    """The rows as tokens with their targets marked, none longer than `max_length`.

    **Arguments:**

    - `train_on`: 'completions' or 'all', see `inlay.text.mask`.
    - `too_long`: 'drop' or 'window', see `fit`; None is 'drop' for at most half of the rows.
    - `may_be_empty`: no row need be left.
    - `positions`: the most tokens that the model takes, for what is advised; None: any number.
    - `progress`: hears how many rows are done, and of how many.

    **Raises:**

    - `ConfigError`: the tokenizer has no end token.
    - `DataError`: a row has nothing to train on, nothing is left, or less than half where that was not asked for.
    """
    check_tokenizer(tokenizer)
    examples = Samples() if isinstance(rows, OnDisk) else list[Example]()
    lengths, ends, notes, beyond = array.array("l"), set[int](), Counter[str](), dict[str, None]()
    for example in _examples(rows, tokenizer, train_on, progress):
        lengths.append(len(example.input_ids))
        ends.update(example.ends)
        notes.update(example.notes)
        beyond |= {example.source: None} if lengths[-1] > max_length else {}
        examples += fit(example, max_length, too_long or "drop")
    longer = left_out(lengths, max_length, too_long, positions, may_be_empty=may_be_empty, num_left=len(examples))
    about = _about(rows, examples, notes) | longer
    return Prepared(**about, max_length=max_length, ends=tuple(sorted(ends)), longer=tuple(beyond))


def _about(rows: Sequence[Row], examples: Sequence[Example], notes: Counter[str]) -> dict[str, Any]:
    """What is said of rows and the examples that were made of them."""
    notes = notes + _references.counted((row.completion, row.references) for row in rows)
    return {
        "examples": examples,
        "form": rows[0].form,
        "num_rows": len(rows),
        "num_tokens": packing.num_tokens(examples),
        "num_trained": packing.num_targets(examples),
        "notes": tuple(f"{number:,} {note}" for note, number in notes.items()),
    }


def _examples(
    rows: Sequence[Row], tokenizer: Any, train_on: str, progress: Callable[[int, int], None]
) -> Iterator[Example]:
    """The rows as tokens.

    **Raises:**

    - `DataError`, at the end: rows can't be trained on; it names them, each with what to do.
    """
    problems: dict[str, str] = {}
    for first in range(0, len(rows), _CHUNK_ROWS):
        progress(first, len(rows))
        part = rows[first : first + _CHUNK_ROWS]
        begins = (_begun(row, tokenizer, train_on) for row in part)
        made = [value for end in _ahead(begins) for value in _tried(end, problems)]
        drafts = [value for value in made if isinstance(value, Draft)]
        for example in [*(value for value in made if isinstance(value, Example)), *mask.encoded(tokenizer, drafts)]:
            if example.num_trained:
                yield example
            else:
                problems[f"{example.source}: no token of it would be trained on"] = ""
    progress(len(rows), len(rows))
    if problems:
        raise _untrainable(problems)


def _begun(row: Row, tokenizer: Any, train_on: str) -> Callable[[], Sequence[Draft | Example]]:
    """Begin to make text of a row; what is returned ends it."""
    if (text := row.text) is not None:
        return lambda: [mask.document(tokenizer, text, row.source)]
    if row.messages is not None:
        prompt, completion = [], row.messages
    else:
        prompt, completion = _messages("user", row.prompt), _messages("assistant", row.completion)
    how: dict[str, Any] = {"train_on_all": train_on == "all", "tools": row.tools, "trained": row.trained}
    return begun(tokenizer, prompt, completion, row.source, **how)


def _ahead(values: Iterator[Value]) -> Iterator[Value]:
    """The same, each when the next `_NUM_AHEAD` have begun too."""
    waiting: deque[Value] = deque()
    for value in values:
        waiting.append(value)
        if len(waiting) > _NUM_AHEAD:
            yield waiting.popleft()
    yield from waiting


def _tried(make: Callable[[], Sequence[Draft | Example]], problems: dict[str, str]) -> Sequence[Draft | Example]:
    try:
        return make()
    except DataError as error:
        said, _, hint = str(error).replace("\n  found:", ":").partition("\n  hint:  ")
        problems[said] = hint
        return []


def _untrainable(problems: dict[str, str]) -> DataError:
    """The error for rows that can't be trained on, each with what to do."""
    hints = [*dict.fromkeys(hint for hint in problems.values() if hint)][:2]
    do = "; ".join(hints) or "mend or remove these rows"
    return DataError(explain("some rows can't be trained on", found=few([*problems]), do=do))


def _messages(role: str, value: Any) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _prepare(
    rows: Sequence[Row], base: Loaded, max_length: int, train_on: str, too_long: str | None, **how: Any
) -> Prepared:
    base.check_causal()
    return prepare(rows, base.tokenizer, max_length, train_on, too_long, positions=base.max_length, **how)


def _item(base: Loaded, row: Given) -> Item:
    if isinstance(row, str) or "messages" not in row:
        return Item(prompt=text_of(row, "prompt"))
    messages = row["messages"]
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        raise DataError("messages is not a list of objects with role and content")
    if not messages or messages[-1].get("role") == "assistant":
        raise DataError("the last message is the assistant's: there is nothing to answer")
    return Item(prompt=[dict(message) for message in messages])


def _said(
    base: Loaded, items: Sequence[Item], adapters: Sequence[str | None], max_new_tokens: int | None
) -> list[Prediction]:
    found = base.generate([item.prompt for item in items], adapters, max_new_tokens=max_new_tokens)
    return [{"answer": text.strip()} for text in found]


SPEC = TaskSpec(
    name="causal-lm",
    unit="token",
    auto_class="AutoModelForCausalLM",
    task_type=LANGUAGE_MODEL,
    keys="text, prompt and completion, or messages",
    read=read,
    prepare=_prepare,
    num_targets=packing.num_targets,
    num_tokens=packing.num_tokens,
    parts=_packed.parts,
    step_parts=_packed.parts,
    loss_of=_packed.loss_of,
    losses_of=_packed.losses_of,
    asked="prompt, or messages",
    generates=True,
    continues=True,
    item=_item,
    said=_said,
)
"""Next tokens."""
