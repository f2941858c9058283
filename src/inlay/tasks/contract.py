"""What a task is: one value that says which model it needs, what a row holds, and how rows become a loss, scores and answers.

Loading reads of it the class of the model and the names of its heads; training, how rows become samples and a loss; evaluation,
the names of its scores; and a base that is asked, what a row holds and what is said of it. Samples are the task's own: nothing
else looks into them. They go through the model in parts; the loss of a part is a sum over its targets, so that a step or an
evaluation does not depend on how it was split.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from inlay.data.sources import Data
from inlay.model.adapter_set import AdapterSet
from inlay.model.batch import Rows

DEFAULT_TASK = "causal-lm"
"""The task that a base is loaded for unless another is asked for."""

DEFAULT_NEW_TOKENS = 256
"""Longest answer, in tokens, where nothing is said."""

OUTSIDE = -1
"""The class, where answers are scored, of words that are no part of anything: F1 leaves it out."""

Prediction = dict[str, Any]
"""What is said of a row, by name."""

Given = str | Mapping[str, Any]
"""A row that is to be predicted: a text, or an object with the keys of the task."""


@runtime_checkable  # the tests check it where they check shapes
class Loaded(Protocol):
    """What a task asks of a base; `inlay.base.base.Base` is one."""

    model: Any
    tokenizer: Any
    adapters: AdapterSet
    dtype: torch.dtype
    labels: tuple[str, ...]
    head: str | None
    linears: dict[str, Any]
    router: Any

    @property
    def active(self) -> Rows: ...

    @cached_property
    def max_length(self) -> int | None: ...

    @property
    def pad_token(self) -> int: ...

    @property
    def end_tokens(self) -> list[int]: ...

    def using(self, rows: Rows) -> contextlib.AbstractContextManager[None]: ...

    def check_causal(self) -> None: ...

    def generate(
        self, prompts: Any, adapters: Rows | None = None, *, max_new_tokens: int | None = None
    ) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows as tokens, and what became of them."""

    examples: Sequence[Any]
    """`inlay.text.mask.Example`s, or what another task makes of its rows."""
    form: str
    max_length: int
    num_rows: int
    num_tokens: int
    num_trained: int
    """Tokens that the loss is taken on."""
    num_dropped: int
    """Rows longer than max_length that were left out."""
    num_windowed: int
    """Rows longer than max_length that were cut into windows."""
    advice: str = ""
    """What would keep the rows that were left out, where these are more than `inlay.tasks._lengths.MANY` of all."""
    ends: tuple[int, ...] = ()
    """The tokens that end what is trained on, where the task has such."""
    notes: tuple[str, ...] = ()
    """What was done to rows that are not trained on just as they stand, each with how often."""
    longer: tuple[str, ...] = ()
    """Where the rows that are longer than max_length came from."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A row that can be predicted."""

    ids: tuple[int, ...] = ()
    types: tuple[int, ...] = ()
    """Which of two texts each token belongs to, where the model asks for that."""
    words: tuple[str, ...] = ()
    firsts: tuple[int, ...] = ()
    """The number of each word's first token."""
    prompt: Any = None
    """What a causal language model is asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task: the one constant `SPEC` of the file that is called as the task is, with _ for -."""

    name: str
    unit: str
    """What a target is, in a word: the loss is per one of them."""

    auto_class: str
    """The class of `transformers` that makes its model."""
    task_type: str
    """What the exchange format calls such a model."""
    heads: tuple[str, ...] = ()
    """Names of modules that are trained whole, wherever the model has them; a task with heads has classes."""
    optional_heads: tuple[str, ...] = ()
    """Names of modules that a checkpoint may lack; they are trained whole where it does."""
    dropped_modules: tuple[str, ...] = ()
    """Names of modules at the top of the model that the task has no use for; they are taken away."""

    keys: str
    """What a row to learn from holds, in words, for a message."""
    read: Callable[..., Data[Any]]
    """(source, splits = `inlay.data.sources.TRAIN`) -> the rows of a file, a folder, a data set on the hub, a list or a frame,
    checked; see `inlay.data.sources.read`. `DataError` for rows of another form, with the keys that the task wants."""
    classes: Callable[[Sequence[Any]], tuple[str, ...]] | None = None
    """Rows -> the names of the classes in them, sorted; None where the task has none."""
    prepare: Callable[..., Prepared]
    """(rows, base, max_length, train_on, too_long, *, may_be_empty, progress) -> the rows as samples, see
    `inlay.tasks.causal_lm.prepare`."""

    num_targets: Callable[[Sequence[Any]], int]
    """Samples -> how many targets the loss is taken on."""
    num_tokens: Callable[[Sequence[Any]], int]
    """Samples -> how many tokens they have, without padding."""
    parts: Callable[[Loaded, Sequence[Any], int | None], Iterator[list[Any]]]
    """(base, samples, most tokens) -> the samples in groups that go through the model together, by default of as many tokens as
    suit it."""
    step_parts: Callable[[Loaded, Sequence[Any], int | None], Iterator[list[Any]]]
    """Those of one training step."""
    loss_of: Callable[[Loaded, Sequence[Any]], Tensor]
    """(base, samples) -> their summed loss, in nats, under the adapters that are active."""
    losses_of: Callable[[Loaded, Sequence[Sequence[Any]]], list[Tensor]] | None = None
    """(base, groups of samples) -> the summed loss of each, from one pass of all: adapters that learn at the same time have a
    group each. None: each of them has passes of its own."""
    teaches_nothing: Callable[[Sequence[Any], int], str] = lambda samples, batch_size: ""
    """(samples, how many a step takes) -> why steps would learn nothing, in a few words; empty where they learn."""

    scores: tuple[str, ...] = ()
    """What it is scored by: names of `inlay.evaluation.score.SCORES`; none where the loss says it all."""
    answered: Callable[[Loaded, Sequence[Any], int | None], tuple[Any, Any]] | None = None
    """(base, samples, longest answer) -> (what is right, what the base says under the adapters that are active), as each of the
    scores takes them."""

    asked: str
    """What a row that is to be predicted holds, in words, for a message."""
    typed: str = "some text"
    """What a person could type to try it."""
    generates: bool = False
    """It answers with text, whose length can be limited."""
    continues: bool = False
    """Its text continues the prompt: prompts are rendered as training renders them, tokens end an answer, every weight of the
    base is used, and a method may put virtual tokens in front of the rows."""
    pools: bool = False
    """It makes one vector of a text, in the way that the base's files name."""
    item: Callable[[Loaded, Given], Item]
    """(base, row) -> the row as the model is given it; `DataError` where it can't be."""
    said: Callable[[Loaded, Sequence[Item], Sequence[str | None], int | None], list[Prediction]]
    """(base, items, the adapter of each, longest answer) -> what the base says of each, under the adapters that are active."""
