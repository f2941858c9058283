"""Texts as points: an anchor lies nearer to its positive than to the positives of other anchors.

    {"anchor": "...", "positive": "..."}

    e(text)  = mean over the real tokens of the last hidden states, of length 1
    loss     = sum over anchors i of -log softmax_j(e(anchor_i) . e(positive_j) / TEMPERATURE)[i]

The positives of the other rows of a step are the negatives of each row; one with the same tokens as the row's own is left out.
So a step goes through the model whole, however many tokens it has, and its loss depends on its number of rows: held-out rows
are measured `EVAL_ROWS` at a time. Source: InfoNCE, van den Oord et al. 2018, section 2.3; in-batch negatives and the
temperature as in SimCSE, Gao et al. 2021, equation 1.

Not done: negatives from beyond a step. Gradient caching would allow larger steps in the same memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.data import files
from inlay.tasks._encode import points, text_ids, text_of, wide
from inlay.tasks._padded import Form, KeyedRow, Sample, padded
from inlay.tasks.contract import Given, Item, Loaded, Prediction

TEMPERATURE = 0.05
"""What similarities are divided by."""

EVAL_ROWS = 16
"""As many held-out rows see each other's positives: those of a step by default."""


def info_nce(
    anchors: Float[Tensor, "rows width"], positives: Float[Tensor, "rows width"], texts: Sequence[tuple[int, ...]]
) -> Float[Tensor, ""]:
    """The summed loss of anchors against the positives of all rows; equal `texts` are not each other's negatives."""
    similarity = anchors @ positives.T / TEMPERATURE
    numbers: dict[tuple[int, ...], int] = {}
    kinds = torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts], device=similarity.device)
    same = (kinds[:, None] == kinds) & ~torch.eye(len(texts), dtype=torch.bool, device=similarity.device)
    own = torch.arange(len(texts), device=similarity.device)
    return torch.nn.functional.cross_entropy(similarity.masked_fill(same, -torch.inf), own, reduction="sum")


def _values(value: dict[str, Any]) -> dict[str, Any] | str:
    if "anchor" not in value or "positive" not in value:
        return f"keys {', '.join(map(str, value)) or 'none'}"
    for key in ("anchor", "positive"):
        if not isinstance(value[key], str):
            return f"{key} is {files.what(value[key])}, not a string"
    return {key: value[key] for key in ("anchor", "positive")}


def _sample(row: KeyedRow, base: Loaded) -> Sample:
    return Sample(row, text_ids(base, row.values["anchor"]), text_ids(base, row.values["positive"]))


def _parts(base: Loaded, samples: Sequence[Sample], max_tokens: int | None) -> Iterator[list[Sample]]:
    """Groups of about equal size, as the rows come: which ones meet does not depend on how long they are."""
    groups = -(-len(samples) // EVAL_ROWS)
    for i in range(groups):
        yield list(samples[i * len(samples) // groups : (i + 1) * len(samples) // groups])


def _step_parts(base: Loaded, samples: Sequence[Sample], max_tokens: int | None) -> Iterator[list[Sample]]:
    yield list(samples)


def _teaches_nothing(samples: Sequence[Sample], batch_size: int) -> str:
    if len({sample.labels for sample in samples}) == 1:
        return f"all {len(samples)} rows have one positive, and none to tell it from"
    return "a step of one row has no other row's positive to tell its own from" if batch_size == 1 else ""


def _losses_of(base: Loaded, groups: Sequence[Sequence[Sample]]) -> list[Tensor]:
    samples, sizes = [sample for group in groups for sample in group], [*map(len, groups)]
    anchors = points(base, [sample.input_ids for sample in samples]).split(sizes)
    positives = points(base, [sample.labels for sample in samples]).split(sizes)
    texts = [[sample.labels for sample in group] for group in groups]
    return [*map(info_nce, anchors, positives, texts)]


def _answered(base: Loaded, samples: Sequence[Sample], max_new_tokens: int | None) -> tuple[Tensor, Tensor]:
    """(the number of each row's own candidate, the similarity of every row (rows, candidates) to every candidate)."""
    candidates = list(dict.fromkeys(sample.labels for sample in samples))
    numbers = {ids: i for i, ids in enumerate(candidates)}
    anchors = _all_points(base, [sample.input_ids for sample in samples])
    similarity = anchors @ _all_points(base, candidates).T
    return torch.tensor([numbers[sample.labels] for sample in samples], device=similarity.device), similarity


def _all_points(base: Loaded, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows width"]:
    """`points` of many rows, those of similar length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups = [order[i : i + EVAL_ROWS] for i in range(0, len(order), EVAL_ROWS)]
    found = torch.cat([points(base, [rows[i] for i in group]) for group in groups])
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return found[back.to(found.device)]


def _said(
    base: Loaded, items: Sequence[Item], adapters: Sequence[str | None], max_new_tokens: int | None
) -> list[Prediction]:
    return [{"vector": row} for row in wide(points(base, [item.ids for item in items])).tolist()]


def _item(base: Loaded, row: Given) -> Item:
    return Item(text_ids(base, text_of(row, "text", "anchor")))


SPEC = padded(
    Form(
        task="embedding",
        keys="anchor and positive",
        example='{"anchor": "...", "positive": "..."}',
        split_by="anchor",
        values=_values,
        sample=_sample,
        has_two_texts=True,
    ),
    unit="row",
    auto_class="AutoModel",
    task_type="FEATURE_EXTRACTION",
    dropped_modules=("pooler",),
    num_targets=len,
    parts=_parts,
    step_parts=_step_parts,
    losses_of=_losses_of,
    teaches_nothing=_teaches_nothing,
    scores=("recall@1", "recall@5"),
    answered=_answered,
    asked="text, or anchor",
    pools=True,
    item=_item,
    said=_said,
)
"""Texts into points."""
