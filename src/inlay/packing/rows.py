"""Rows into tensors: the parts of a step, packed into one row each or padded to a batch.

Packed, rows lie one after the other and positions start again with each; a row ends before its last token that is trained
on, since no target comes after that. Of rows that begin alike (`inlay.packing.shared`) what they share comes first, and the
rest of each after all of that. Padded, they are filled up at the end: a causal model's real tokens never see what
comes after them, so no attention mask is needed and the padding changes nothing. Either way positions without a target carry
the label that the loss ignores.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from inlay.core.cross_entropy import IGNORE
from inlay.packing.shared import Family
from inlay.text.mask import Example


@dataclasses.dataclass(frozen=True, eq=False)  # its shapes are checked in tests; a tuple's fields would not be
class Batch:
    """Some rows as tensors; `labels[i, t]` is the token after position t of row i, or `IGNORE`."""

    input_ids: Int[Tensor, "batch t"]
    labels: Int[Tensor, "batch t"]


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Some rows one after the other; `labels[t]` is the token after position t in its own row, or `IGNORE`."""

    input_ids: Int[Tensor, " t"]
    position_ids: Int[Tensor, " t"]
    """From 0 in every row; branches go on."""
    labels: Int[Tensor, " t"]
    lengths: tuple[int, ...]
    """Tokens of each row, in order."""
    parents: tuple[int, ...] = ()
    """The last of them are branches, which continue these."""


def num_targets(examples: Sequence[Example]) -> int:
    """How many tokens the loss is taken on."""
    return sum(example.num_trained for example in examples)


def num_tokens(examples: Sequence[Example]) -> int:
    """How many tokens the rows have, without padding."""
    return sum(len(example.input_ids) for example in examples)


def collate(examples: Sequence[Example]) -> Batch:
    """The rows as one padded batch."""
    longest = max(len(example.input_ids) for example in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORE)
    for i, example in enumerate(examples):
        ids, wanted = _tensors(example)
        input_ids[i, : len(ids)] = ids
        labels[i, : len(ids) - 1] = wanted[1:]
    return Batch(input_ids, labels)


def pack(examples: Sequence[Example], front: Sequence[Sequence[int]] = ()) -> Packed:
    """The rows as one, each with its virtual tokens, where `front` has some for it, before it."""
    return _joined([_row(example, front[i] if front else ()) for i, example in enumerate(examples)])


def pack_families(found: Sequence[Family]) -> Packed:
    """The rows as one: what families share first, and rows that share nothing; then the rest of each."""
    rows = [[_row(example) for example in family.rows] for family in found]
    whole = [own[0].part(0, family.shared or None) for family, own in zip(found, rows, strict=True)]
    branches = [
        (row.part(family.shared, None), number)
        for number, (family, own) in enumerate(zip(found, rows, strict=True))
        for row in own
        if family.shared
    ]
    return _joined([*whole, *(row for row, _ in branches)], tuple(number for _, number in branches))


class _Row(NamedTuple):
    """A row, or a part of one: tokens, their positions, and what follows each."""

    input_ids: Tensor
    positions: Tensor
    labels: Tensor

    def part(self, start: int, stop: int | None) -> "_Row":
        return _Row(*(tensor[start:stop] for tensor in self))


def _row(example: Example, front: Sequence[int] = ()) -> _Row:
    """A row up to the token before the last that is trained on, with its virtual tokens."""
    length = max(1, bytes(example.trained).rfind(1))
    virtual = torch.tensor(front, dtype=torch.long)
    ids, wanted = _tensors(example)
    labels = torch.full((len(virtual) + length,), IGNORE)
    following = wanted[1 : length + 1]  # one less than `length` where the row has one token
    labels[len(virtual) : len(virtual) + len(following)] = following
    return _Row(torch.cat([virtual, ids[:length]]), torch.arange(len(labels)), labels)


def _joined(rows: Sequence[_Row], parents: tuple[int, ...] = ()) -> Packed:
    input_ids, positions, labels = (torch.cat(tensors) for tensors in zip(*rows, strict=True))
    return Packed(input_ids, positions, labels, tuple(len(row.labels) for row in rows), parents)


def _tensors(example: Example) -> tuple[Tensor, Tensor]:
    """The tokens of a row, and the same with `IGNORE` for those that are not trained on."""
    ids = torch.tensor(example.input_ids, dtype=torch.long)
    return ids, ids.where(torch.frombuffer(bytearray(example.trained), dtype=torch.bool), IGNORE)


def parts(examples: Sequence[Example], max_tokens: int, *, padded: bool) -> Iterator[list[Example]]:
    """The rows in groups of similar length of at most `max_tokens` (one row may exceed it alone), with their padding if any."""
    group: list[Example] = []
    for example in sorted(examples, key=lambda e: len(e.input_ids)):
        others = len(group) * len(example.input_ids) if padded else num_tokens(group)
        if group and others + len(example.input_ids) > max_tokens:
            yield group
            group = []
        group.append(example)
    if group:
        yield group
