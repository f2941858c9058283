"""How well classes and neighbours are told apart: the scores that papers use, from the counts that define them."""

import math
from collections import Counter
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor


def accuracy(gold: Sequence[int], said: Sequence[int]) -> float:
    """Part of the answers, 0 to 1, that are right."""
    return sum(g == s for g, s in zip(gold, said, strict=True)) / len(gold)


def matthews(gold: Sequence[int], said: Sequence[int]) -> float:
    """The correlation of two series of classes, -1 to 1; 0 where one of them is always the same.

        (c n - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2))

    n answers, c of them right; class k is said p_k times and true t_k times.
    Source: Gorodkin 2004; for two classes, Matthews 1975.
    """
    n, right = len(gold), sum(g == s for g, s in zip(gold, said, strict=True))
    true, told = Counter(gold), Counter(said)
    both = sum(told[k] * true[k] for k in told)
    spread = (n * n - sum(p * p for p in told.values())) * (n * n - sum(t * t for t in true.values()))
    return (right * n - both) / math.sqrt(spread) if spread else 0.0


def macro_f1(gold: Sequence[int], said: Sequence[int]) -> float:
    """The mean, over the classes that are true or said anywhere, of 2 right / (said + true); 0 to 1."""
    right = Counter(g for g, s in zip(gold, said, strict=True) if g == s)
    true, told = Counter(gold), Counter(said)
    classes = set(true) | set(told)
    return sum(2 * right[k] / (true[k] + told[k]) for k in classes) / len(classes)


def micro_f1(gold: Sequence[int], said: Sequence[int], outside: int | None = None) -> float:
    """2 right / (said + true), 0 to 1, counted over all classes but `outside`; 0 where no other is true or said."""
    right = sum(g == s != outside for g, s in zip(gold, said, strict=True))
    total = sum(g != outside for g in gold) + sum(s != outside for s in said)
    return 2 * right / total if total else 0.0


def recall_at(k: int, similarity: Float[Tensor, "rows candidates"], own: Int[Tensor, " rows"]) -> float:
    """Part of the rows, 0 to 1, whose own candidate is among the k most similar ones; one that others equal is behind them."""
    mine = similarity.gather(1, own[:, None])
    ahead = (similarity >= mine).sum(1) - 1
    return (ahead < k).float().mean().item()
