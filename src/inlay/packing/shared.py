"""Rows that begin alike: what they have in common goes through the model once, forward and backward.

    rows   p a, p b, p c      pieces   p, then the branches a, b, c: each sees p and itself (`inlay.core.attention`)

Questions on one document, several answers to one prompt, pairs of a better and a worse one: the loss and its gradients are
those of the rows one by one, since a token's keys and values depend on nothing after it. What is shared ends before the first
token that is trained on, and before the one that predicts it, so that no row's loss is looked for there.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from inlay.text.mask import Example

FEWEST = 64
"""Tokens that rows have in common, at least: fewer are computed sooner than branches are put together."""

ROOM = 1.5
"""A family may have so many times the tokens of its longest row, where no other bound is given: that row needs most of the
memory anyway, and to divide the family is to compute what it shares again."""

AT_A_TIME = 256
"""Rows of which families are looked for."""


class Family(NamedTuple):
    """Rows, and how many tokens all of them begin with that are computed once; one row alone shares none."""

    rows: Sequence[Example]
    shared: int = 0

    @property
    def num_tokens(self) -> int:
        """How many tokens of them go through the model."""
        return sum(len(row.input_ids) for row in self.rows) - self.shared * (len(self.rows) - 1)

    @property
    def longest(self) -> int:
        """The tokens of the longest row."""
        return max(len(row.input_ids) for row in self.rows)


def families(rows: Sequence[Example]) -> list[Family]:
    """The rows by what they begin with, each in one family; those that share nothing in their order, and first."""
    order = sorted(range(len(rows)), key=lambda i: bytes(rows[i].input_ids))  # those that begin alike are neighbours
    alone, found = list[int](), list[Family]()
    for first in range(0, len(order), AT_A_TIME):
        some = order[first : first + AT_A_TIME]
        common = [_common(rows[i], rows[j]) for i, j in itertools.pairwise(some)]
        lengths = [len(rows[i].input_ids) for i in some]
        for start, stop, shared in _best(common, lengths, 0, len(some))[1]:
            if shared:
                found.append(Family([rows[i] for i in some[start:stop]], shared))
            else:
                alone += some[start:stop]
    return [*(Family([rows[i]]) for i in sorted(alone)), *found]


def _best(
    common: Sequence[int], lengths: Sequence[int], start: int, stop: int
) -> tuple[int, list[tuple[int, int, int]]]:
    """(tokens that are saved, the runs that save the most) of neighbours of whom each pair shares so many.

    A run is (start, stop, tokens that all of it share): at least as many as the rest of its longest row has.
    """
    if stop - start < 2:
        return 0, [(start, stop, 0)]
    shared = min(common[start : stop - 1])
    cuts = [start, *(i + 1 for i in range(start, stop - 1) if common[i] == shared), stop]
    apart = [_best(common, lengths, *part) for part in itertools.pairwise(cuts)]
    saved = sum(tokens for tokens, _ in apart)
    pays = shared >= max(FEWEST, max(lengths[start:stop]) - shared)
    together = shared * (stop - start - 1) if pays else 0
    return (
        (together, [(start, stop, shared)]) if together > saved else (saved, [run for _, runs in apart for run in runs])
    )


def num_tokens(found: Sequence[Family]) -> int:
    """How many tokens go through the model for these families together."""
    return sum(family.num_tokens for family in found)


def parts(found: Sequence[Family], max_tokens: int, room: float = 0.0) -> Iterator[list[Example]]:
    """The rows in groups of families of similar length, of at most `max_tokens`; a family that is larger is divided, unless it
    has at most `room` times the tokens of its longest row.

    Who goes with whom is found again in a group, and need not be what was found among all: that is what is counted.
    """
    divided = (part for one in found for part in _divided(one, max(max_tokens, int(room * one.longest))))
    group = list[Example]()
    for family in sorted(divided, key=lambda family: family.longest):
        more = [*group, *family.rows]
        if group and num_tokens(families(more)) > max_tokens:
            yield group
            more = [*family.rows]
        group = more
    if group:
        yield group


def _divided(family: Family, max_tokens: int) -> Iterator[Family]:
    """A family in parts of at most so many tokens; a row alone may have more."""
    rows = list[Example]()
    for row in family.rows:
        if rows and Family([*rows, row], family.shared).num_tokens > max_tokens:
            yield Family(rows, family.shared)
            rows = []
        rows.append(row)
    yield Family(rows, family.shared)


def _common(one: Example, other: Example) -> int:
    """How many tokens both begin with before what is trained on."""
    most = min(_free(one), _free(other))
    a, b = one.input_ids, other.input_ids
    return bisect.bisect_left(range(1, most + 1), True, key=lambda n: a[:n] != b[:n])


def _free(row: Example) -> int:
    """How many tokens come before the one that predicts the first that is trained on."""
    return max(0, bytes(row.trained).find(1, 1) - 1)
