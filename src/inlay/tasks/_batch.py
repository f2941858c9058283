"""Rows into tensors: the parts of a step, packed into one row each or padded to a batch.

Packed, rows lie one after the other and positions start again with each; a row ends before its last token that is trained
on, since no target comes after that. Padded, they are filled up at the end: a causal model's real tokens never see what
comes after them, so no attention mask is needed and the padding changes nothing. Either way positions without a target carry
the label that the loss ignores.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from inlay.core.cross_entropy import IGNORE
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
    """From 0 in every row."""
    labels: Int[Tensor, " t"]
    lengths: tuple[int, ...]
    """Tokens of each row, in order."""


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
    lengths, input_ids, positions, labels = [], [], [], []
    for i, example in enumerate(examples):
        length = max(1, bytes(example.trained).rfind(1))
        virtual = torch.tensor(front[i] if front else (), dtype=torch.long)
        ids, wanted = _tensors(example)
        input_ids += [virtual, ids[:length]]
        lengths.append(len(virtual) + length)
        positions.append(torch.arange(lengths[-1]))
        row = torch.full((lengths[-1],), IGNORE)
        following = wanted[1 : length + 1]  # one less than `length` where the row has one token
        row[len(virtual) : len(virtual) + len(following)] = following
        labels.append(row)
    return Packed(torch.cat(input_ids), torch.cat(positions), torch.cat(labels), tuple(lengths))


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
