"""The rows of a forward pass and whose they are, said once by whoever calls the model.

    padded    rows (rows, t): each row is one adapter's, or the plain base's
    packed    one row (1, t) that holds the rows one after the other, `lengths` tokens each

A batch is current for as long as `Router.using` says, in the thread or task that said it: two threads can call one model, each
with its own. Layers, attention and prompts look at nothing else. Where nothing is said, the router's default holds.
"""

import contextlib
import contextvars
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from inlay.core.routed import Segment, packed_segments, row_segments
from inlay.errors import CompatibilityError, ShapeError, explain, few
from inlay.model.adapter import Adapter, Sum
from inlay.model.changes import Replace
from inlay.modules.trial import Order
from inlay.packing.lying import Lying

Rows = str | Sequence[str | None] | None
"""Who takes which adapter: a name for every row, one name or None per row, or None for the plain base."""


Generators = torch.Generator | Mapping[str, torch.Generator] | None
"""What dropout draws from: one for all rows, or one for each adapter by its name; None: torch's own."""


class Virtual(NamedTuple):
    """Where virtual tokens of one adapter stand in a batch, and which each is."""

    adapter: Adapter
    rows: Tensor
    columns: Tensor
    numbers: Tensor


@runtime_checkable  # the tests check it where they check shapes
class Kept(Protocol):
    """Keys and values of earlier tokens, which a pass adds to; see `inlay.generation.pages`."""

    asked: Sequence[int]
    """Of how many tokens of each row the head is asked."""

    @property
    def is_newest(self) -> bool: ...

    def take_places_(self, last: Any) -> None: ...

    def attended(self, module: Any, query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]) -> Tensor: ...


class Plan:
    """What passes have in common whose rows are the same, of the same adapters with the same tensors, without gradients."""

    def __init__(self) -> None:
        self.num_passes = 1
        """How many of its passes there were, with the one under way."""
        self.kept: dict[Any, Any] = {}
        """What is kept of it for the passes that follow, by whoever keeps it."""


class Batch:
    """Who takes which adapter: one for every row, or one entry per row: an adapter, a sum of several, or None, the plain base.

    **Arguments:**

    - `lengths`: the tokens of each row where they are packed; None: they are padded to one length.
    - `brings`: the rows have their virtual tokens in front, or a cache has them.
    - `generator`: what dropout draws from, one for all or one for each adapter by name; torch's own unless given.
    - `kept`: what the tokens of packed rows look at beside each other.
    """

    def __init__(
        self,
        rows: Adapter | Sequence[Adapter | Sum | None],
        lengths: Sequence[int] | None = None,
        *,
        brings: bool = False,
        generator: Generators = None,
        kept: Kept | None = None,
    ):
        self.num_rows = None if isinstance(rows, Adapter) else len(rows)
        """How many rows name an adapter; None: one adapter for every row, however many."""
        self.rows: Sequence[Adapter | Sum | None] = [rows] if isinstance(rows, Adapter) else list(rows)
        parts = [row.parts if isinstance(row, Sum) else ((row, 1.0),) if row else () for row in self.rows]
        self.adapters = tuple(dict.fromkeys(adapter for some in parts for adapter, _ in some))
        """The adapters that occur, each once."""
        numbers = {adapter: number for number, adapter in enumerate(self.adapters)}
        self.entries = tuple(
            numbers[row] if isinstance(row, Adapter) else tuple((numbers[adapter], weight) for adapter, weight in some)
            for row, some in zip(self.rows, parts, strict=True)
        )
        """The number of each row's adapter among them; of a sum the number and weight of each; of the plain base none."""
        self.lying = Lying(lengths) if lengths is not None else None
        """How they lie, where they are packed."""
        self.brings, self.generator, self.kept = brings, generator, kept
        self.virtual: list[Virtual] = []
        """The virtual tokens of this pass that have keys and values of their own, once the embedding has seen them."""
        self._segments: dict[tuple[int, ...], tuple[Segment, ...]] = {}
        self._order: Order | None = None
        self.plan: Plan | None = None

    def again(self, kept: Kept) -> "Batch":
        """The batch of another pass of the same plan; `kept` asks for as many tokens of each row."""
        made = copy.copy(self)
        if made.plan is not None:
            made.plan.num_passes += 1
        made.kept, made.virtual = kept, []
        made.lying = None if self.lengths is None else Lying(self.lengths)
        return made

    def like(self, lying: Lying | None = None) -> "Batch":
        """The same rows for one pass of their own: padded, or packed as they lie."""
        rows = self.adapters[0] if self.num_rows is None else self.rows
        made = Batch(rows, brings=self.brings, generator=self.generator)
        made._order, made.lying = self._order, lying
        return made

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The tokens of each row where they are packed."""
        return self.lying and self.lying.lengths

    @property
    def num_virtual(self) -> tuple[int, ...]:
        """How many virtual tokens each entry's adapter has."""
        return tuple(0 if row is None else row.num_virtual for row in self.rows)

    def follow_(self, order: Order | None, whole: Mapping[str, str], changed: Iterable[str]) -> None:
        """Take the rows as the modules get them; `changed` are the modules that the adapters change.

        `whole` are those whose tensors can't be others for some of the rows, and why.

        **Raises:**

        - `CompatibilityError`: some of them don't say which of their inputs are whose, or have tensors of an adapter that
          can't be for some of the rows.
        """
        strange = {path: "its inputs don't say whose they are" for path in changed if order and path in order.strange}
        strange |= {
            path: whole[path]
            for adapter in self.adapters
            for path, changes in adapter.bound.items()
            if path in whole and any(isinstance(change, Replace) for change in changes)
        }
        if strange:
            raise CompatibilityError(
                explain(
                    "this model can't take rows with several adapters, or with one and none, in one batch",
                    found=few([f"{path}: {why}" for path, why in strange.items()]),
                    do="a batch for each adapter, or adapters that exclude those layers",
                )
            )
        self._order = order

    def shared(self, path: str) -> frozenset[int | str]:
        """The arguments of the module at `path`, by position or name, that all rows share."""
        return self._order.shared.get(path, frozenset()) if self._order else frozenset()

    def share(self, path: str, length: int) -> int | None:
        """How many of an input's first dimension of this length are of each padded row; None where that is not known."""
        rows = self.num_rows or 1
        if length == rows:
            return 1
        is_flat = self._order is not None and path in self._order.flat
        return length // rows if is_flat and length % rows == 0 else None

    def is_shared(self, x: Tensor) -> bool:
        """All rows share this input, as positions are: its first dimension is 1, where they are several and not packed."""
        return self.lengths is None and self.num_rows not in (None, 1) and x.shape[:1] == (1,)

    def segments(self, path: str, shape: Sequence[int]) -> tuple[Segment, ...]:
        """The segments of an input whose tokens are of `shape` (rows, ...), flattened to one row per token.

        **Raises:**

        - `ShapeError`: the input has other rows than those that name an adapter.
        """
        key = tuple(shape)
        is_padded = self.lengths is None and self.num_rows is not None
        if is_padded and (not key or self.share(path, key[0]) is None):
            raise self.other_rows(path, key)
        if key not in self._segments:
            self._segments[key] = self._found(path, key)
        return self._segments[key]

    def _found(self, path: str, shape: tuple[int, ...]) -> tuple[Segment, ...]:
        count = math.prod(shape)
        if self.lengths is not None and self.num_rows is not None:
            lengths = self.kept.asked if self.kept and count == sum(self.kept.asked) else self.lengths
            if count != sum(lengths):
                raise self.other_rows(path, shape)
            return packed_segments(self.entries, lengths)
        return row_segments(self.entries, count // (self.num_rows or 1))

    def other_rows(self, path: str, shape: Sequence[int]) -> ShapeError:
        """The error for an input whose rows are others."""
        return ShapeError(
            explain(
                "the rows of this input are not the rows that name their adapters",
                found=f"{path} got an input of shape {tuple(shape)}; {self.num_rows} rows name an adapter",
                do="one adapter for each row of the batch, or one for all of them",
            )
        )

    def owned(self, number: int, ids: Tensor) -> Tensor:
        """Which tokens of `ids` (rows, t) are of the adapter with this number: a mask of that shape, or of (rows, 1)."""
        mine = torch.tensor([entry == number for entry in self.entries], device=ids.device)
        if self.lengths is not None:
            return mine.repeat_interleave(torch.tensor(self.lengths, device=ids.device))[None]
        return mine[:, None]


class Current(NamedTuple):
    """What rows a model takes: as they were asked for, and as a batch; None: the plain base."""

    rows: Rows
    batch: Batch | None


PLAIN = Current(None, None)


class Router:
    """The batch that a model takes: what this thread or task said, or the default."""

    def __init__(self) -> None:
        self.default = PLAIN
        self.takes_padding: Callable[[], bool] = lambda: True
        """Rows may be filled up in front."""

    @property
    def current(self) -> Current:
        return _said.get().get(self, self.default)

    @property
    def batch(self) -> Batch | None:
        """The rows of the pass under way; None: every row takes the plain base."""
        return _said.get().get(self, self.default).batch

    def set_(self, current: Current) -> None:
        """Switch: for this thread or task within `using`, for all others elsewhere."""
        said = _said.get()
        if self in said:
            _said.set({**said, self: current})
        else:
            self.default = current

    @contextlib.contextmanager
    def using(self, current: Current) -> Iterator[None]:
        """Within the block, in this thread or task, the rows are these."""
        token = _said.set({**_said.get(), self: current})
        try:
            yield
        finally:
            _said.reset(token)

    @contextlib.contextmanager
    def passing(self, batch: Batch) -> Iterator[None]:
        """Within the block one pass of this batch is under way; the model's attention looks at it too."""
        token = _passing.set(batch)
        try:
            with self.using(Current(self.current.rows, batch)):
                yield
        finally:
            _passing.reset(token)


_said: contextvars.ContextVar[Mapping[Router, Current]] = contextvars.ContextVar("said", default={})  # noqa: B039  # never changed
_passing: contextvars.ContextVar[Batch | None] = contextvars.ContextVar("passing", default=None)


def passing() -> Batch | None:
    """The batch of the pass under way, where its caller began one with `Router.passing`."""
    return _passing.get()


def is_packing() -> bool:
    """A pass is under way whose rows lie one after the other."""
    batch = _passing.get()
    return batch is not None and batch.lengths is not None
