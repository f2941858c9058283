"""A frozen module with adapters beside it: the current batch says which rows take which.

    y = base(x), then for every run of rows with one adapter: its changes (`inlay.model.changes`)

One `Router` is shared by all adapted modules of a model: switching adapters sets one reference, whatever the number of
layers. With no batch, or no row that names an adapter, y is returned as the base computed it, bit for bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.routed import Factors, Segment, add_low_rank_, routed, row_segments
from inlay.errors import CompatibilityError, explain
from inlay.kernels import low_rank, thin
from inlay.methods import hooks
from inlay.methods.contract import Params
from inlay.model.adapter import Adapter
from inlay.model.batch import Batch, Router
from inlay.model.changes import Block, Changes, Delta, LowRank, Replace, own_dtype, replaced
from inlay.modules.linear import Linear


class _Bound:
    """What some adapters change in one module, found when they come or have other tensors."""

    def __init__(self, adapters: tuple[Adapter, ...], path: str):
        self.adapters = adapters
        self.all = [adapter.bound for adapter in adapters]
        self.changes = [changes.get(path, ()) for changes in self.all]
        """One entry per adapter."""
        low: Any = [changes[0] if changes else None for changes in self.changes]
        is_low_rank = all(tuple(map(type, changes)) in ((), (LowRank,)) for changes in self.changes)
        self.low: list[LowRank | None] = low if is_low_rank else []
        """The same, where no adapter changes more than one low-rank thing; else empty."""
        self._entries: tuple[list[low_rank.Packed | None], tuple[Segment, ...], low_rank.Entries] | None = None
        self.repeated: tuple[object, torch.Size, low_rank.Entries] | None = None
        """(a plan, the shape of an input, what was added to its output): the same for batches of that plan."""

    def entries(self, packed: list[low_rank.Packed | None], segments: tuple[Segment, ...]) -> low_rank.Entries:
        """Whose factors change which tokens; those of the last call, where they are the same."""
        known = self._entries
        if known is None or known[1] != segments or not all(map(is_, known[0], packed)):
            known = self._entries = packed, segments, low_rank.Entries(packed, segments)
        return known[2]

    def is_of(self, adapters: tuple[Adapter, ...]) -> bool:
        """It is what these adapters change now."""
        return self.adapters == adapters and all(map(is_, self.all, [adapter.bound for adapter in adapters]))


class Adapted(nn.Module):
    """Replaces a module: it holds the module, and applies what the adapters of the batch change."""

    path: str
    linear: Linear | None
    """The module as a linear map, where it is one."""
    router: Router
    _bound: _Bound | None

    def __init__(self, path: str, module: nn.Module, linear: Linear | None, router: Router):
        super().__init__()
        self._modules["base"] = module
        # hundreds of these; `setattr` is slow here
        vars(self).update(path=path, linear=linear, router=router, _bound=None)

    def forget(self) -> None:
        """Keep nothing of adapters that may be gone."""
        self._bound = None

    def __getattr__(self, name: str) -> Any:
        """What the module itself would answer, for models that read weights and sizes from their modules.

        A tensor that an adapter replaces is the adapter's, where that is the same for all rows.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            base: Any = super().__getattr__("base")
        batch = self.router.batch if name in base._parameters else None
        own = [tensors[name] for a in batch.adapters if name in (tensors := replaced(a.at(self.path)))] if batch else []
        if batch is None or not own:
            return getattr(base, name)
        if batch.num_rows is not None:
            raise batch.other_rows(f"{self.path}.{name}", ())
        return own[0].to(own_dtype(base, name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        batch = self.router.batch
        if batch is None:
            return self.base(*args, **kwargs)
        found, linear = self._bound, self.linear
        known = found and found.repeated
        if linear and known and known[0] is batch.plan and len(args) == 1 and args[0].shape == known[1] and not kwargs:
            return _repeated(linear, args[0], known[2])
        if found is None or not found.is_of(batch.adapters):
            found = self._bound = _Bound(batch.adapters, self.path)
        if not any(found.changes):
            return self.base(*args, **kwargs)
        if linear is None or kwargs or len(args) != 1:
            return self._called(batch, found.changes, args, kwargs)
        return self._linear(batch, found, linear, args[0])

    def _linear(self, batch: Batch, found: _Bound, linear: Linear, x: Tensor) -> Tensor:
        """The output of a linear map with what the adapters change."""
        bound = found.changes
        if found.low and linear.is_plain and not torch.is_grad_enabled():
            y = self._decoded(batch, found, linear, x)
            if y is not None:
                return y
        if batch.is_shared(x) and linear.kind == "embedding":
            x = x.expand(batch.num_rows or 1, *x.shape[1:])  # positions
        segments = batch.segments(self.path, linear.batch_shape(x))
        if not all(bound):
            segments = tuple(s for s in segments if bound[s.adapter])
        if linear.is_plain:
            flat = self._changed(batch, linear, linear.tokens(x), None, bound, segments)
            return flat.view(*x.shape[:-1], linear.out_features)
        y = linear(x)
        return linear.shaped(self._changed(batch, linear, linear.tokens(x), linear.flat(y), bound, segments), y)

    def _decoded(self, batch: Batch, found: _Bound, linear: Linear, x: Tensor) -> Tensor | None:
        """The output without gradients of low-rank changes of all rows, of few tokens, or of answers; None otherwise.

        It is what `_changed` gives, with less to find out: where a row has one token, finding out is most of the work.
        """
        flat, dtype = x.reshape(-1, linear.in_features), linear.product_dtype(x)
        if batch.num_rows is not None and batch.kept is None and len(flat) > low_rank.MOST_TOKENS:
            return None
        out, wide = linear.wide(flat, dtype)
        segments = (Segment(0, len(flat), 0),) if batch.num_rows is None else batch.segments(self.path, x.shape[:-1])
        entries = found.entries([change and change.packed(dtype) for change in found.low], segments)
        entries.add_(out, wide)
        if batch.plan is not None and x.dtype == dtype:
            found.repeated = batch.plan, x.shape, entries
        return out.to(x.dtype).view(*x.shape[:-1], linear.out_features)

    def _changed(
        self,
        batch: Batch,
        linear: Linear,
        x: Tensor,
        y: Tensor | None,
        bound: Sequence[Changes],
        segments: Sequence[Segment],
    ) -> Tensor:
        """The map's output with every segment's changes: low-rank ones in one product with the map's, the rest one by one.

        `x` and the result have a row per token; `y` is the output where it is known already.
        """
        if len(segments) == 1 and segments[0][:2] == (0, len(x)) and (own := _whole_weight(bound[segments[0].adapter])):
            whole = linear.replaced(x, own)
            return whole if y is None else whole.to(y.dtype)
        dropped = after_dropout(x, batch, bound, segments)
        low = {k: change for k in dict.fromkeys(s.adapter for s in segments) if (change := _low_rank(bound[k]))}
        if low:
            factors, numbers = (
                [change.factors(linear.product_dtype(x)) for change in low.values()],
                {k: n for n, k in enumerate(low)},
            )
            routes = [s._replace(adapter=numbers[s.adapter]) for s in segments if s.adapter in low]
            y = _low_ranked(linear, x, dropped, factors, routes)
        elif y is None:
            y = linear(x)
        others = [(s, [c for c in bound[s.adapter] if c is not low.get(s.adapter)]) for s in segments]
        if not any(changes for _, changes in others):
            return y
        out = y.clone()
        for s, changes in others:
            rows = slice(s.start, s.stop)
            for change in changes:
                change.apply_(out[rows], x[rows], dropped[rows], y[rows])
        return out

    def _called(self, batch: Batch, bound: Sequence[Changes], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of any module: row by row with the adapter's tensors instead of its own, or with what it adds."""
        if batch.num_rows is None:
            return _added(bound[0], args, self.with_tensors(bound[0], args, kwargs))
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if batch.lengths is not None:
            return self._called_packed(batch, bound, args, kwargs)
        num_rows = batch.num_rows
        if batch.is_shared(given):
            args, kwargs = _rows_of(
                args, kwargs, lambda slot, v: v.expand(num_rows, *v.shape[1:]) if v.shape[:1] == (1,) else v
            )
        elif batch.share(self.path, given.shape[0]) is None:
            raise batch.other_rows(self.path, given.shape)
        length, shared = max(given.shape[0], num_rows), batch.shared(self.path)

        def part(value: Tensor, s: Segment) -> Tensor:
            per_row = len(value) // num_rows
            return value[s.start * per_row : s.stop * per_row]

        def taken(slot: int | str, value: Tensor, s: Segment) -> Tensor:
            return part(value, s) if value.dim() and len(value) == length and slot not in shared else value

        return self._in_parts(row_segments(batch.entries, 1), bound, args, kwargs, part, taken)

    def _called_packed(
        self, batch: Batch, bound: Sequence[Changes], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The same for rows that lie one after the other in the second dimension, (1, t, ...)."""
        count = sum(batch.lengths or ())
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        segments = batch.segments(self.path, given.shape[:2])

        def part(value: Tensor, s: Segment) -> Tensor:
            return value[:, s.start : s.stop]

        def taken(slot: int | str, value: Tensor, s: Segment) -> Tensor:
            return part(value, s) if value.dim() > 1 and value.shape[1] == count else value

        return self._in_parts(segments, bound, args, kwargs, part, taken)

    def _in_parts(
        self,
        segments: Iterable[Segment],
        bound: Sequence[Changes],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        part: Any,
        taken: Any,
    ) -> Any:
        """The base's output, its parts replaced by those of the adapters; `part` and `taken` cut outputs and arguments."""
        y = self.base(*args, **kwargs)
        outs = [value.clone() for value in _parts(y)]
        for s in segments:
            changes = bound[s.adapter]
            if not changes:
                continue
            some, more = _rows_of(args, kwargs, lambda slot, value, s=s: taken(slot, value, s))
            own = self._alone(changes, some, more) if replaced(changes) else _like(y, [part(v, s) for v in _parts(y)])
            for out, value in zip(outs, _parts(_added(changes, some, own)), strict=True):
                part(out, s).copy_(value)
        return _like(y, outs)

    def _alone(self, changes: Changes, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The output of the module for some of the rows, with an adapter's tensors.

        **Raises:**

        - `CompatibilityError`: the module takes all rows or none, such as one that keeps a state for each.
        """
        try:
            return self.with_tensors(changes, args, kwargs, some=True)
        except CompatibilityError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            what = "a module of this model can't be called for some of the rows"
            found = f"{self.path}: {type(self.base).__name__}: {str(error).splitlines()[0]}"
            raise CompatibilityError(explain(what, found=found, do="a batch for each adapter")) from error

    def with_tensors(self, changes: Changes, args: Sequence[Any], kwargs: dict[str, Any], some: bool = False) -> Any:
        """The output of the module with an adapter's tensors instead of its own; `some`: not of all rows."""
        own = next((change for change in changes if isinstance(change, Replace)), None)
        return self.base(*args, **kwargs) if own is None else own.called(self.base, args, kwargs, some)


def _whole_weight(changes: Changes) -> Params | None:
    """The tensors of the only change, where that replaces the weight."""
    (change,) = changes if len(changes) == 1 else (None,)
    return change.tensors if isinstance(change, Replace) and "weight" in change.tensors else None


def _low_rank(changes: Changes) -> LowRank | None:
    """The low-rank change, where it is one of the base's own weight."""
    if len(changes) > 1 and "weight" in replaced(changes):
        return None
    return next((change for change in changes if isinstance(change, LowRank)), None)


def _low_ranked(
    linear: Linear, x: Tensor, dropped: Tensor, factors: Sequence[Factors], segments: Sequence[Segment]
) -> Tensor:
    """The map and what low-rank changes add to it; without gradients, on top of the product that the map alone takes then."""
    dtype = linear.product_dtype(x)
    if torch.is_grad_enabled():
        seen = None if dropped is x else dropped
        return routed(x, linear.matrix, linear.bias, factors, segments, dropped=seen, dtype=dtype, thin=thin)
    out, wide = linear.wide(x, dtype)
    for s in segments:
        add_low_rank_(out, wide, factors[s.adapter], s)
    return out.to(x.dtype)


def _repeated(linear: Linear, x: Tensor, entries: low_rank.Entries) -> Tensor:
    """The output of `_decoded` in another step of the same plan, where everything has been found out."""
    out = linear(x)
    entries.add_(out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1]))
    return out


def _parts(y: Any) -> Sequence[Tensor]:
    """The tensors that a module answers with."""
    return [y] if isinstance(y, Tensor) else list(y)


def _like(y: Any, parts: Iterable[Tensor]) -> Any:
    """Tensors in the form of the answer `y`."""
    return next(iter(parts)) if isinstance(y, Tensor) else type(y)(parts)


def _added(changes: Changes, args: Sequence[Any], y: Any) -> Any:
    """The output of a block with what an adapter adds to it."""
    for change in changes:
        if isinstance(change, Block):
            y = change.added(args, y)
    return y


def _rows_of(args: tuple[Any, ...], kwargs: dict[str, Any], take: Any) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call with `take` done to each tensor, which gets its position or name, and the tensor."""
    slots = {**dict(enumerate(args)), **kwargs}
    slots = {slot: take(slot, value) if isinstance(value, Tensor) else value for slot, value in slots.items()}
    return tuple(slots[k] for k in range(len(args))), {name: slots[name] for name in kwargs}


def after_dropout(x: Tensor, batch: Batch, bound: Sequence[Changes], segments: Sequence[Segment]) -> Tensor:
    """x with the adapters' input dropout, for those that are being trained."""
    if not torch.is_grad_enabled() or not any(adapter.trained for adapter in batch.adapters):
        return x
    rates = {s: _rate(batch.adapters[s.adapter], bound[s.adapter]) for s in segments}
    if not any(rates.values()) or not x.is_floating_point():
        return x
    x = x.clone()
    for s, rate in ((s, rate) for s, rate in rates.items() if rate):
        drawn, name = batch.generator, batch.adapters[s.adapter].name
        x[s.start : s.stop] = _dropout(x[s.start : s.stop], rate, drawn[name] if isinstance(drawn, Mapping) else drawn)
    return x


def _rate(adapter: Adapter, changes: Changes) -> float:
    """The part of its inputs that the adapter's change does not see: the method's while it is trained."""
    found = (hooks.input_dropout(c.method) for c in changes if isinstance(c, Delta))
    return next(found, 0.0) if adapter.trained else 0.0


def _dropout(x: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """torch's dropout, drawn from `generator` where there is one."""
    if generator is None:
        return nn.functional.dropout(x, rate)
    return x * torch.empty_like(x).bernoulli_(1 - rate, generator=generator).div_(1 - rate)
