"""What a layer does between its matrix products, in one pass each, where a model does it in the usual way.

    RMS norm     y = w x / sqrt(mean(x^2) + eps)
    gated MLP    y = down(silu(gate(x)) up(x))
    rotation     y = x cos + (-x2, x1) sin, of queries and keys by their positions; x1 and x2 are the halves of x

torch takes seven passes over the memory for the first, three for the second and six for the third, and keeps what is in
between. `fuse_` gives a model's modules a `forward` of their own; modules, names and weights stay. `rotation_of` replaces a
function of a model's file for as long as the model is called. Models write these things in many ways and under many names, so
each is recognised by what it does: it is asked once, of each class the first, on a few random tokens, and left alone where its
answer is another.

What these functions give is not kept for the backward pass where `inlay.core.recall` is at work: `again` makes it anew.
"""

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inlay.kernels import pointwise

ROTATION = "apply_rotary_pos_emb"
"""What the files of `transformers` call the function that rotates queries and keys."""

PROBE_TOKENS = 3
"""Random tokens that a module is asked about."""

PROBE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""How far the answers may differ, as part of the largest of them: above rounding, well below another function."""


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
    def again(ctx: Any) -> Tensor:
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
    def again(ctx: Any) -> Tensor:
        return pointwise.silu_gate(*ctx.saved_tensors)


def _rms_norm(self: Any, hidden_states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """The `forward` of a norm."""
    if not pointwise.available(hidden_states, self.weight) or self.weight.requires_grad:
        return type(self).forward(self, hidden_states)
    y: Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[assignment]  # torch types apply as Any
    return y


def _gated_mlp(self: Any, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """The `forward` of an MLP."""
    gate, up = self.gate_proj(x), self.up_proj(x)
    inner = _SiluGate.apply(gate, up) if pointwise.available(gate, up) else self.act_fn(gate) * up
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


@contextlib.contextmanager
def rotation_of(body: nn.Module) -> Iterator[None]:
    """Within the block the model of this body rotates in one pass, where its file has the usual function for that."""
    file: Any = sys.modules.get(type(body).__module__)
    own: Rotation | None = getattr(file, ROTATION, None)
    if own is None or not pointwise.available(torch.empty(0, 4)) or not _is_usual(own):
        yield
        return
    setattr(file, ROTATION, functools.partial(_rotated, own))
    try:
        yield
    finally:
        setattr(file, ROTATION, own)


def _rotated(own: Rotation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
    """What `own` does, for one row of tokens."""
    plain = not others and len(q) == 1 and cos.shape == sin.shape == (1, q.shape[2], q.shape[3]) == (1, *k.shape[2:])
    if not (plain and q.shape[-1] % 4 == 0 and pointwise.available(q, k, cos, sin)):
        return own(q, k, cos, sin, **others)
    turned = (_Rotate.apply(x[0].transpose(0, 1), cos[0], sin[0]) for x in (q, k))
    turned_q, turned_k = (x.transpose(0, 1)[None] for x in turned)  # type: ignore[union-attr]  # torch types apply as Any
    return turned_q, turned_k


@functools.cache
def _is_usual(own: Rotation) -> bool:
    """It answers a few random tokens as `_rotated` does."""
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (torch.randn(1, *shape, 8, generator=generator) for shape in ((4, 3), (2, 3), (3,), (3,)))
    try:
        expected, actual = own(q, k, cos, sin), _rotated(own, q, k, cos, sin)
    except Exception:  # any model's code may refuse in any way; it then does not do the same
        return False
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(actual, expected, strict=True))


_PARTS: tuple[tuple[Callable[[Any, Tensor], Tensor], tuple[str, ...], str], ...] = (
    (_rms_norm, ("weight", "variance_epsilon"), "weight"),
    (_gated_mlp, ("gate_proj", "up_proj", "down_proj", "act_fn"), "gate_proj"),
)
"""(a `forward`, the attributes that it needs, the one that knows the width of the input)."""


@torch.no_grad()
def fuse_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the modules of `model`, which computes in `dtype`, the functions above, where they do the same."""
    if not pointwise.available(torch.empty(0, 2, dtype=dtype)):
        return
    known: dict[tuple[type, Any], bool] = {}
    for module in model.modules():
        for forward, attributes, first in _PARTS:
            if not all(hasattr(module, name) for name in attributes):
                continue
            key = (type(module), forward)
            if key not in known:
                known[key] = _is_same(module, forward, getattr(module, first), dtype)
            if known[key]:
                module.forward = types.MethodType(forward, module)


def _is_same(module: nn.Module, forward: Callable[[Any, Tensor], Tensor], first: Any, dtype: torch.dtype) -> bool:
    """A module's answer to a few random tokens is that of `forward`."""
    width = first.shape[-1] if isinstance(first, Tensor) else getattr(first, "in_features", None)
    if width is None:
        return False
    x = torch.randn(1, PROBE_TOKENS, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    try:
        expected, actual = module(x), forward(module, x)
    except Exception:  # any model's code may refuse in any way; it then does not do the same
        return False
    if not isinstance(expected, Tensor) or expected.shape != actual.shape or not pointwise.available(expected):
        return False
    return bool((actual - expected).abs().max() <= PROBE_TOLERANCE[dtype] * expected.abs().max())
