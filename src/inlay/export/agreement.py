"""Whether a merged model says what base and adapter say, over the same tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from inlay.base.base import Base
from inlay.base.load import load
from inlay.core.product import DTYPES
from inlay.model.batch import Rows

SAMPLE = (
    "The ferry leaves at nine, and whoever misses it waits for the next one on the quay until noon.",
    "When water freezes it takes up more room than before, which is why a full bottle bursts in the cold.",
    "She counted the coins twice, put seven of them back into the drawer and wrote the sum in her book.",
    "A bridge is built from both banks at once, and the two halves have to meet in the middle.",
)
"""Text on which merged and unmerged logits are compared where none is given."""


class Comparison(NamedTuple):
    """The logits of the merged model against those of base and adapter; of one without a head, its last hidden states."""

    num_rows: int
    largest_difference: float
    """Largest absolute difference of a logit, merged against unmerged."""
    adapter_difference: float
    """Largest absolute difference of a logit, adapter against plain base: what there is to lose."""
    same_next_token: float | None
    """Part of the answers, 0 to 1, for which both find the same token, or class, likeliest; None without a head."""


def has_answers(base: Base) -> bool:
    """The base has a head: a row of its logits says which token or class is likeliest."""
    return base.spec.auto_class != "AutoModel"


@torch.no_grad()
def logits(base: Base, ids: Tensor, rows: Rows) -> Tensor:
    """What the model says of a row of tokens: (1, t, vocabulary), (1, classes) or (1, t, classes); or its last hidden states.

    A model with a decoder is asked to repeat them.
    """
    if base.spec.continues:
        return base.logits(ids, rows)
    more = {"labels": ids} if base.spec.auto_class == "AutoModelForSeq2SeqLM" else {}
    with base.using(rows):
        out = base.model(input_ids=ids, **more)
    return out.logits if has_answers(base) else out.last_hidden_state


def ids_of(base: Base, text: str) -> Tensor:
    """A text as a row of tokens (1, t), no longer than the model's positions allow."""
    return torch.tensor([base.tokenizer(text)["input_ids"][: base.max_length]])


def compare(base: Base, adapter: str, directory: Path, texts: Sequence[str]) -> Comparison:
    """Load the merged model in the base's dtype and compare logits over `texts`."""
    dtype = next(name for name, dtype in DTYPES.items() if dtype == base.dtype)
    other = load(directory, dtype=dtype, task=base.spec, labels=base.labels)
    differences, moves = [], []
    same = answers = 0
    for text in texts:
        ids = ids_of(base, text)
        unmerged, plain, merged = logits(base, ids, adapter), logits(base, ids, None), logits(other, ids, None)
        differences.append((merged.float() - unmerged.float()).abs().max())
        moves.append((plain.float() - unmerged.float()).abs().max())
        agree = merged.argmax(-1) == unmerged.argmax(-1)
        same += int(agree.sum())
        answers += agree.numel()
    largest, moved = torch.stack(differences).max().item(), torch.stack(moves).max().item()  # torch's max keeps a NaN
    return Comparison(len(texts), largest, moved, same / answers if has_answers(base) else None)
