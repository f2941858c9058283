"""What a task is: the model that it needs, what a row of it holds, and how rows become a loss and a score.

A row becomes a sample: tokens, and what they should lead to. Samples go through the model in parts; the loss of a part is a sum
over its targets, so that a step or an evaluation does not depend on how it was split.
"""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor

from inlay.base.base import Base
from inlay.base.purpose import Purpose
from inlay.data.sources import TRAIN, Data, Source
from inlay.model.attach import Rows
from inlay.training.data import Prepared, unheard


class Task(abc.ABC):
    """What every task has. Samples and rows are its own: nothing else looks into them."""

    name: ClassVar[str]
    auto_class: ClassVar[str]
    """The class of `transformers` that makes its model."""
    task_type: ClassVar[str]
    """What the exchange format calls it."""
    unit: ClassVar[str]
    """What a target is, in a word: the loss is per one of them."""
    heads: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    unused: ClassVar[tuple[str, ...]] = ()
    """Names of modules; see `inlay.base.purpose.Purpose`."""
    has_answers: ClassVar[bool] = False
    """Its scores are those of generated text."""

    def purpose(self, labels: tuple[str, ...] = ()) -> Purpose:
        """What a base is loaded for, with these classes."""
        return Purpose(
            task=self.name,
            auto_class=self.auto_class,
            task_type=self.task_type,
            heads=self.heads,
            beside=self.beside,
            unused=self.unused,
            labels=labels,
        )

    @abc.abstractmethod
    def read(self, source: Source, splits: tuple[str, ...] = TRAIN) -> Data[Any]:
        """The rows of a file, a folder, a data set on the hub, a list or a data frame, checked; see `inlay.data.sources.read`.

        **Raises:**

        - `UnknownNameError`, `FormatError`, `DataError`: see there; rows of another form are refused with the keys that the
          task wants.
        """

    def labels(self, rows: Sequence[Any]) -> tuple[str, ...]:
        """The names of the classes in these rows, sorted; empty where the task has none."""
        return ()

    @abc.abstractmethod
    def prepare(
        self,
        rows: Sequence[Any],
        base: Base,
        max_length: int,
        train_on: str,
        too_long: str | None,
        *,
        may_be_empty: bool = False,
        progress: Callable[[int, int], None] = unheard,
    ) -> Prepared:
        """The rows as samples, see `inlay.training.data.prepare`."""

    @abc.abstractmethod
    def num_targets(self, samples: Sequence[Any]) -> int:
        """How many targets the loss is taken on."""

    @abc.abstractmethod
    def num_tokens(self, samples: Sequence[Any]) -> int:
        """How many tokens the samples have, without padding."""

    @abc.abstractmethod
    def parts(self, base: Base, samples: Sequence[Any], max_tokens: int | None) -> Iterator[list[Any]]:
        """The samples in groups that go through the model together, by default of as many tokens as suit it."""

    def step_parts(self, base: Base, samples: Sequence[Any], max_tokens: int | None) -> Iterator[list[Any]]:
        """Those of one training step."""
        return self.parts(base, samples, max_tokens)

    @abc.abstractmethod
    def loss_of(self, base: Base, samples: Sequence[Any]) -> Tensor:
        """The summed loss of some samples, in nats, under the adapters that are active."""

    def scores(
        self, base: Base, rows: Rows, samples: Sequence[Any], max_new_tokens: int | None = None
    ) -> dict[str, float]:
        """What the base scores with these adapters on these samples, by name; nothing where the loss says it all.

        `max_new_tokens`: longest answer, where the task generates.
        """
        return {}
