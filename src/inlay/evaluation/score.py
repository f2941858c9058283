"""Answers against references, in the scores that a task's papers use.

BLEU: `sacrebleu.corpus_bleu(tokenize="13a", lowercase=True)` over all distinct prompts, each against all of its references.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from inlay.base.base import Base
from inlay.data.rows import Row
from inlay.errors import DataError, explain
from inlay.model.attach import Rows


class Scores(NamedTuple):
    """What the answers of a model scored."""

    bleu: float
    """0 to 100."""
    exact: float
    """Part of the prompts, 0 to 1, whose answer is one of its references to the letter."""
    num_prompts: int


def references(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Every distinct prompt with all of its references, in the order of the rows.

    **Raises:**

    - `DataError`: the rows are not prompts and completions.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        if not (isinstance(row.prompt, str) and isinstance(row.completion, str)):
            raise DataError(
                explain(
                    "these rows have no completions to score answers against",
                    found=f"{row.source} is a row of {row.form}",
                    do="data with prompt and completion, or prompt and references; --scores none for the loss alone",
                )
            )
        found.setdefault(row.prompt, []).extend(row.references or [row.completion])
    return found


def score(
    base: Base,
    rows: Rows,
    wanted: dict[str, list[str]],
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Answer every prompt greedily with these adapters, and compare.

    **Arguments:**

    - `wanted`: prompt -> its references.
    - `progress`: called with the prompts answered so far and in all.
    """
    prompts = sorted(wanted, key=len)  # similar lengths together: less padding
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        answers += base.generate(some, rows, max_new_tokens=max_new_tokens)
        progress(len(answers), len(prompts))
    exact = sum(answer.strip() in wanted[prompt] for prompt, answer in zip(prompts, answers, strict=True))
    return Scores(bleu([a.strip() for a in answers], [wanted[p] for p in prompts]), exact / len(prompts), len(prompts))


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of answers, 0 to 100, each against all of its references."""
    import sacrebleu

    most = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    return sacrebleu.corpus_bleu(list(answers), streams, tokenize="13a", lowercase=True).score  # type: ignore[arg-type]  # None: fewer references
