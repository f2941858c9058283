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

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from inlay.errors import ConfigError, DataError, explain, few
from inlay.generation.generate import names_of
from inlay.io.checkpoint import Checkpoint
from inlay.model.batch import Rows
from inlay.tasks import groups
from inlay.tasks.contract import Given, Item, Loaded, Prediction, TaskSpec

MAX_TOKENS = 4096
"""As many tokens go through the model at a time, padding included, and one row at least."""

MAX_ANSWERS = 32
"""As many rows are answered at a time."""


@runtime_checkable  # the tests check it where they check shapes
class Asked(Loaded, Protocol):
    """A base that is asked: `inlay.base.base.Base`."""

    spec: TaskSpec
    checkpoint: Checkpoint
    fresh_heads: list[str]


def prepare(base: Asked, rows: Sequence[Given], names: Sequence[str] = ()) -> list[Item]:
    """Rows as the model is given them.

    **Arguments:**

    - `names`: what rows are called in a message, such as rows.jsonl:3; by number unless given.

    **Raises:**

    - `DataError`: some have not what the task reads, or are longer than the model's positions; all of them are named.
    """
    items: list[Item] = []
    problems: list[str] = []
    limit = min(base.max_length, base.tokenizer.model_max_length) if base.max_length is not None else None
    for number, row in enumerate(rows):
        try:
            items.append(base.spec.item(base, row))
            if limit is not None and len(items[-1].ids) > limit:
                raise DataError(f"{len(items[-1].ids):,} tokens, this model takes {limit:,}")
        except DataError as error:
            problems.append(f"{names[number] if names else f'row {number}'}: {error}")
    if problems:
        raise DataError(
            explain(
                "some rows can't be predicted", found=few(problems), do=f"rows with {base.spec.asked}, not too long"
            )
        )
    return items


@torch.no_grad()
def predict(
    base: Asked, items: Sequence[Item], adapters: Rows = None, max_new_tokens: int | None = None
) -> list[Prediction]:
    """What the base says of each item.

    **Arguments:**

    - `adapters`: a name for all rows, or one name or None per row; None: the plain base.
    - `max_new_tokens`: longest answer, where the task has answers.

    **Raises:**

    - `ConfigError`: see `check`; or rows and adapters are not as many.
    """
    by_row = names_of(items, adapters)
    check(base, by_row)
    if max_new_tokens is not None and not base.spec.generates:
        found = f"max_new_tokens={max_new_tokens} with task {base.spec.name}"
        raise ConfigError(
            explain("this task makes no answers whose length could be limited", found=found, do="leave it out")
        )
    said: list[Prediction] = [{} for _ in items]
    for group in _groups(base, items):
        with base.using(adapters if isinstance(adapters, str | None) else [by_row[i] for i in group]):
            found = base.spec.said(base, [items[i] for i in group], [by_row[i] for i in group], max_new_tokens)
        for number, prediction in zip(group, found, strict=True):
            said[number] = prediction
    return said


def check(base: Asked, adapters: Sequence[str | None]) -> None:
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


def _groups(base: Asked, items: Sequence[Item]) -> list[list[int]]:
    if items and items[0].prompt is not None:
        numbers = sorted(range(len(items)), key=lambda i: len(str(items[i].prompt)))
        return [numbers[i : i + MAX_ANSWERS] for i in range(0, len(numbers), MAX_ANSWERS)]
    return list(groups([len(item.ids) for item in items], MAX_TOKENS))
