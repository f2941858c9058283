"""Rows as tokens, none longer than a model takes, and what became of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from inlay.data import files
from inlay.data.rows import Row
from inlay.errors import DataError, explain
from inlay.text import mask
from inlay.text.answers import Draft, drafts
from inlay.text.mask import Example

_CHUNK_ROWS = 1000
"""Rows that are turned into tokens at a time."""


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
        num_trained=sum(example.num_trained for example in examples),
        num_dropped=too_many if too_long == "drop" else 0,
        num_windowed=too_many if too_long == "window" else 0,
    )


def _examples(rows: Sequence[Row], tokenizer: Any, train_on: str, problems: list[str]) -> Iterator[Example]:
    """The rows as tokens; entries in `problems` for those that can't be trained on."""
    for first in range(0, len(rows), _CHUNK_ROWS):
        part = rows[first : first + _CHUNK_ROWS]
        made = [value for row in part for value in _tried(row, tokenizer, train_on, problems)]
        drafts = [value for value in made if isinstance(value, Draft)]
        for example in [*(value for value in made if isinstance(value, Example)), *mask.encoded(tokenizer, drafts)]:
            if example.num_trained:
                yield example
            else:
                problems.append(f"{example.source}: no token of it would be trained on")


def _tried(row: Row, tokenizer: Any, train_on: str, problems: list[str]) -> Sequence[Draft | Example]:
    try:
        if row.text is not None:
            return [mask.document(tokenizer, row.text, row.source)]
        if row.messages is not None:
            prompt, completion = [], row.messages
        else:
            prompt, completion = _messages("user", row.prompt), _messages("assistant", row.completion)
        return drafts(tokenizer, prompt, completion, row.source, train_on_all=train_on == "all")
    except DataError as error:
        problems.append(str(error).replace("\n  found:", ":").split("\n  hint:")[0])
        return []


def _messages(role: str, value: Any) -> list[dict[str, str]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value
