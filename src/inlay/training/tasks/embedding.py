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
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.base.base import Base
from inlay.base.encode import points, text_ids
from inlay.data import files
from inlay.evaluation import metrics
from inlay.model.attach import Rows
from inlay.training.tasks._padded import KeyedRow, PaddedTask, Sample

TEMPERATURE = 0.05
"""What similarities are divided by."""

EVAL_ROWS = 16
"""As many held-out rows see each other's positives: those of a step by default."""


class Embedding(PaddedTask):
    """Texts into points."""

    name: ClassVar[str] = "embedding"
    auto_class: ClassVar[str] = "AutoModel"
    task_type: ClassVar[str] = "FEATURE_EXTRACTION"
    unit: ClassVar[str] = "row"
    unused: ClassVar[tuple[str, ...]] = ("pooler",)
    keys: ClassVar[str] = "anchor and positive"
    example: ClassVar[str] = '{"anchor": "...", "positive": "..."}'
    split_by: ClassVar[str] = "anchor"

    def row(self, value: dict[str, Any]) -> dict[str, Any] | str:
        if "anchor" not in value or "positive" not in value:
            return f"keys {', '.join(map(str, value)) or 'none'}"
        for key in ("anchor", "positive"):
            if not isinstance(value[key], str):
                return f"{key} is {files.what(value[key])}, not a string"
        return {key: value[key] for key in ("anchor", "positive")}

    def sample(self, row: KeyedRow, base: Base) -> Sample:
        return Sample(row, text_ids(base, row.values["anchor"]), text_ids(base, row.values["positive"]))

    def length(self, sample: Sample) -> int:
        return max(len(sample.input_ids), len(sample.labels))

    def num_targets(self, samples: Sequence[Sample]) -> int:
        return len(samples)

    def num_tokens(self, samples: Sequence[Sample]) -> int:
        return sum(len(sample.input_ids) + len(sample.labels) for sample in samples)

    def parts(self, base: Base, samples: Sequence[Sample], max_tokens: int | None) -> Iterator[list[Sample]]:
        """Groups of about equal size, as the rows come: which ones meet does not depend on how long they are."""
        groups = -(-len(samples) // EVAL_ROWS)
        for i in range(groups):
            yield list(samples[i * len(samples) // groups : (i + 1) * len(samples) // groups])

    def step_parts(self, base: Base, samples: Sequence[Sample], max_tokens: int | None) -> Iterator[list[Sample]]:
        yield list(samples)

    def loss_of(self, base: Base, samples: Sequence[Sample]) -> Tensor:
        anchors = points(base, [sample.input_ids for sample in samples])
        positives = points(base, [sample.labels for sample in samples])
        return info_nce(anchors, positives, [sample.labels for sample in samples])

    @torch.no_grad()
    def scores(
        self, base: Base, rows: Rows, samples: Sequence[Sample], max_new_tokens: int | None = None
    ) -> dict[str, float]:
        candidates = list(dict.fromkeys(sample.labels for sample in samples))
        numbers = {ids: i for i, ids in enumerate(candidates)}
        with base.using(rows):
            anchors = _all_points(base, [sample.input_ids for sample in samples])
            similarity = anchors @ _all_points(base, candidates).T
        own = torch.tensor([numbers[sample.labels] for sample in samples], device=similarity.device)
        return {f"recall@{k}": metrics.recall_at(k, similarity, own) for k in (1, 5)}


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


@torch.no_grad()
def embed(base: Base, texts: Sequence[str], adapter: str | None = None) -> Float[Tensor, "texts width"]:
    """Where texts lie with an adapter that is attached, or with none: rows of length 1."""
    with base.using(adapter):
        return _all_points(base, [text_ids(base, text) for text in texts])


def _all_points(base: Base, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows width"]:
    """`points` of many rows, those of similar length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups = [order[i : i + EVAL_ROWS] for i in range(0, len(order), EVAL_ROWS)]
    found = torch.cat([points(base, [rows[i] for i in group]) for group in groups])
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return found[back.to(found.device)]
