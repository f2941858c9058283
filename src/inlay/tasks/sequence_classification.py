"""A class for every text, or for every pair of texts.

{"text": "...", "label": "..."}    {"text": "...", "text_pair": "...", "label": 3}

loss = sum over rows of -log softmax(model(text))[label]
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.core.cross_entropy import IGNORE, cross_entropy_sum
from inlay.data import files
from inlay.tasks._encode import inputs, pair_ids, text_ids, text_of, whole, wide
from inlay.tasks._labels import HEADS, class_of, label_of, names_of, predictions
from inlay.tasks._padded import Form, KeyedRow, Sample, padded
from inlay.tasks.contract import Given, Item, Loaded, Prediction

UNLABELLED = (-1, IGNORE)
"""Labels of rows that were never labelled: GLUE's test rows, and what everybody leaves out of a loss."""


def _values(value: dict[str, Any]) -> dict[str, Any] | str:
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


def _sample(row: KeyedRow, base: Loaded) -> Sample:
    label = class_of(row.values["label"], base)
    if "text_pair" not in row.values:
        return Sample(row, text_ids(base, row.values["text"]), (label,))
    ids, types = pair_ids(base, row.values["text"], row.values["text_pair"])
    return Sample(row, ids, (label,), types)


def _item(base: Loaded, row: Given) -> Item:
    text = text_of(row, "text")
    if isinstance(row, str) or row.get("text_pair") is None:
        return Item(text_ids(base, text))
    return Item(*pair_ids(base, text, whole(row["text_pair"], "text_pair")))


def _logits(base: Loaded, rows: Sequence[tuple[int, ...]], types: Sequence[tuple[int, ...]]) -> Tensor:
    """What the model says of each class (rows, classes), under the adapters that are active."""
    known = [own or (0,) * len(ids) for ids, own in zip(rows, types, strict=True)] if any(types) else ()
    return base.model(**inputs(base, rows, known)).logits


def _of_samples(base: Loaded, samples: Sequence[Sample]) -> Tensor:
    return _logits(base, [s.input_ids for s in samples], [s.types for s in samples])


def _losses_of(base: Loaded, groups: Sequence[Sequence[Sample]]) -> list[Tensor]:
    logits = _of_samples(base, [sample for group in groups for sample in group])
    labels = [torch.tensor([s.labels[0] for s in group], device=logits.device) for group in groups]
    return [*map(cross_entropy_sum, logits.split([*map(len, groups)]), labels)]


def _answered(base: Loaded, samples: Sequence[Sample], max_new_tokens: int | None) -> tuple[list[int], list[int]]:
    gold, said = [], []
    for part in SPEC.parts(base, samples, None):
        gold += [sample.labels[0] for sample in part]
        said += predictions(_of_samples(base, part))
    return gold, said


def _said(
    base: Loaded, items: Sequence[Item], adapters: Sequence[str | None], max_new_tokens: int | None
) -> list[Prediction]:
    logits = wide(_logits(base, [item.ids for item in items], [item.types for item in items]))
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


SPEC = padded(
    Form(
        task="sequence-classification",
        keys="text and label",
        example='{"text": "...", "label": "..."}, or text, text_pair and label',
        split_by="text",
        values=_values,
        sample=_sample,
    ),
    unit="row",
    auto_class="AutoModelForSequenceClassification",
    task_type="SEQ_CLS",
    **HEADS,
    classes=lambda rows: names_of(row.values["label"] for row in rows),
    losses_of=_losses_of,
    scores=("accuracy", "matthews", "macro_f1"),
    answered=_answered,
    asked="text, or text and text_pair",
    item=_item,
    said=_said,
)
"""Texts into classes."""
