"""What an adapter forgot: how much worse it is than its base on text that has nothing to do with what it learned.

growth = loss(other text, adapter) - loss(other text, base)          in nats per token
"""

from collections.abc import Sequence
from typing import Any

from inlay.base.base import Base
from inlay.data.rows import Row
from inlay.evaluation.loss import evaluate
from inlay.tasks.causal_lm import prepare

LONGEST = 2048
"""Longer texts are left out."""


def growth(base: Base, adapter: str, examples: Sequence[Any]) -> float:
    """How much the loss of an attached adapter on these samples is above that of its base."""
    return evaluate(base, adapter, examples) - evaluate(base, None, examples)


def of(base: Base, adapter: str, texts: Sequence[str]) -> float | None:
    """The same on texts, of a base that continues them; None where its positions hold none of them."""
    room = LONGEST if base.max_length is None else base.max_length - base.adapters[adapter].num_virtual
    rows = [Row("text", f"text {number}", text=text) for number, text in enumerate(texts)]
    examples = prepare(rows, base.tokenizer, min(LONGEST, room), "all", "drop", may_be_empty=True).examples
    return growth(base, adapter, examples) if examples else None
