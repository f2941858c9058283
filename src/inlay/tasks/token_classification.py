"""A class for every word of a text, such as the names of people and places in it.

    {"tokens": ["Ada", "wrote", "it"], "tags": ["PERSON", "O", "O"]}

The words are put together with spaces between them, as a tokenizer is used to seeing them; of each word the first piece is
scored, the others and what the tokenizer adds are not. A tag of -100 means that its word is not scored.

    loss = sum over words of -log softmax(model(text)[first piece of the word])[tag]
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from inlay.core.cross_entropy import IGNORE, cross_entropy_sum
from inlay.data import files
from inlay.errors import DataError
from inlay.tasks._encode import inputs, text_of, whole, wide, word_ids
from inlay.tasks._encode import padded as filled
from inlay.tasks._labels import HEADS, class_of, label_of, names_of, predictions
from inlay.tasks._padded import Form, KeyedRow, Sample, padded
from inlay.tasks.contract import OUTSIDE, Given, Item, Loaded, Prediction

NOT_SCORED = str(IGNORE)
"""The tag of words that are not scored, as everybody writes it."""

OUTSIDE_TAG = "O"
"""The tag of words that are no part of anything."""


def _values(value: dict[str, Any]) -> dict[str, Any] | str:
    tokens, tags = value.get("tokens"), value.get("tags")
    if "tokens" not in value or "tags" not in value:
        return f"keys {', '.join(map(str, value)) or 'none'}"
    if not (isinstance(tokens, list) and tokens and all(isinstance(word, str) for word in tokens)):
        return f"tokens is {files.what(tokens)}, not a list of strings"
    named = [label_of(tag) for tag in tags] if isinstance(tags, list) else [None]
    if not isinstance(tags, list) or None in named:
        return f"tags is {files.what(tags)}, not a list of strings or whole numbers"
    if len(tokens) != len(tags):
        return f"{len(tokens)} tokens and {len(tags)} tags"
    return {"tokens": tokens, "tags": named}


def _sample(row: KeyedRow, base: Loaded) -> Sample:
    ids, firsts = word_ids(base, row.values["tokens"])
    labels = [IGNORE] * len(ids)
    for first, tag in zip(firsts, row.values["tags"], strict=True):
        if tag != NOT_SCORED:
            labels[first] = class_of(tag, base)
    if all(label == IGNORE for label in labels):
        raise DataError(f"no word of it is scored: all tags are {NOT_SCORED}")
    return Sample(row, ids, tuple(labels))


def _item(base: Loaded, row: Given) -> Item:
    if isinstance(row, str) or "tokens" not in row:
        words = text_of(row, "text").split()
    else:
        words = row["tokens"]
        if not isinstance(words, list | tuple):
            raise DataError("tokens is not a list of strings")
        words = [whole(word, "a token") for word in words]
    if not words:
        raise DataError("no word")
    ids, firsts = word_ids(base, words)
    return Item(ids, words=tuple(words), firsts=tuple(firsts))


def _logits(base: Loaded, rows: Sequence[tuple[int, ...]]) -> Tensor:
    """What the model says of each class at each token (rows, t, classes), under the adapters that are active."""
    return base.model(**inputs(base, rows)).logits


def _losses_of(base: Loaded, groups: Sequence[Sequence[Sample]]) -> list[Tensor]:
    samples, sizes = [sample for group in groups for sample in group], [*map(len, groups)]
    logits = _logits(base, [s.input_ids for s in samples])
    labels = filled([s.labels for s in samples], IGNORE).to(logits.device)
    return [*map(cross_entropy_sum, logits.split(sizes), labels.split(sizes))]


def _answered(base: Loaded, samples: Sequence[Sample], max_new_tokens: int | None) -> tuple[list[int], list[int]]:
    gold, said = [], []
    for part in SPEC.parts(base, samples, None):
        logits = _logits(base, [s.input_ids for s in part])
        labels = filled([s.labels for s in part], IGNORE).to(logits.device)
        gold += labels[labels != IGNORE].tolist()
        said += predictions(logits[labels != IGNORE])
    outside = base.labels.index(OUTSIDE_TAG) if OUTSIDE_TAG in base.labels else OUTSIDE
    marked = [[OUTSIDE if number == outside else number for number in numbers] for numbers in (gold, said)]
    return marked[0], marked[1]


def _said(
    base: Loaded, items: Sequence[Item], adapters: Sequence[str | None], max_new_tokens: int | None
) -> list[Prediction]:
    found = wide(_logits(base, [item.ids for item in items])).softmax(-1).max(-1)
    said: list[Prediction] = []
    for item, best, number in zip(items, found.values.tolist(), found.indices.tolist(), strict=True):
        tags = [base.labels[number[i]] for i in item.firsts]
        said.append({"tokens": list(item.words), "tags": tags, "probabilities": [best[i] for i in item.firsts]})
    return said


SPEC = padded(
    Form(
        task="token-classification",
        keys="tokens and tags",
        example='{"tokens": ["Ada", "wrote"], "tags": ["PERSON", "O"]}',
        split_by="tokens",
        values=_values,
        sample=_sample,
    ),
    unit="word",
    auto_class="AutoModelForTokenClassification",
    task_type="TOKEN_CLS",
    **HEADS,
    classes=lambda rows: names_of(tag for row in rows for tag in row.values["tags"] if tag != NOT_SCORED),
    losses_of=_losses_of,
    scores=("f1", "accuracy"),
    answered=_answered,
    asked="tokens, or text",
    typed="Ada wrote this",
    item=_item,
    said=_said,
)
"""Words into classes."""
