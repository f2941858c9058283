"""What a base says of rows, with an adapter or without: a class, tags, a vector or an answer, by the task it was loaded for.

| task | a row | what is said |
|---|---|---|
| sequence-classification | a text, or `text`, perhaps with `text_pair` | `label`, `probability`, and `probabilities` of all |
| token-classification | `tokens`; or a text, cut into words at its blanks | `tokens`, `tags`, `probabilities` of those |
| embedding | a text, or `text`, or `anchor` | `vector`, of length 1 |
| seq2seq | a text, or `prompt` | `answer` |
| causal-lm | a text, or `prompt`, or `messages` | `answer` |

    probabilities = softmax(model(text))

A checkpoint's own head may be for several classes at once (`problem_type` multi_label_classification): it says `labels`, those
whose probability, by the logistic function, is one half or more. A head of numbers (regression) says `value`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.base import encode
from inlay.base.base import DEFAULT_NEW_TOKENS, Base
from inlay.base.purpose import CAUSAL_LM
from inlay.errors import ConfigError, DataError, explain, few
from inlay.model.attach import Rows

MAX_TOKENS = 4096
"""As many tokens go through the model at a time, padding included, and one row at least."""

MAX_ANSWERS = 32
"""As many rows are answered at a time."""

Prediction = dict[str, Any]
Given = str | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Item:
    """A row that can be predicted."""

    ids: tuple[int, ...] = ()
    types: tuple[int, ...] = ()
    """Which of two texts each token belongs to, where the model asks for that."""
    words: tuple[str, ...] = ()
    firsts: tuple[int, ...] = ()
    """The number of each word's first token."""
    prompt: Any = None
    """What a causal language model is asked."""


def prepare(base: Base, rows: Sequence[Given], names: Sequence[str] = ()) -> list[Item]:
    """Rows as the model is given them.

    **Arguments:**

    - `names`: what rows are called in a message, such as rows.jsonl:3; by number unless given.

    **Raises:**

    - `DataError`: some have not what the task reads, or are longer than the model's positions; all of them are named.
    """
    keys, read, _ = TASKS[base.task]
    items: list[Item] = []
    problems: list[str] = []
    limit = min(base.max_length, base.tokenizer.model_max_length) if base.max_length is not None else None
    for number, row in enumerate(rows):
        try:
            items.append(read(base, row))
            if limit is not None and len(items[-1].ids) > limit:
                raise DataError(f"{len(items[-1].ids):,} tokens, this model takes {limit:,}")
        except DataError as error:
            problems.append(f"{names[number] if names else f'row {number}'}: {error}")
    if problems:
        raise DataError(
            explain("some rows can't be predicted", found=few(problems), do=f"rows with {keys}, not too long")
        )
    return items


@torch.no_grad()
def predict(
    base: Base, items: Sequence[Item], adapters: Rows = None, max_new_tokens: int | None = None
) -> list[Prediction]:
    """What the base says of each item.

    **Arguments:**

    - `adapters`: a name for all rows, or one name or None per row; None: the plain base.
    - `max_new_tokens`: longest answer, where the task has answers.

    **Raises:**

    - `ConfigError`: see `check`; or rows and adapters are not as many.
    """
    by_row = [adapters] * len(items) if isinstance(adapters, str | None) else list(adapters)
    if len(by_row) != len(items):
        found = f"{len(items)} rows, {len(by_row)} adapters"
        raise ConfigError(
            explain("rows and names of their adapters differ in number", found=found, do="one name for all rows")
        )
    check(base, by_row)
    if max_new_tokens is not None and not TASKS[base.task][0].startswith("prompt"):
        found = f"max_new_tokens={max_new_tokens} with task {base.task}"
        raise ConfigError(
            explain("this task makes no answers whose length could be limited", found=found, do="leave it out")
        )
    said: list[Prediction] = [{} for _ in items]
    for group in _groups(base, items):
        with base.using(adapters if isinstance(adapters, str | None) else [by_row[i] for i in group]):
            found = TASKS[base.task][2](base, [items[i] for i in group], [by_row[i] for i in group], max_new_tokens)
        for number, prediction in zip(group, found, strict=True):
            said[number] = prediction
    return said


def check(base: Base, adapters: Sequence[str | None]) -> None:
    """Refuse rows whose answer would come from a head of random numbers.

    **Raises:**

    - `ConfigError`: a row takes no adapter, and the base has no trained head.
    """
    if base.fresh_heads and None in adapters:
        raise ConfigError(
            explain(
                "the base alone has learned none of these classes: what it says would be random",
                found=f"{base.checkpoint.name} holds no {', '.join(base.fresh_heads)}",
                do="--adapter DIR, one that was trained for this task",
            )
        )


def _groups(base: Base, items: Sequence[Item]) -> list[list[int]]:
    if base.task == CAUSAL_LM:
        numbers = sorted(range(len(items)), key=lambda i: len(str(items[i].prompt)))
        return [numbers[i : i + MAX_ANSWERS] for i in range(0, len(numbers), MAX_ANSWERS)]
    return list(encode.groups([len(item.ids) for item in items], MAX_TOKENS))


def _text(row: Given, *keys: str) -> str:
    """The text of a row: itself, or what it has under one of these keys."""
    if isinstance(row, str):
        return _whole(row, "the text")
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise DataError(f"keys {', '.join(map(str, row)) or 'none'}")
    return _whole(row[key], key)


def _whole(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} is {'null' if value is None else f'a {type(value).__name__}'}, not a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{name} holds half a character (a lone surrogate)")
    return value


def _read_text(base: Base, row: Given) -> Item:
    text = _text(row, "text")
    if isinstance(row, str) or row.get("text_pair") is None:
        return Item(encode.text_ids(base, text))
    return Item(*encode.pair_ids(base, text, _whole(row["text_pair"], "text_pair")))


def _read_words(base: Base, row: Given) -> Item:
    if isinstance(row, str) or "tokens" not in row:
        words = _text(row, "text").split()
    else:
        words = row["tokens"]
        if not isinstance(words, list | tuple):
            raise DataError("tokens is not a list of strings")
        words = [_whole(word, "a token") for word in words]
    if not words:
        raise DataError("no word")
    ids, firsts = encode.word_ids(base, words)
    return Item(ids, words=tuple(words), firsts=tuple(firsts))


def _read_anchor(base: Base, row: Given) -> Item:
    return Item(encode.text_ids(base, _text(row, "text", "anchor")))


def _read_prompt(base: Base, row: Given) -> Item:
    return Item(encode.text_ids(base, _text(row, "prompt")))


def _read_messages(base: Base, row: Given) -> Item:
    if isinstance(row, str) or "messages" not in row:
        return Item(prompt=_text(row, "prompt"))
    messages = row["messages"]
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        raise DataError("messages is not a list of objects with role and content")
    if not messages or messages[-1].get("role") == "assistant":
        raise DataError("the last message is the assistant's: there is nothing to answer")
    return Item(prompt=[dict(message) for message in messages])


def _classes(base: Base, items: Sequence[Item], names: Any, max_new_tokens: int | None) -> list[Prediction]:
    types = [item.types or (0,) * len(item.ids) for item in items] if any(item.types for item in items) else ()
    logits = _wide(base.model(**encode.inputs(base, [item.ids for item in items], types)).logits)
    kind = getattr(base.model.config, "problem_type", None)
    if kind == "regression" or logits.shape[-1] == 1:
        return [{"value": row[0] if len(row) == 1 else row} for row in logits.tolist()]
    several = kind == "multi_label_classification"
    said: list[Prediction] = []
    for row in (logits.sigmoid() if several else logits.softmax(-1)).tolist():
        by_name = dict(zip(base.labels, row, strict=True))
        if several:
            said.append({"labels": [name for name in by_name if by_name[name] >= 0.5], "probabilities": by_name})
        else:
            best = max(by_name, key=lambda name: by_name[name])
            said.append({"label": best, "probability": by_name[best], "probabilities": by_name})
    return said


def _tags(base: Base, items: Sequence[Item], names: Any, max_new_tokens: int | None) -> list[Prediction]:
    found = _wide(base.model(**encode.inputs(base, [item.ids for item in items])).logits).softmax(-1).max(-1)
    said: list[Prediction] = []
    for item, best, number in zip(items, found.values.tolist(), found.indices.tolist(), strict=True):
        tags = [base.labels[number[i]] for i in item.firsts]
        said.append({"tokens": list(item.words), "tags": tags, "probabilities": [best[i] for i in item.firsts]})
    return said


def _vectors(base: Base, items: Sequence[Item], names: Any, max_new_tokens: int | None) -> list[Prediction]:
    return [{"vector": row} for row in _wide(encode.points(base, [item.ids for item in items])).tolist()]


def _texts(base: Base, items: Sequence[Item], names: Any, max_new_tokens: int | None) -> list[Prediction]:
    found = encode.answers(base, [item.ids for item in items], max_new_tokens or DEFAULT_NEW_TOKENS)
    return [{"answer": text} for text in found]


def _answers(base: Base, items: Sequence[Item], names: Any, max_new_tokens: int | None) -> list[Prediction]:
    found = base.generate([item.prompt for item in items], names, max_new_tokens=max_new_tokens)
    return [{"answer": text.strip()} for text in found]


def _wide(logits: Tensor) -> Tensor:
    """Logits in float32 or wider.

    **Raises:**

    - `DataError`: some are no numbers.
    """
    if not logits.isfinite().all():
        raise DataError(
            explain(
                "this model's output is not a number, so that it says nothing",
                found="NaN or infinity among the logits: weights that are not finite, or too large for this dtype",
                do="--dtype float32, or fetch the base again",
            )
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


TASKS: dict[str, tuple[str, Callable[[Base, Given], Item], Callable[..., list[Prediction]]]] = {
    "sequence-classification": ("text, or text and text_pair", _read_text, _classes),
    "token-classification": ("tokens, or text", _read_words, _tags),
    "embedding": ("text, or anchor", _read_anchor, _vectors),
    "seq2seq": ("prompt", _read_prompt, _texts),
    CAUSAL_LM: ("prompt, or messages", _read_messages, _answers),
}
"""Task -> (what a row has, how one is read, what is said of some)."""
