"""What a base scores on rows whose answers are known, in the scores that a task's papers use.

    BLEU       `sacrebleu.corpus_bleu(tokenize="13a", lowercase=True)` over all distinct prompts, each against all of its
               references
    ROUGE-L    the mean, over all distinct prompts, of the F measure of rouge-score without stemming of each answer against the
               reference that is nearest to it

Those of classes and neighbours are in `inlay.evaluation.metrics`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from inlay import extras
from inlay.base.base import Base
from inlay.data.rows import Row
from inlay.errors import DataError, explain
from inlay.evaluation import metrics
from inlay.model.batch import Rows
from inlay.tasks.contract import OUTSIDE


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
    wanted: dict[str, list[str]] = {}
    for row in rows:
        if not (isinstance(row.prompt, str) and isinstance(row.completion, str)):
            wrong = "these rows have no completions to score answers against"
            do = "data with prompt and completion, or prompt and references; --scores none for the loss alone"
            raise DataError(explain(wrong, found=f"{row.source} is a row of {row.form}", do=do))
        wanted.setdefault(row.prompt, []).extend(row.references or [row.completion])
    return wanted


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
    check_installed(["bleu"])
    answers = _answers(base, rows, wanted, max_new_tokens, batch_size, progress)
    found = bleu([*answers.values()], [wanted[prompt] for prompt in answers])
    return Scores(found, _part_exact(answers, wanted), len(answers))


def exact(base: Base, rows: Rows, wanted: dict[str, list[str]], *, max_new_tokens: int | None = None) -> float:
    """`Scores.exact` alone, which needs no other package."""
    return _part_exact(_answers(base, rows, wanted, max_new_tokens), wanted)


def _answers(
    base: Base,
    rows: Rows,
    wanted: Iterable[str],
    max_new_tokens: int | None,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """The greedy answer to every prompt, without the space around it."""
    prompts = sorted(wanted, key=len)  # similar lengths together: less padding
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        answers += base.generate(some, rows, max_new_tokens=max_new_tokens)
        progress(len(answers), len(prompts))
    return {prompt: answer.strip() for prompt, answer in zip(prompts, answers, strict=True)}


def _part_exact(answers: Mapping[str, str], wanted: Mapping[str, Sequence[str]]) -> float:
    return sum(answer in wanted[prompt] for prompt, answer in answers.items()) / len(answers)


_PACKAGES = {"bleu": ("sacrebleu", "BLEU"), "rouge_l": ("rouge_score", "ROUGE-L")}
"""The scores that others compute: their packages, and what they are called."""


def check_installed(names: Iterable[str]) -> None:
    """Refuse scores, by name, that can't be computed here; before a model answers for an hour.

    **Raises:**

    - `MissingExtraError`: a package is missing.
    """
    for name in names:
        if name in _PACKAGES:
            extras.need(*_PACKAGES[name])


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of answers, 0 to 100, each against all of its references."""
    check_installed(["bleu"])
    import sacrebleu

    most = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    return sacrebleu.corpus_bleu(list(answers), streams, tokenize="13a", lowercase=True).score  # type: ignore[arg-type]  # None: fewer references


def rouge_l(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of answers, 0 to 1, each against the nearest of its references."""
    check_installed(["rouge_l"])
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    found = [
        max(scorer.score(reference, answer)["rougeL"].fmeasure for reference in texts)
        for answer, texts in zip(answers, references, strict=True)
    ]
    return sum(found) / len(found)


SCORES: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": metrics.accuracy,
    "matthews": metrics.matthews,
    "macro_f1": metrics.macro_f1,
    "f1": partial(metrics.micro_f1, outside=OUTSIDE),
    "bleu": lambda references, answers: bleu(answers, references),
    "rouge_l": lambda references, answers: rouge_l(answers, references),
    "recall@1": lambda own, similarity: metrics.recall_at(1, similarity, own),
    "recall@5": lambda own, similarity: metrics.recall_at(5, similarity, own),
}
"""The scores that a task may name: of what is right, and of what was said."""


@torch.no_grad()
def scores(base: Base, rows: Rows, samples: Sequence[Any], max_new_tokens: int | None = None) -> dict[str, float]:
    """What the base scores with these adapters on samples of its task, by name; nothing where the loss says it all.

    **Arguments:**

    - `max_new_tokens`: longest answer, where the task generates.
    """
    if base.spec.answered is None:
        return {}
    check_installed(base.spec.scores)
    with base.using(rows):
        right, said = base.spec.answered(base, samples, max_new_tokens)
    return {name: SCORES[name](right, said) for name in base.spec.scores}
