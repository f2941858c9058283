"""Tasks whose answers are classes: their names, and their numbers in the model."""

import re
from collections.abc import Iterable, Sequence

import torch

from inlay import fields
from inlay.errors import ConfigError, DataError, explain
from inlay.tasks.contract import Loaded

_WHOLE = re.compile(r"-?[0-9]+")

MAX_SHOWN = 20
"""As many names of classes stand in a message."""


HEADS = {
    "heads": ("score", "classifier", "classification_head"),
    "optional_heads": ("pooler", "pre_classifier", "head", "sequence_summary", "logits_proj"),
}
"""The modules that tell classes apart, as `transformers` calls them."""


def names_of(found: Iterable[str]) -> tuple[str, ...]:
    """The names of classes, sorted: as numbers where all are whole numbers.

    **Raises:**

    - `DataError`: there is only one: nothing is to be told apart.
    """
    names = set(found)
    whole = all(map(_WHOLE.fullmatch, names))
    if len(names) < 2:
        raise DataError(
            explain(
                "there are fewer than two classes",
                found=f"all rows have {', '.join(names) or 'none'}",
                do="rows of every class",
            )
        )
    return tuple(sorted(names, key=int) if whole else sorted(names))


def class_of(label: str, base: Loaded) -> int:
    """The number of a class, by its name; or by its number where the base has no names but LABEL_0, LABEL_1 and so on.

    **Raises:**

    - `DataError`: the base has no such class.
    - `ConfigError`: its head does not tell classes apart.
    """
    _check_chooses(base)
    number = {"false": "0", "true": "1"}.get(label, label)
    if label not in base.labels and _are_unnamed(base.labels) and _WHOLE.fullmatch(number):
        label = f"LABEL_{int(number)}"
    if label not in base.labels:
        known = ", ".join(base.labels[:MAX_SHOWN]) + (" ..." if len(base.labels) > MAX_SHOWN else "")
        raise DataError(f"unknown label {label!r}; the classes are {known}")
    return base.labels.index(label)


def _check_chooses(base: Loaded) -> None:
    """Refuse a head that does not tell classes apart."""
    kind = getattr(base.model.config, "problem_type", None)
    if len(base.labels) < 2 or kind in ("regression", "multi_label_classification"):
        wrong = "this base's head does not choose one class of several"
        found = f"problem_type {kind}, {len(base.labels)} classes"
        raise ConfigError(explain(wrong, found=found, do="a base without a head"))


def _are_unnamed(labels: Sequence[str]) -> bool:
    """These are the names that `transformers` gives classes whose names nobody said."""
    return all(label == f"LABEL_{number}" for number, label in enumerate(labels))


def label_of(value: object) -> str | None:
    """A label as text: a string of some length, a whole number, however it is written, or true or false; None of others."""
    if isinstance(value, bool):
        return str(value).lower()
    whole = fields.fit(value, int)
    return (value or None) if isinstance(value, str) else None if whole is fields.MISFIT else str(whole)


def predictions(logits: torch.Tensor) -> list[int]:
    """The likeliest classes."""
    return logits.argmax(-1).tolist()
