"""Answers that a row has beside the one that it is trained on."""

from collections import Counter
from collections.abc import Iterable, Sequence

REFERENCES = "references not trained on: answers are scored by them"


def counted(rows: Iterable[tuple[str | None, Sequence[str]]]) -> Counter[str]:
    """The note on rows (completion, references) that have such answers, with how many; nothing where there are none."""
    return +Counter({REFERENCES: sum(text != completion for completion, references in rows for text in references)})
