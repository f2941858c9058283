"""A module of fused experts with adapters beside it: every token takes its own row's adapter in every expert."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inlay.core.product import product_dtype
from inlay.core.routed import Factors, Segment, routed
from inlay.model.adapted import Adapted, after_dropout
from inlay.model.batch import Batch, Router
from inlay.model.changes import Changes, ExpertLowRank
from inlay.modules.experts import DOWN, UP, Experts


class AdaptedExperts(Adapted):
    """Replaces a module of fused experts; `maps` are those of its parameters, by path."""

    def __init__(self, path: str, module: nn.Module, maps: Mapping[str, Experts], router: Router):
        super().__init__(path, module, None, router)
        self.maps = {experts.name: (place, experts) for place, experts in maps.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        batch = self.router.batch
        if batch is None:
            return self.base(*args, **kwargs)
        places = [place for place, _ in self.maps.values()]
        adding = [n for n, a in enumerate(batch.adapters) if any(a.at(place) for place in places)]
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
        for start, stop, n in self._segments(batch, len(y), owning):
            changes = batch.adapters[n].at(self.path)
            out[start:stop] = self.with_tensors(changes, [given[start:stop] for given in args], {})
        return out

    def _routed(
        self,
        batch: Batch,
        present: Sequence[int],
        hidden_states: Float[Tensor, "tokens width"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens width"]:
        base: Any = self.base
        segments = self._segments(batch, len(hidden_states), present)
        up, down = UP[0] if base.has_gate else UP[1], DOWN
        changes = {name: _Changes(experts, batch, place) for name, (place, experts) in self.maps.items()}
        bounds = torch.tensor([s[:2] for s in segments], device=hidden_states.device)
        k = top_k_index.shape[1]
        order = top_k_index.flatten().argsort(stable=True)  # by expert, and there by token
        inverse, counts = order.argsort(), top_k_index.flatten().bincount(minlength=base.num_experts).tolist()
        x = hidden_states[:, None].expand(-1, k, -1).flatten(0, 1)
        parts = []
        for e, (part, tokens) in enumerate(
            zip(_Permuted.apply(x, order, inverse).split(counts), (order // k).split(counts), strict=True)
        ):
            if not len(part):
                continue
            cuts = torch.searchsorted(tokens, bounds).tolist()
            own = [Segment(a, b, s.adapter) for (a, b), s in zip(cuts, segments, strict=True) if a < b]
            h = changes[up].product(part, e, own)
            h = base._apply_gate(h) if base.has_gate else base.act_fn(h)
            y = changes[down].product(h, e, own)
            parts.append(base.post_expert_norm(y) if base.has_post_expert_norm else y)
        y = _Permuted.apply(torch.cat(parts), inverse, order).unflatten(0, (-1, k))
        return (y * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)


class _Permuted(torch.autograd.Function):
    """Rows in another order; the gradient in the one before, where torch would add row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(0, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        return grad_outputs[0].index_select(0, ctx.inverse), None, None


class _Changes:
    """What the adapters of a batch do to one parameter: factors for each expert, made for those that tokens go to."""

    def __init__(self, experts: Experts, batch: Batch, place: str):
        self.experts, self.batch = experts, batch
        self._bound: list[Changes] = [adapter.at(place) for adapter in batch.adapters]
        self._changes = [change for bound in self._bound for change in bound if isinstance(change, ExpertLowRank)]
        having = [k for k, bound in enumerate(self._bound) if bound]
        self._numbers = {k: number for number, k in enumerate(having)}
        """Number of the adapter in the batch -> number among those that change this parameter."""
        self._each = [change.each() for change in self._changes]

    def product(self, x: Tensor, e: int, segments: Sequence[Segment]) -> Tensor:
        """What expert `e` makes of its tokens, with each segment's change."""
        linear, changed = self.experts.each[e], [s for s in segments if s.adapter in self._numbers]
        dropped = after_dropout(x, self.batch, self._bound, changed)
        own = [Segment(s.start, s.stop, self._numbers[s.adapter]) for s in changed]
        return routed(
            x,
            linear.matrix,
            linear.bias,
            self._factors(e),
            own,
            dropped=None if dropped is x else dropped,
            dtype=product_dtype(x),
        )

    def _factors(self, e: int) -> list[Factors]:
        return [change.factors(each[e]) for change, each in zip(self._changes, self._each, strict=True)]
