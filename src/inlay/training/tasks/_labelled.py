"""Tasks whose answers are classes: their names, and their numbers in the model."""

from collections.abc import Iterable
from typing import ClassVar

import torch

from inlay.errors import DataError, explain
from inlay.model.base import Base
from inlay.training.tasks._padded import PaddedTask

MAX_SHOWN = 20
"""As many names of classes stand in a message."""


class LabelledTask(PaddedTask):
    """A task with classes, that a head of its own tells apart."""

    heads: ClassVar[tuple[str, ...]] = ("score", "classifier", "classification_head")
    beside: ClassVar[tuple[str, ...]] = ("pooler", "pre_classifier", "head", "sequence_summary", "logits_proj")

    def names(self, found: Iterable[str]) -> tuple[str, ...]:
        """The names of classes, sorted: as numbers where all are whole numbers.

        **Raises:**

        - `DataError`: there is only one: nothing is to be told apart.
        """
        names = set(found)
        whole = all(name.isdigit() for name in names)
        if len(names) < 2:
            raise DataError(
                explain(
                    "classes are told apart, so that there are two or more",
                    found=f"all rows have {', '.join(names) or 'none'}",
                    do="rows of every class",
                )
            )
        return tuple(sorted(names, key=int) if whole else sorted(names))


def class_of(label: str, base: Base) -> int:
    """The number of a class.

    **Raises:**

    - `DataError`: the base has no class of that name.
    """
    if label not in base.labels:
        known = ", ".join(base.labels[:MAX_SHOWN]) + (" ..." if len(base.labels) > MAX_SHOWN else "")
        raise DataError(f"unknown label {label!r}; the classes are {known}")
    return base.labels.index(label)


def is_label(value: object) -> bool:
    """A label is a string of some length, or a whole number."""
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def predictions(logits: torch.Tensor) -> list[int]:
    """The likeliest classes."""
    return logits.argmax(-1).tolist()
