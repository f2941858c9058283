"""Fused experts: one tensor holds a linear map for each expert, and every token goes through a few of them.

    gate_up_proj (experts, out, in),  down_proj (experts, out, in)         or (experts, in, out), as the module says
    y = sum over a token's experts e of  weight_e  down_e(act(gate_up_e(x)))

An adapter of such a parameter is the same for each expert: its tensors have the experts in front, (experts, r, in) and
(experts, out, r). A row's tokens take their own row's adapter in every expert; the change of a weight is never formed.

Source of the layout: the experts of transformers 5, `integrations/moe.py` there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inlay.core.product import product_dtype
from inlay.core.routed import Factors, Segment, routed
from inlay.io.safetensors import TensorEntry, read_tensor
from inlay.methods.contract import LinearMethod, Params
from inlay.model.adapted import Adapted, Route, Router, dropped, with_tensors
from inlay.model.adapter import Adapter
from inlay.model.linear import Linear

UP, DOWN = ("gate_up_proj", "up_proj"), "down_proj"


_SPELLINGS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",), ("w1",)),
    "down_proj": (("down_proj",), ("w2",)),
}
"""What the linear maps of a parameter are called where a checkpoint has them expert by expert, in the order of their rows."""


class Part(NamedTuple):
    """The rows of one expert's weight from `start` on."""

    number: int
    start: int


class Expert(Linear):
    """The linear map of one expert."""

    def __init__(self, module: nn.Module, name: str, number: int):
        self._name, self._number = name, number
        super().__init__(module, transposed=_flag(module, "is_transposed"))

    @property
    def stored(self) -> Tensor:
        return self.module.get_parameter(self._name)[self._number]

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        bias = self.module._parameters.get(f"{self._name}_bias")
        return None if bias is None else bias[self._number]


class Experts(Linear):
    """The linear maps of all experts, as one parameter holds them."""

    kind = "experts"

    def __init__(self, module: nn.Module, name: str):
        self.name = name
        self.module = module
        self.transposed, self.is_plain = _flag(module, "is_transposed"), False

    @property
    def one(self) -> Linear:
        return self.each[0]

    @property
    def stored(self) -> Tensor:
        return self.module.get_parameter(self.name)

    @cached_property
    def each(self) -> Sequence[Expert]:
        return [Expert(self.module, self.name, number) for number in range(len(self.stored))]


def experts_of(module: nn.Module) -> list[Experts]:
    """The parameters of a module of fused experts, in the order of their definition; nothing of any other module."""
    names = [name for name, tensor in module._parameters.items() if tensor is not None and tensor.dim() == 3]
    known = all(hasattr(module, flag) for flag in ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm"))
    return [Experts(module, name) for name in names if name in (*UP, DOWN)] if known else []


def stacked(each: Sequence[Params]) -> Params:
    """The tensors of every expert as those of the parameter."""
    return {name: torch.stack([params[name] for params in each]) for name in each[0]}


def parts_of(path: str, experts: Experts, known: Callable[[str], str | None]) -> dict[str, Part | None]:
    """Where a checkpoint has the weights of a parameter, by tensor name: all in one (None), or expert by expert.

    `known` gives the name under which the checkpoint has a tensor of the model, or None. Nothing, where it has them otherwise.
    """
    whole = known(path)
    if whole is not None:
        return {whole: None}
    module = path.rpartition(".")[0]
    for spelling in _SPELLINGS[experts.name]:
        rows = experts.one.out_features // len(spelling)
        for place in (module, module.replace(".mlp.", ".block_sparse_moe.")):
            parts = {
                known(f"{place}.{e}.{name}.weight"): Part(e, number * rows)
                for e in range(len(experts.each))
                for number, name in enumerate(spelling)
            }
            if None not in parts:
                return {name: part for name, part in parts.items() if name is not None}
    return {}


def merged_parts(
    adapter: Adapter, path: str, experts: Experts, entry: TensorEntry, part: Part | None
) -> Iterator[tuple[int, Tensor]]:
    """The merged weights that a tensor of the checkpoint holds, expert by expert, each with the number of bytes before it."""
    if part is not None:
        yield 0, adapter.merged(path, read_tensor(entry), None, part.start, expert=part.number)[0]
        return
    size = (entry.stop - entry.start) // entry.shape[0]
    for e in range(entry.shape[0]):
        start = entry.start + e * size
        stored = read_tensor(entry._replace(shape=entry.shape[1:], start=start, stop=start + size))
        W, _ = adapter.merged(path, stored.T if experts.transposed else stored, None, expert=e)
        yield e * size, W.T if experts.transposed else W


class AdaptedExperts(Adapted):
    """In the place of a module of fused experts; `maps` are those of its parameters, by path."""

    def __init__(self, path: str, module: nn.Module, maps: Mapping[str, Experts], router: Router):
        super().__init__(path, module, None, router)
        self.maps = {experts.name: (place, experts) for place, experts in maps.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        route, places = self.router.route, [place for place, _ in self.maps.values()]
        if route is None:
            return self.base(*args, **kwargs)
        adding = [n for n, a in enumerate(route.adapters) if any(place in a for place in places)]
        owning = [n for n, a in enumerate(route.adapters) if self.path in a]
        y = self._routed(route, adding, *args, **kwargs) if adding else self.base(*args, **kwargs)
        return self._owned(route, owning, y, *args, **kwargs) if owning else y

    def _segments(self, route: Route, num_tokens: int, adapters: Sequence[int]) -> list[Segment]:
        """The tokens, row after row, of those adapters."""
        rows = route.num_rows or 1
        if num_tokens % rows:
            raise route.other_rows(self.path, (num_tokens,))
        return [s for s in route.segments(self.path, (rows, num_tokens // rows)) if s.adapter in adapters]

    def _owned(self, route: Route, owning: Sequence[int], y: Tensor, *args: Tensor) -> Tensor:
        """`y` with the rows of adapters that have tensors in the place of the module's own."""
        out = y.clone()
        for start, stop, n in self._segments(route, len(y), owning):
            out[start:stop] = with_tensors(self, route.adapters[n], [given[start:stop] for given in args], {})
        return out

    def _routed(
        self,
        route: Route,
        present: Sequence[int],
        hidden_states: Float[Tensor, "tokens width"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens width"]:
        base: Any = self.base
        segments = self._segments(route, len(hidden_states), present)
        up, down = UP[0] if base.has_gate else UP[1], DOWN
        factors = {name: _Factors(place, route.adapters, present) for name, (place, _) in self.maps.items()}
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
            h = self._product(part, up, e, factors[up], own)
            h = base._apply_gate(h) if base.has_gate else base.act_fn(h)
            y = self._product(h, down, e, factors[down], own)
            parts.append(base.post_expert_norm(y) if base.has_post_expert_norm else y)
        y = _Permuted.apply(torch.cat(parts), inverse, order).unflatten(0, (-1, k))
        return (y * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)

    def _product(self, x: Tensor, name: str, e: int, factors: "_Factors", segments: Sequence[Segment]) -> Tensor:
        """What expert `e` makes of its tokens, with each segment's change."""
        place, experts = self.maps[name]
        linear, changed = experts.each[e], [s for s in segments if s.adapter in factors.numbers]
        seen = dropped(x, place, factors.adapters, changed)
        own = [Segment(s.start, s.stop, factors.numbers[s.adapter]) for s in changed]
        return routed(
            x,
            linear.matrix,
            linear.bias,
            factors.of(e),
            own,
            seen=None if seen is x else seen,
            dtype=product_dtype(x),
        )


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


class _Factors:
    """The factors of one parameter for each expert, made for those that tokens go to."""

    def __init__(self, place: str, adapters: Sequence[Adapter], present: Sequence[int]):
        self.adapters = adapters
        having = [k for k in present if place in adapters[k]]
        self.numbers = {k: number for number, k in enumerate(having)}
        """Number of the adapter in the route -> number among those that change this parameter."""
        self._methods = [adapters[k].methods[place] for k in having]
        self._tensors = [{name: tensor.unbind() for name, tensor in adapters[k].at(place).items()} for k in having]

    def of(self, e: int) -> list[Factors]:
        found = []
        for method, tensors in zip(self._methods, self._tensors, strict=True):
            assert isinstance(method, LinearMethod), "only linear methods change parameters"
            factors = method.factors({name: each[e] for name, each in tensors.items()})
            assert factors is not None, "a method that adapts experts has factors"
            found.append(factors)
        return found


def _flag(module: nn.Module, name: str) -> bool:
    return bool(getattr(module, name))
