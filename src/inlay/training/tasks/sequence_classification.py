"""A class for every text, or for every pair of texts.

{"text": "...", "label": "..."}    {"text": "...", "text_pair": "...", "label": 3}

loss = sum over rows of -log softmax(model(text))[label]
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from inlay.base.base import Base
from inlay.base.encode import inputs, pair_ids, text_ids
from inlay.core.cross_entropy import IGNORE, cross_entropy_sum
from inlay.data import files
from inlay.evaluation import metrics
from inlay.model.attach import Rows
from inlay.training.tasks._labelled import LabelledTask, class_of, label_of, predictions
from inlay.training.tasks._padded import KeyedRow, Sample

UNLABELLED = (-1, IGNORE)
"""Labels of rows that were never labelled: GLUE's test rows, and what everybody leaves out of a loss."""


class SequenceClassification(LabelledTask):
    """Texts into classes."""

    name: ClassVar[str] = "sequence-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str] = "SEQ_CLS"
    unit: ClassVar[str] = "row"
    keys: ClassVar[str] = "text and label"
    example: ClassVar[str] = '{"text": "...", "label": "..."}, or text, text_pair and label'
    split_by: ClassVar[str] = "text"

    def row(self, value: dict[str, Any]) -> dict[str, Any] | str:
        if "text" not in value or "label" not in value:
            return f"keys {', '.join(map(str, value)) or 'none'}"
        for key in ("text", "text_pair"):
            if key in value and not isinstance(value[key], str):
                return f"{key} is {files.what(value[key])}, not a string"
        label = label_of(value["label"])
        if label is None:
            return f"label is {files.what(value['label'])}, not a string, a whole number, true or false"
        if not isinstance(value["label"], str) and value["label"] in UNLABELLED:
            return f"label {value['label']} says that the row has no label: remove it, or write a class as text"
        texts = {key: value[key] for key in ("text", "text_pair") if key in value}
        return {**texts, "label": label}

    def labels(self, rows: Sequence[KeyedRow]) -> tuple[str, ...]:
        return self.names(row.values["label"] for row in rows)

    def sample(self, row: KeyedRow, base: Base) -> Sample:
        label = class_of(row.values["label"], base)
        if "text_pair" not in row.values:
            return Sample(row, text_ids(base, row.values["text"]), (label,))
        ids, types = pair_ids(base, row.values["text"], row.values["text_pair"])
        return Sample(row, ids, (label,), types)

    def loss_of(self, base: Base, samples: Sequence[Sample]) -> Tensor:
        logits = self.logits(base, samples)
        return cross_entropy_sum(logits, torch.tensor([s.labels[0] for s in samples], device=logits.device))

    def logits(self, base: Base, samples: Sequence[Sample]) -> Tensor:
        """What the model says of each class (rows, classes), under the adapters that are active."""
        types = [s.types or (0,) * len(s.input_ids) for s in samples] if any(s.types for s in samples) else ()
        return base.model(**inputs(base, [s.input_ids for s in samples], types)).logits

    @torch.no_grad()
    def scores(
        self, base: Base, rows: Rows, samples: Sequence[Sample], max_new_tokens: int | None = None
    ) -> dict[str, float]:
        gold, said = [], []
        with base.using(rows):
            for part in self.parts(base, samples, None):
                gold += [sample.labels[0] for sample in part]
                said += predictions(self.logits(base, part))
        return {
            "accuracy": metrics.accuracy(gold, said),
            "matthews": metrics.matthews(gold, said),
            "macro_f1": metrics.macro_f1(gold, said),
        }
