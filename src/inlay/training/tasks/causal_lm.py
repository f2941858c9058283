"""The next token: rows are texts, prompts with completions, or conversations; packed where the model allows it.

The work is done where it always was: rows in `inlay.data`, tokens in `inlay.text.mask`, the loss in
`inlay.training.loss`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from torch import Tensor

from inlay.base.base import Base
from inlay.data import forms
from inlay.data.rows import Row
from inlay.data.sources import TRAIN, Data, Source
from inlay.text.mask import Example
from inlay.training import batch, loss
from inlay.training.data import Prepared, prepare, unheard
from inlay.training.tasks._contract import Task


class CausalLm(Task):
    """Next tokens."""

    name: ClassVar[str] = "causal-lm"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str] = "CAUSAL_LM"
    unit: ClassVar[str] = "token"

    def read(self, source: Source, splits: tuple[str, ...] = TRAIN) -> Data[Row]:
        return forms.read(source, splits)

    def prepare(
        self,
        rows: Sequence[Row],
        base: Base,
        max_length: int,
        train_on: str,
        too_long: str | None,
        *,
        may_be_empty: bool = False,
        progress: Callable[[int, int], None] = unheard,
    ) -> Prepared:
        base.check_causal()
        how = (base.tokenizer, max_length, train_on, too_long)
        return prepare(rows, *how, may_be_empty=may_be_empty, positions=base.max_length, progress=progress)

    def num_targets(self, samples: Sequence[Example]) -> int:
        return batch.num_targets(samples)

    def num_tokens(self, samples: Sequence[Example]) -> int:
        return batch.num_tokens(samples)

    def parts(self, base: Base, samples: Sequence[Example], max_tokens: int | None) -> Iterator[list[Example]]:
        return loss.parts(base, samples, max_tokens)

    def loss_of(self, base: Base, samples: Sequence[Example]) -> Tensor:
        return loss.loss_of(base, samples)
