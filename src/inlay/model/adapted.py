"""A frozen module with adapters beside it, and the route that says which row takes which.

    y = base(x), then for every run of rows with one adapter: y + what that adapter adds, or what the module says with
    tensors of the adapter in the place of its own

One `Router` is shared by all adapted modules of a model: switching adapters sets one reference, whatever the number of
layers. With no route, or no row that names an adapter, y is returned as the base computed it, bit for bit.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inlay.core.routed import Factors, Segment, routed, row_segments
from inlay.errors import CompatibilityError, ShapeError, explain, few
from inlay.methods.contract import BlockMethod, LinearMethod
from inlay.model.adapter import Adapter
from inlay.model.frozen import FrozenEmbedding
from inlay.model.linear import Embedding, Linear
from inlay.model.trial import Order


class Route:
    """Who takes which adapter: one adapter for every row, or one entry per row of the batch (None: the plain base)."""

    def __init__(self, rows: Adapter | Sequence[Adapter | None]):
        self.num_rows = None if isinstance(rows, Adapter) else len(rows)
        entries: Sequence[Adapter | None] = [rows] if isinstance(rows, Adapter) else rows
        self.adapters = list(dict.fromkeys(entry for entry in entries if entry is not None))
        """The adapters that occur, each once."""
        numbers = {adapter: number for number, adapter in enumerate(self.adapters)}
        self.entries = [None if entry is None else numbers[entry] for entry in entries]
        """The number of each row's adapter among them."""
        self._segments: dict[tuple[int, ...], tuple[Segment, ...]] = {}
        self._flat: frozenset[str] = frozenset()
        self._shared: Mapping[str, frozenset[int | str]] = {}

    def follow_(self, order: Order | None, whole: Mapping[str, str], changed: Iterable[str]) -> None:
        """Take the rows of a batch as the modules get them; `changed` are the modules that the adapters change.

        `whole` are those whose tensors can't be others for some of the rows, and why.

        **Raises:**

        - `CompatibilityError`: some of them don't say which of their inputs are whose, or have tensors of an adapter that
          can't be for some of the rows.
        """
        strange = {path: "its inputs don't say whose they are" for path in changed if order and path in order.strange}
        strange |= {path: whole[path] for a in self.adapters for path in a.own if a.own_at(path) and path in whole}
        if strange:
            raise CompatibilityError(
                explain(
                    "this model can't take rows with several adapters, or with one and none, in one batch",
                    found=few([f"{path}: {why}" for path, why in strange.items()]),
                    do="a batch for each adapter, or adapters that exclude those layers",
                )
            )
        if order:
            self._flat, self._shared = order.flat, order.shared

    def shared(self, path: str) -> frozenset[int | str]:
        """The arguments of the module at `path`, by position or name, that all rows share."""
        return self._shared.get(path, frozenset())

    def share(self, path: str, length: int) -> int | None:
        """How many of an input's first dimension of this length are of each row; None where that is not known."""
        rows = self.num_rows or 1
        if length == rows:
            return 1
        return length // rows if path in self._flat and length % rows == 0 else None

    def segments(self, path: str, shape: Sequence[int]) -> tuple[Segment, ...]:
        """The segments of an input whose tokens are of `shape` (rows, ...), flattened to one row per token."""
        key = tuple(shape)
        if self.num_rows is not None and (not key or self.share(path, key[0]) is None):
            raise self.other_rows(path, shape)
        if key not in self._segments:
            self._segments[key] = row_segments(self.entries, math.prod(key) // (self.num_rows or 1))
        return self._segments[key]

    def other_rows(self, path: str, shape: Sequence[int]) -> ShapeError:
        """The error for an input whose rows are others."""
        return ShapeError(
            explain(
                "the rows of this input are not the rows that name their adapters",
                found=f"{path} got an input of shape {tuple(shape)}; {self.num_rows} rows name an adapter",
                do="one adapter for each row of the batch, or one for all of them",
            )
        )


class Places(NamedTuple):
    """Where virtual tokens of one adapter stand in the rows of a pass, and which each is."""

    adapter: Adapter
    rows: Tensor
    columns: Tensor
    numbers: Tensor


class Router:
    """The current route of a model; None: every row takes the plain base."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.prefixes: list[Places] = []
        """The virtual tokens of the pass under way that have keys and values of their own."""
        self.brings = False
        """The rows bring their virtual tokens with them."""
        self.takes_padding: Callable[[], bool] = lambda: True
        """Rows may be filled up in front."""

    @contextlib.contextmanager
    def bringing(self) -> Iterator[None]:
        """Within the block no virtual tokens are put in front of rows: they have theirs, or a cache has them."""
        before, self.brings = self.brings, True
        try:
            yield
        finally:
            self.brings = before


class Adapted(nn.Module):
    """In the place of a module: the module itself, and what the routed adapters make of it."""

    def __init__(self, path: str, module: nn.Module, linear: Linear | None, router: Router):
        super().__init__()
        self.path = path
        self.base = module
        self.linear = linear
        """The module as a linear map, where it is one."""
        self.router = router

    def __getattr__(self, name: str) -> Any:
        """What the module itself would answer, for models that read weights and sizes from their modules.

        A tensor that an adapter replaces is the adapter's, where that is the same for all rows.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            base: Any = super().__getattr__("base")
        route = self.router.route if name in base._parameters else None
        owners = [a for a in route.adapters if name in a.own_at(self.path)] if route else []
        if not route or not owners:
            return getattr(base, name)
        if route.num_rows is not None:
            raise route.other_rows(f"{self.path}.{name}", ())
        return owners[0].own_at(self.path)[name].to(_own_dtype(base, name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        route = self.router.route
        present = [] if route is None else [number for number, a in enumerate(route.adapters) if self.path in a]
        if route is None or not present:
            return self.base(*args, **kwargs)
        if self.linear is None or kwargs or len(args) != 1:
            return _called(self, route, args, kwargs)
        (x,) = args
        if isinstance(self.linear, Embedding) and x.shape[0] == 1 and route.num_rows is not None:
            x = x.expand(route.num_rows, *x.shape[1:])  # positions, which all rows share
        segments = route.segments(self.path, self.linear.batch_shape(x))
        if len(present) < len(route.adapters):
            segments = tuple(s for s in segments if s.adapter in present)
        if self.linear.is_plain:
            flat = _mapped(x.reshape(-1, x.shape[-1]), None, self.path, self.linear, route.adapters, segments)
            return flat.view(*x.shape[:-1], self.linear.out_features)
        y = self.linear(x)
        y_flat = self.linear.flat(y)
        flat = _mapped(self.linear.tokens(x), y_flat, self.path, self.linear, route.adapters, segments)
        return self.linear.shaped(flat, y)


def _mapped(
    x: Tensor,
    y: Tensor | None,
    path: str,
    linear: Linear,
    adapters: Sequence[Adapter],
    segments: Sequence[Segment],
) -> Tensor:
    """The map's output with every segment's change: low-rank changes in one product with the map's, the rest one by one.

    `x` and the result have a row per token; `y` is the output where it is known already.
    """
    only = segments[0] if len(segments) == 1 and segments[0][:2] == (0, len(x)) else None
    if only is not None and "weight" in adapters[only.adapter].own_at(path):
        own_y = linear.replaced(x, adapters[only.adapter].own_at(path))
        return own_y if y is None else own_y.to(y.dtype)
    seen = dropped(x, path, adapters, segments)
    factors: list[Factors] = []
    numbers: dict[int, int] = {}  # number of the adapter in the route -> number among the low-rank ones
    for k in dict.fromkeys(s.adapter for s in segments) if linear.is_plain else ():
        found = adapters[k].factors(path, linear.product_dtype(x))
        if found is not None:
            numbers[k] = len(factors)
            factors.append(found)
    if numbers:
        low_rank = [Segment(s.start, s.stop, numbers[s.adapter]) for s in segments if s.adapter in numbers]
        dtype = linear.product_dtype(x)
        y = routed(x, linear.matrix, linear.bias, factors, low_rank, seen=None if seen is x else seen, dtype=dtype)
    elif y is None:
        y = linear(x)
    others = [
        s
        for s in segments
        if s.adapter not in numbers or adapters[s.adapter].own_at(path) or path in adapters[s.adapter].tables
    ]
    if not others:
        return y
    out = y.clone()
    for s in others:
        adapter, rows = adapters[s.adapter], slice(s.start, s.stop)
        own, method = adapter.own_at(path), adapter.methods.get(path)
        if "weight" in own:
            out[rows] = linear.replaced(x[rows], own).to(out.dtype)
        elif "bias" in own:
            out[rows] += (own["bias"] - linear.bias).to(out.dtype)  # type: ignore[operator]  # it has a bias of its own
        if path in adapter.tables:
            linear.add_rows_(out[rows], x[rows], *adapter.token_changes())
        if s.adapter in numbers or not adapter.adds(path):
            continue
        if isinstance(method, LinearMethod):
            out[rows] += method.delta(adapter.at(path), seen[rows], y[rows], linear)
        elif isinstance(method, BlockMethod):
            out[rows] += method.transform(adapter.at(path), y[rows])
    return out


def _called(adapted: Adapted, route: Route, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The output of any module: row by row with tensors of the adapter in the place of its own, or with what it adds."""
    path = adapted.path
    if route.num_rows is None:
        (adapter,) = route.adapters
        return _added(adapter, path, args, with_tensors(adapted, adapter, args, kwargs))
    num_rows, given = route.num_rows, next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    if given.shape[0] == 1 and num_rows > 1:  # positions, which all rows share
        args, kwargs = _rows_of(args, kwargs, lambda slot, value: _expanded(value, num_rows))
    elif route.share(path, given.shape[0]) is None:
        raise route.other_rows(path, given.shape)
    y, length, shared = adapted.base(*args, **kwargs), max(given.shape[0], num_rows), route.shared(path)
    outs = [part.clone() for part in _parts(y)]
    for start, stop, number in row_segments(route.entries, 1):
        adapter = route.adapters[number]
        if path not in adapter:
            continue

        def rows(value: Tensor, start: int = start, stop: int = stop) -> Tensor:
            per_row = len(value) // num_rows
            return value[start * per_row : stop * per_row]

        def taken(slot: int | str, value: Tensor, rows: Any = rows) -> Tensor:
            return rows(value) if value.dim() and len(value) == length and slot not in shared else value

        some, more = _rows_of(args, kwargs, taken)
        own = _alone(adapted, adapter, some, more) if adapter.own_at(path) else _like(y, map(rows, _parts(y)))
        for out, part in zip(outs, _parts(_added(adapter, path, some, own)), strict=True):
            rows(out).copy_(part)
    return _like(y, outs)


def _alone(adapted: Adapted, adapter: Adapter, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The output of the module for some of the rows; see `with_tensors`.

    **Raises:**

    - `CompatibilityError`: the module takes all rows or none, such as one that keeps a state for each.
    """
    try:
        return with_tensors(adapted, adapter, args, kwargs)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise CompatibilityError(
            explain(
                "a module of this model can't be called for some of the rows",
                found=f"{adapted.path}: {type(adapted.base).__name__}: {str(error).splitlines()[0]}",
                do="a batch for each adapter",
            )
        ) from error


def _parts(y: Any) -> Sequence[Tensor]:
    """The tensors that a module answers with."""
    return [y] if isinstance(y, Tensor) else list(y)


def _like(y: Any, parts: Iterable[Tensor]) -> Any:
    """Tensors in the form of the answer `y`."""
    return next(iter(parts)) if isinstance(y, Tensor) else type(y)(parts)


def with_tensors(adapted: Adapted, adapter: Adapter, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The output of the module with the adapter's tensors in the place of its own."""
    module = adapted.base
    own = {name: tensor.to(_own_dtype(module, name)) for name, tensor in adapter.own_at(adapted.path).items()}
    return torch.func.functional_call(module, own, tuple(args), kwargs) if own else module(*args, **kwargs)


def _added(adapter: Adapter, path: str, args: tuple[Any, ...], y: Any) -> Any:
    """The output of a block with what the adapter adds to it."""
    method = adapter.methods.get(path)
    if not isinstance(method, BlockMethod) or not adapter.adds(path):
        return y
    return y + method.transform(adapter.at(path), args[0] if method.is_parallel else y)


def _own_dtype(module: nn.Module, name: str) -> torch.dtype:
    """What a module computes with where it holds the tensor `name`."""
    return module.dtype if isinstance(module, FrozenEmbedding) else getattr(module, name).dtype


def _rows_of(args: tuple[Any, ...], kwargs: dict[str, Any], take: Any) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call with `take` done to each tensor, which gets its position or name, and the tensor."""
    slots = {**dict(enumerate(args)), **kwargs}
    slots = {slot: take(slot, value) if isinstance(value, Tensor) else value for slot, value in slots.items()}
    return tuple(slots[k] for k in range(len(args))), {name: slots[name] for name in kwargs}


def _expanded(value: Tensor, num_rows: int) -> Tensor:
    return value.expand(num_rows, *value.shape[1:]) if value.shape[:1] == (1,) else value


def dropped(x: Tensor, path: str, adapters: Sequence[Adapter], segments: Sequence[Segment]) -> Tensor:
    """x with the adapters' input dropout, for those that are being trained."""
    rates = {s: adapters[s.adapter].dropout(path) for s in segments}
    if not any(rates.values()) or not x.is_floating_point():
        return x
    x = x.clone()
    for s, rate in rates.items():
        x[s.start : s.stop] = torch.nn.functional.dropout(x[s.start : s.stop], rate)
    return x
