"""A class for every word of a text, such as the names of people and places in it.

    {"tokens": ["Ada", "wrote", "it"], "tags": ["PERSON", "O", "O"]}

The words are put together with spaces between them, as a tokenizer is used to seeing them; of each word the first piece is
scored, the others and what the tokenizer adds are not. A tag of -100 means that its word is not scored.

    loss = sum over words of -log softmax(model(text)[first piece of the word])[tag]
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from inlay.base.base import Base
from inlay.base.encode import inputs, padded, word_ids
from inlay.core.cross_entropy import IGNORE, cross_entropy_sum
from inlay.data import files
from inlay.errors import DataError
from inlay.evaluation import metrics
from inlay.model.attach import Rows
from inlay.training.tasks._labelled import LabelledTask, class_of, label_of, predictions
from inlay.training.tasks._padded import KeyedRow, Sample

NOT_SCORED = str(IGNORE)
"""The tag of words that are not scored, as everybody writes it."""

OUTSIDE = "O"
"""The tag of words that are no part of anything: F1 leaves it out."""


class TokenClassification(LabelledTask):
    """Words into classes."""

    name: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    task_type: ClassVar[str] = "TOKEN_CLS"
    unit: ClassVar[str] = "word"
    keys: ClassVar[str] = "tokens and tags"
    example: ClassVar[str] = '{"tokens": ["Ada", "wrote"], "tags": ["PERSON", "O"]}'
    split_by: ClassVar[str] = "tokens"

    def row(self, value: dict[str, Any]) -> dict[str, Any] | str:
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

    def labels(self, rows: Sequence[KeyedRow]) -> tuple[str, ...]:
        return self.names(tag for row in rows for tag in row.values["tags"] if tag != NOT_SCORED)

    def sample(self, row: KeyedRow, base: Base) -> Sample:
        ids, firsts = word_ids(base, row.values["tokens"])
        labels = [IGNORE] * len(ids)
        for first, tag in zip(firsts, row.values["tags"], strict=True):
            if tag != NOT_SCORED:
                labels[first] = class_of(tag, base)
        if all(label == IGNORE for label in labels):
            raise DataError(f"no word of it is scored: all tags are {NOT_SCORED}")
        return Sample(row, ids, tuple(labels))

    def loss_of(self, base: Base, samples: Sequence[Sample]) -> Tensor:
        logits = self.logits(base, samples)
        return cross_entropy_sum(logits, padded([s.labels for s in samples], IGNORE).to(logits.device))

    def logits(self, base: Base, samples: Sequence[Sample]) -> Tensor:
        """What the model says of each class at each token (rows, t, classes), under the adapters that are active."""
        return base.model(**inputs(base, [s.input_ids for s in samples])).logits

    @torch.no_grad()
    def scores(
        self, base: Base, rows: Rows, samples: Sequence[Sample], max_new_tokens: int | None = None
    ) -> dict[str, float]:
        gold, said = [], []
        with base.using(rows):
            for part in self.parts(base, samples, None):
                logits = self.logits(base, part)
                labels = padded([s.labels for s in part], IGNORE).to(logits.device)
                gold += labels[labels != IGNORE].tolist()
                said += predictions(logits[labels != IGNORE])
        outside = base.labels.index(OUTSIDE) if OUTSIDE in base.labels else None
        return {"f1": metrics.micro_f1(gold, said, outside), "accuracy": metrics.accuracy(gold, said)}
