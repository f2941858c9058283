"""What a layer does between its matrix products, in one pass each, where a model does it in the usual way.

    RMS norm     y = w x / sqrt(mean(x^2) + eps)
    gated MLP    y = down(silu(gate(x)) up(x))
    rotation     y = x cos + (-x2, x1) sin, of queries and keys by their positions; x1 and x2 are the halves of x

torch takes seven passes over the memory for the first, three for the second and six for the third, and keeps what is in
between. `fuse_` and `fuse_rotation_` give a model's modules a `forward` of their own; modules, names and weights stay. Models
write these things in many ways and under many names, and other things under these names, so each is recognised by what it does
(`inlay.modules.equivalence`) and left alone where there is a doubt.

Their outputs are not kept for the backward pass within `inlay.core.recompute`: `recomputed` makes them again.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.product import one_thread
from inlay.kernels import pointwise
from inlay.modules import equivalence

ROTATION = "apply_rotary_pos_emb"
"""What the files of `transformers` call the function that rotates queries and keys."""

TRIAL_WIDTHS = (8, 12)
"""Widths of the input and of the inner part of the small MLP on which a real one's class is tried."""


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, s = pointwise.rms_norm(x, weight, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, s)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        return pointwise.rms_norm_backward(grad_outputs[0], *ctx.saved_tensors), None, None

    @staticmethod
    def recomputed(ctx: Any) -> Tensor:
        x, weight, _ = ctx.saved_tensors
        return pointwise.rms_norm(x, weight, ctx.eps)[0]


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return pointwise.silu_gate(a, b)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        return pointwise.silu_gate_backward(grad_outputs[0], *ctx.saved_tensors)

    @staticmethod
    def recomputed(ctx: Any) -> Tensor:
        return pointwise.silu_gate(*ctx.saved_tensors)


def _rms_norm(self: Any, *given: Any, **named: Any) -> Any:
    """The `forward` of a norm; one that is trained, or in training mode, or called otherwise than in its trial does itself."""
    weight = self.weight
    is_usual = len(given) == 1 and not named and not self.training and not weight.requires_grad
    if not (is_usual and pointwise.available(given[0], weight)):
        return type(self).forward(self, *given, **named)
    if not torch.is_grad_enabled():  # to enter autograd takes longer than the norm of a few tokens
        return pointwise.rms_norm(given[0], weight, self.variance_epsilon)[0]
    return _RmsNorm.apply(given[0], weight, self.variance_epsilon)


def _gated_mlp(self: Any, *given: Any, **named: Any) -> Any:
    """The `forward` of an MLP; likewise."""
    if len(given) != 1 or named or self.training:
        return type(self).forward(self, *given, **named)
    gate, up = self.gate_proj(given[0]), self.up_proj(given[0])
    if not pointwise.available(gate, up):
        inner = self.act_fn(gate) * up
    else:
        inner = _SiluGate.apply(gate, up) if torch.is_grad_enabled() else pointwise.silu_gate(gate, up)
    return self.down_proj(inner)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return pointwise.rotate(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        return pointwise.rotate(grad_outputs[0], *ctx.saved_tensors, backward=True), None, None


Rotation = Callable[..., tuple[Tensor, Tensor]]
"""(q, k, cos, sin) to q and k; q and k are (1, heads, t, dim), cos and sin (1, t, dim)."""


def fuse_rotation_(body: nn.Module, when: Callable[[], bool]) -> None:
    """Let the modules of a model rotate in one pass where `when` says so and their file has the usual function for that.

    Each gets its own class's `forward` with another function of that name: nothing of the file changes.
    """
    for module in body.modules():
        own = type(module).forward
        theirs = getattr(own, "__globals__", {}).get(ROTATION)
        calls_it = isinstance(own, types.FunctionType) and ROTATION in own.__code__.co_names
        if not calls_it or theirs is None or "forward" in vars(module) or not _is_usual(theirs):
            continue
        names = own.__globals__ | {ROTATION: functools.partial(_rotated, theirs, when)}
        made = types.FunctionType(own.__code__, names, own.__name__, own.__defaults__, own.__closure__)
        made.__kwdefaults__ = own.__kwdefaults__
        module.forward = types.MethodType(made, module)


def _rotated(own: Rotation, when: Callable[[], bool], *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """What `own` does, for one row of tokens whose heads are rotated whole."""
    if len(given) == 4 and not named and when():
        q, k, cos, sin = given
        is_one = len(q) == 1 and cos.shape == sin.shape == (1, q.shape[2], q.shape[3]) == (1, *k.shape[2:])
        if is_one and q.shape[-1] % 4 == 0 and pointwise.available(q, k, cos, sin):
            return _rotate(q, k, cos, sin)
    return own(*given, **named)


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    turn: Any = _Rotate.apply if torch.is_grad_enabled() else pointwise.rotate
    rotated = (turn(x[0].transpose(0, 1), cos[0], sin[0]) for x in (q, k))
    rotated_q, rotated_k = (x.transpose(0, 1)[None] for x in rotated)
    return rotated_q, rotated_k


@functools.cache
def _is_usual(own: Rotation) -> bool:
    """It rotates a few random tokens, of several numbers of heads and widths, as `_rotate` does."""
    generator = torch.Generator().manual_seed(0)
    for dim, heads, kv_heads in ((8, 4, 2), (16, 1, 1), (64, 3, 3)):
        q, k, cos, sin = (
            torch.randn(1, *shape, dim, generator=generator) for shape in ((heads, 5), (kv_heads, 5), (5,), (5,))
        )
        if not equivalence.agree(own, _rotate, (q, k), (cos, sin)):
            return False
    return True


_MAPS = ("gate_proj", "up_proj", "down_proj")
"""The linear maps of a gated MLP."""


def _is_norm(module: nn.Module, kind: torch.dtype) -> bool:
    """A module is the norm at the top of this file for inputs of this dtype, whatever its weight is."""
    weight, eps = module._parameters.get("weight"), module.variance_epsilon
    if weight is None or weight.dim() != 1 or not isinstance(eps, float):
        return False
    if not (equivalence.takes_one_tensor(module) and equivalence.holds_only(module, ("weight",), ())):
        return False
    drawn = torch.randn(len(weight), generator=torch.Generator().manual_seed(2)).to(kind)
    theirs = functools.partial(type(module).forward, equivalence.twin(module, {"weight": drawn}, {}))

    def ours(x: Tensor) -> Any:
        return _RmsNorm.apply(x, drawn, eps)

    return all(equivalence.agree(theirs, ours, (x,)) for x in equivalence.inputs(len(weight), kind))


def _is_gated_mlp(module: nn.Module, kind: torch.dtype) -> bool:
    """The same of the gated MLP, whatever its linear maps are: small ones replace them."""
    if not (equivalence.takes_one_tensor(module) and equivalence.holds_only(module, (), (*_MAPS, "act_fn"))):
        return False
    width, inner = TRIAL_WIDTHS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        gate, up, down = (nn.Linear(*shape, dtype=kind) for shape in ((width, inner), (width, inner), (inner, width)))
    theirs = functools.partial(
        type(module).forward, equivalence.twin(module, {}, dict(zip(_MAPS, (gate, up, down), strict=True)))
    )

    def ours(x: Tensor) -> Any:
        return down(_SiluGate.apply(gate(x), up(x)))

    return all(equivalence.agree(theirs, ours, (x,)) for x in equivalence.inputs(width, kind))


_PARTS: tuple[
    tuple[Callable[..., Any], Callable[[nn.Module, torch.dtype], bool], tuple[str, ...], tuple[str, ...]], ...
] = (
    (_rms_norm, _is_norm, ("variance_epsilon",), ()),
    (_gated_mlp, _is_gated_mlp, _MAPS, _MAPS),
)
"""(a `forward`, what recognises the modules that it suits, the names that they have at least, the submodules that it calls)."""


@torch.no_grad()
@one_thread()
def fuse_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the modules of `model`, which computes in `dtype`, the functions above, where they do the same.

    A decision holds for all modules of a class with the same settings, and for no others.
    """
    if not pointwise.available(torch.empty(0, 2, dtype=dtype)):
        return
    known: dict[Any, bool] = {}
    for module in list(model.modules()):
        held = vars(module).keys() | module._modules.keys()
        for forward, is_it, needs, maps in _PARTS:
            if not held.issuperset(needs):
                continue
            key = (forward, equivalence.settings(module, maps))
            if key not in known:
                known[key] = all(is_it(module, kind) for kind in dict.fromkeys((torch.float32, dtype)))
            if known[key]:
                module.forward = types.MethodType(forward, module)
