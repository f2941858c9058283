"""A frozen linear map with adapters beside it, and the route that says which row takes which.

    y = base(x), then for every run of rows with one adapter: y + what that adapter adds

One `Router` is shared by all adapted modules of a model: switching adapters sets one reference, whatever the number of
layers. With no route, or no row that names an adapter, y is returned as the base computed it, bit for bit.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inlay.core.routed import Factors, Segment, routed, row_segments
from inlay.errors import ShapeError, explain
from inlay.methods._contract import Params
from inlay.model.adapter import Adapter
from inlay.model.linear import Linear


class Route:
    """Who takes which adapter: one adapter for every row, or one entry per row of the batch (None: the plain base)."""

    def __init__(self, rows: Adapter | Sequence[Adapter | None]):
        self.num_rows = None if isinstance(rows, Adapter) else len(rows)
        entries: Sequence[Adapter | None] = [rows] if isinstance(rows, Adapter) else rows
        self.adapters = list(dict.fromkeys(entry for entry in entries if entry is not None))
        """The adapters that occur, each once."""
        numbers = {adapter: number for number, adapter in enumerate(self.adapters)}
        self._entries = [None if entry is None else numbers[entry] for entry in entries]
        self._segments: dict[tuple[int, ...], tuple[Segment, ...]] = {}

    def segments(self, path: str, shape: Sequence[int]) -> tuple[Segment, ...]:
        """The segments of an input of `shape` (*batch, in), flattened to one row per token."""
        key = tuple(shape[:-1])
        if key not in self._segments:
            num_tokens = math.prod(key)
            if self.num_rows is None:
                self._segments[key] = row_segments(self._entries, num_tokens)
            elif len(key) >= 2 and key[0] == self.num_rows:
                self._segments[key] = row_segments(self._entries, num_tokens // self.num_rows)
            else:
                raise ShapeError(
                    explain(
                        "the rows of this input are not the rows that name their adapters",
                        found=f"{path} got an input of shape {tuple(shape)}; {self.num_rows} rows name an adapter",
                        do="pass one adapter for each row of the batch, or one adapter for all of them",
                    )
                )
        return self._segments[key]


class Router:
    """The current route of a model; None: every row takes the plain base."""

    def __init__(self) -> None:
        self.route: Route | None = None


class Adapted(nn.Module):
    """In the place of a linear module: the module itself, and what the routed adapters add to it."""

    def __init__(self, path: str, linear: Linear, router: Router):
        super().__init__()
        self.path = path
        self.base = linear.module
        self.linear = linear
        self.router = router

    @property
    def weight(self) -> Tensor:
        """The base's weight, for models that read it from their linear modules."""
        return self.linear.stored

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    @property
    def in_features(self) -> int:
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        return self.linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        route = self.router.route
        present = [] if route is None else [adapter for adapter in route.adapters if self.path in adapter.params]
        if route is None or not present:
            y: Tensor = self.base(x)
            return y
        segments = route.segments(self.path, x.shape)
        if len(present) < len(route.adapters):
            segments = tuple(s for s in segments if self.path in route.adapters[s.adapter].params)
        flat = _changed(x.reshape(-1, x.shape[-1]), self.path, self.linear, route.adapters, segments)
        return flat.view(*x.shape[:-1], self.out_features)


def _changed(x: Tensor, path: str, linear: Linear, adapters: Sequence[Adapter], segments: Sequence[Segment]) -> Tensor:
    """The base's output with every segment's change: low-rank changes in one product with the base's, the rest one by one."""
    seen = _dropped(x, path, adapters, segments)
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
    else:
        y = linear(x)
    others = [s for s in segments if s.adapter not in numbers]
    if not others:
        return y
    out = y.clone()
    for s in others:
        adapter, rows = adapters[s.adapter], slice(s.start, s.stop)
        params: Params = adapter.params[path]
        out[rows] += adapter.methods[path].delta(params, seen[rows], y[rows], linear)
    return out


def _dropped(x: Tensor, path: str, adapters: Sequence[Adapter], segments: Sequence[Segment]) -> Tensor:
    """x with the adapters' input dropout, for those that are being trained."""
    rates = {s: adapters[s.adapter].dropout(path) for s in segments}
    if not any(rates.values()):
        return x
    x = x.clone()
    for s, rate in rates.items():
        x[s.start : s.stop] = torch.nn.functional.dropout(x[s.start : s.stop], rate)
    return x
