"""The rows of a causal language model: `read_rows` reads them, `prepare` makes tokens of them, none longer than wanted."""

import array
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from inlay.base.base import Base
from inlay.data.forms import read_rows as read_rows
from inlay.data.rows import Message, Row
from inlay.errors import ConfigError, DataError, explain, few
from inlay.text import mask
from inlay.text.answers import Draft, drafts
from inlay.text.mask import Example

MANY, TOO_MANY = 0.1, 0.5
"""Parts of the rows that are left out as too long: beyond the first it is said what would keep them, beyond the second the
rows are refused, unless it was said what happens to longer ones."""

REFERENCES = "references not trained on: answers are scored by them"
"""What is said of rows with other answers than their completion; it follows a number."""

LONGEST_DEFAULT = 2048
"""Rows are not made longer than this unless asked, whatever positions the model has: memory grows with it."""

_CHUNK_ROWS = 200
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
    advice: str = ""
    """What would keep the rows that were left out, where these are more than `MANY` of all."""
    ends: tuple[int, ...] = ()
    """The tokens that end what is trained on, where the task has such."""
    notes: tuple[str, ...] = ()
    """What was done to rows that are not trained on just as they stand, each with how often."""


def unheard(done: int, total: int) -> None:
    """Nobody wants to hear how many rows are done."""


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
    problems: dict[str, str] = {}
    examples: list[Example] = []
    lengths = array.array("l")
    ends: set[int] = set()
    notes: Counter[str] = Counter()
    for example in _examples(rows, tokenizer, train_on, problems, progress):
        ends.update(example.ends)
        notes.update(example.notes)
        if not problems:
            lengths.append(len(example.input_ids))
            examples += fit(example, max_length, too_long or "drop")
    if problems:
        hints = [*dict.fromkeys(hint for hint in problems.values() if hint)][:2]
        do = "; ".join(hints) or "mend or remove these rows"
        raise DataError(explain("some rows can't be trained on", found=few([*problems]), do=do))
    check_lengths(lengths, max_length, too_long, positions, may_be_empty=may_be_empty, num_left=len(examples))
    too_many = sum(length > max_length for length in lengths)
    return Prepared(
        examples=examples,
        form=rows[0].form,
        max_length=max_length,
        num_rows=len(rows),
        num_tokens=sum(len(example.input_ids) for example in examples),
        num_trained=sum(example.num_trained for example in examples),
        num_dropped=0 if too_long == "window" else too_many,
        num_windowed=too_many if too_long == "window" else 0,
        advice="" if too_long == "window" else advice(lengths, max_length, positions),
        ends=tuple(sorted(ends)),
        notes=tuple(f"{number:,} {note}" for note, number in (notes + _references(rows)).items()),
    )


def longest_row(base: Base, wanted: int | None, num_virtual: int = 0) -> int:
    """How many tokens a row may have: as many as are wanted, or what the model's positions allow, at most `LONGEST_DEFAULT`.

    `num_virtual` positions are taken by virtual tokens in front of it.

    **Raises:**

    - `DataError`: more are wanted than the model has positions.
    """
    room = None if base.max_length is None else base.max_length - num_virtual
    length = wanted or min(LONGEST_DEFAULT if room is None else room, LONGEST_DEFAULT)
    if room is not None and (length > room or room < 2):
        virtual = f", {num_virtual} of them for virtual tokens" if num_virtual else ""
        raise DataError(
            explain(
                "max_length is beyond the positions of this model",
                found=f"max_length={length}, the model has {base.max_length}{virtual}",
                do=f"--max-length {room}" if room > 1 else "fewer --num-virtual-tokens",
            )
        )
    return length


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer without an end token: a model trained with it never stops.

    **Raises:**

    - `ConfigError`: there is none.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            explain(
                "this tokenizer has no end token, so that a model trained with it would never stop",
                found=f"{tokenizer.name_or_path}: eos_token is not set",
                do='set "eos_token" in its tokenizer_config.json',
            )
        )


def fit(example: Example, max_length: int, too_long: str) -> list[Example]:
    """The row itself where it has at most `max_length` tokens; otherwise nothing ('drop') or its windows ('window').

    A window starts with the last token of the one before it, so that no target is lost: the first token of a window has
    nothing before it to be predicted from. Windows without a target are left out; one token alone is never one.
    """
    if len(example.input_ids) <= max_length:
        return [example]
    if too_long == "drop" or max_length < 2:
        return []
    windows = []
    for start in range(0, len(example.input_ids) - 1, max_length - 1):
        ids, trained = example.input_ids[start : start + max_length], example.trained[start : start + max_length]
        if any(trained[1:]):
            windows.append(dataclasses.replace(example, input_ids=ids, trained=bytes((0, *trained[1:]))))
    return windows


def check_lengths(
    lengths: Sequence[int],
    max_length: int,
    too_long: str | None,
    positions: int | None,
    *,
    may_be_empty: bool,
    num_left: int,
    can_window: bool = True,
) -> None:
    """Refuse rows of which none is left, or less than half although nobody said that longer ones may be left out.

    **Raises:**

    - `DataError`: this is so.
    """
    if may_be_empty:
        return
    num_long = sum(length > max_length for length in lengths)
    found = f"{len(lengths):,} rows, the longest of {max(lengths):,} tokens; max_length={max_length:,}"
    window = ", or --too-long window" if can_window else ""
    fits = positions is None or max(lengths) <= positions
    longer = f"--max-length {max(lengths)}" if fits else f"shorter rows: the model has {positions:,} positions"
    if not num_left:
        wrong = "no row is left to train on: all are longer than max_length"
        raise DataError(explain(wrong, found=found, do=longer + window))
    if too_long is None and num_long > TOO_MANY * len(lengths):
        wrong = f"{num_long:,} of {len(lengths):,} rows are longer than max_length, and would be left out"
        do = advice(lengths, max_length, positions) + window + ", or --too-long drop to train on the others"
        raise DataError(explain(wrong, found=found, do=do.removeprefix(", or ")))


def advice(lengths: Sequence[int], max_length: int, positions: int | None) -> str:
    """What would keep most of the rows, and all of them, where more than `MANY` are longer than `max_length`."""
    num_long = sum(length > max_length for length in lengths)
    if num_long <= MANY * len(lengths):
        return ""
    ordered = sorted(lengths)
    most, longest = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], ordered[-1]
    wanted = [most, longest] if max_length < most < 0.8 * longest else [longest]
    room = [length for length in wanted if positions is None or length <= positions]
    if not room and positions is not None and positions > max_length:
        room = [positions]
    kept = {length: sum(other <= length for other in lengths) / len(lengths) for length in room}
    return ", ".join(f"--max-length {length} keeps {100 * part:.0f} %" for length, part in kept.items())


def _examples(
    rows: Sequence[Row],
    tokenizer: Any,
    train_on: str,
    problems: dict[str, str],
    progress: Callable[[int, int], None],
) -> Iterator[Example]:
    """The rows as tokens; entries in `problems` for those that can't be trained on, each with what to do."""
    for first in range(0, len(rows), _CHUNK_ROWS):
        progress(first, len(rows))
        part = rows[first : first + _CHUNK_ROWS]
        made = [value for row in part for value in _tried(row, tokenizer, train_on, problems)]
        drafts = [value for value in made if isinstance(value, Draft)]
        for example in [*(value for value in made if isinstance(value, Example)), *mask.encoded(tokenizer, drafts)]:
            if example.num_trained:
                yield example
            else:
                problems[f"{example.source}: no token of it would be trained on"] = ""
    progress(len(rows), len(rows))


def _tried(row: Row, tokenizer: Any, train_on: str, problems: dict[str, str]) -> Sequence[Draft | Example]:
    try:
        if row.text is not None:
            return [mask.document(tokenizer, row.text, row.source)]
        if row.messages is not None:
            prompt, completion = [], row.messages
        else:
            prompt, completion = _messages("user", row.prompt), _messages("assistant", row.completion)
        how: dict[str, Any] = {"train_on_all": train_on == "all", "tools": row.tools, "trained": row.trained}
        return drafts(tokenizer, prompt, completion, row.source, **how)
    except DataError as error:
        said, _, hint = str(error).replace("\n  found:", ":").partition("\n  hint:  ")
        problems[said] = hint
        return []


def _references(rows: Sequence[Row]) -> Counter[str]:
    """How many answers rows have beside those that they are trained on."""
    return Counter({REFERENCES: sum(text != row.completion for row in rows for text in row.references)})


def _messages(role: str, value: Any) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value
