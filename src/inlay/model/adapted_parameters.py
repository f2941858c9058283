"""A module whose parameters hold several maps each, with adapters beside them: a token takes its own row's in every map."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.routed import Factors, Segment, routed
from inlay.kernels import thin
from inlay.kernels.product import product_dtype
from inlay.model.adapted import Adapted, after_dropout
from inlay.model.batch import Batch, Router
from inlay.model.changes import Changes, LowRank
from inlay.modules.linear import ParameterMaps


class AdaptedParameters(Adapted):
    """Replaces such a module; `maps` are its parameters, by path."""

    def __init__(self, path: str, module: nn.Module, maps: Mapping[str, ParameterMaps], router: Router):
        super().__init__(path, module, None, router)
        self.maps = maps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        batch = self.router.batch
        if batch is None:
            return self.base(*args, **kwargs)
        adding = [n for n, a in enumerate(batch.adapters) if any(map(a.at, self.maps))]
        owning = [n for n, a in enumerate(batch.adapters) if a.at(self.path)]
        y = self._routed(batch, adding, *args, **kwargs) if adding else self.base(*args, **kwargs)
        return self._owned(batch, owning, y, *args, **kwargs) if owning else y

    def _segments(self, batch: Batch, num_tokens: int, adapters: Sequence[int]) -> list[Segment]:
        """The tokens, row after row, of those adapters."""
        rows = batch.num_rows or 1
        if batch.lengths is None and num_tokens % rows:
            raise batch.other_rows(self.path, (num_tokens,))
        shape = (num_tokens,) if batch.lengths is not None else (rows, num_tokens // rows)
        return [s for s in batch.segments(self.path, shape) if s.adapter in adapters]

    def _owned(self, batch: Batch, owning: Sequence[int], y: Tensor, *args: Tensor) -> Tensor:
        """`y` with the rows of adapters whose tensors replace the module's own."""
        out = y.clone()
        for start, stop, n, _ in self._segments(batch, len(y), owning):
            changes = batch.adapters[n].at(self.path)
            out[start:stop] = self.with_tensors(changes, [given[start:stop] for given in args], {})
        return out

    def _routed(self, batch: Batch, present: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
        """The module's output, each of its products with the changes of the rows whose tokens it gets."""
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        segments = self._segments(batch, len(hidden), present)
        bounds = torch.tensor([s[:2] for s in segments], device=hidden.device)
        changes = {linear.name: _Changes(linear, batch, path) for path, linear in self.maps.items()}
        parts = dict[int, list[Segment]]()

        def product(name: str, number: int, x: Tensor, tokens: Tensor) -> Tensor:
            if number not in parts:
                cuts = torch.searchsorted(tokens, bounds).tolist()
                parts[number] = [s._replace(start=a, stop=b) for (a, b), s in zip(cuts, segments, strict=True) if a < b]
            return changes[name].product(x, number, parts[number])

        return next(iter(self.maps.values())).computed(product, *args, **kwargs)


class _Changes:
    """What the adapters of a batch do to one parameter: factors for each map, made for those that tokens go to."""

    def __init__(self, linear: ParameterMaps, batch: Batch, path: str):
        self.linear, self.batch = linear, batch
        self._bound: list[Changes] = [adapter.at(path) for adapter in batch.adapters]
        self._changes = [change for bound in self._bound for change in bound if isinstance(change, LowRank)]
        having = [k for k, bound in enumerate(self._bound) if bound]
        self._numbers = {k: number for number, k in enumerate(having)}
        """Number of the adapter in the batch -> number among those that change this parameter."""
        self._parts = [linear.parts(change.params) for change in self._changes]

    def product(self, x: Tensor, number: int, segments: Sequence[Segment]) -> Tensor:
        """What one of the maps makes of its tokens, with each segment's change."""
        linear, changed = self.linear.each[number], [s for s in segments if s.adapter in self._numbers]
        dropped = after_dropout(x, self.batch, self._bound, changed)
        own = [s._replace(adapter=self._numbers[s.adapter]) for s in changed]
        seen, factors, dtype = None if dropped is x else dropped, self._factors(number), product_dtype(x)
        return routed(x, linear.matrix, linear.bias, factors, own, dropped=seen, dtype=dtype, thin=thin)

    def _factors(self, number: int) -> list[Factors]:
        return [
            change.low_rank.factors(parts[number]) for change, parts in zip(self._changes, self._parts, strict=True)
        ]
