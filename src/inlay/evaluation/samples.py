"""What is answered to a few prompts of the held-out rows, so that a person can see what a run changes.

The prompts are tokens, as training has them: all before a row's first trained token; of a text, its first quarter. The
likeliest token is taken, so that nothing is drawn and no generator moves.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from inlay.base.base import Base
from inlay.data.split import spread
from inlay.generation.answers import answers
from inlay.generation.sampling import Sampling
from inlay.generation.sequence import Request

COUNT = 3
"""As many prompts are answered."""

NEW_TOKENS = 48
"""How long an answer is at most."""

MOST_TOKENS = 512
"""Longer prompts are passed over: they take long to read, for people too."""


class Asked(NamedTuple):
    """A prompt, and what its row goes on with."""

    tokens: tuple[int, ...]
    text: str
    wanted: str


def prompts(base: Base, examples: Sequence[Any], num_virtual: int = 0) -> list[Asked]:
    """A few prompts of these rows, spread over them; none where the base does not continue prompts."""
    if not base.spec.continues:
        return []
    room = min(MOST_TOKENS, (base.max_length or MOST_TOKENS + NEW_TOKENS) - num_virtual - NEW_TOKENS)
    found = [asked for example in examples if 0 < len((asked := _asked(base, example)).tokens) <= room]
    return spread(found, COUNT)


def answered(base: Base, names: Sequence[str | None], asked: Sequence[Asked]) -> list[list[str]]:
    """The answers of each adapter, or of the base, to every prompt; all in one batch."""
    requests = [
        Request(
            tokens=one.tokens,
            adapter=None if name is None else base.adapters[name],
            sampling=Sampling(),
            max_new_tokens=NEW_TOKENS,
            stops=tuple(base.stop_ids(name)),
            seed=0,
        )
        for name in names
        for one in asked
    ]
    said = base.tokenizer.batch_decode(answers(base, requests), skip_special_tokens=True)
    return [said[start : start + len(asked)] for start in range(0, len(said), len(asked))]


def _asked(base: Base, example: Any) -> Asked:
    ids, trained = list(example.input_ids), list(example.trained)
    first = trained.index(1) if 1 in trained else 0
    if first <= 1:
        first = max(1, len(ids) // 4)
    after = next((place for place in range(first, len(ids)) if not trained[place]), len(ids))
    texts = base.tokenizer.batch_decode([ids[:first], ids[first:after]], skip_special_tokens=True)
    return Asked(tuple(ids[:first]), *texts)
