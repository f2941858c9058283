"""Answers that a row has beside the one that it is trained on."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

REFERENCES = "references not trained on: answers are scored by them"


def counted(rows: Iterable[tuple[Any, Sequence[str]]]) -> Counter[str]:
    """The note on rows (completion, references) that have such answers, with how many; nothing where there are none."""
    left_out = sum(text != completion for completion, references in rows for text in references)
    return Counter({REFERENCES: left_out} if left_out else {})
