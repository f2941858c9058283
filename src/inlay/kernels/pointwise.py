"""What a layer does between its matrix products, in one pass over the memory: `pointwise.c`, which has the equations.

Tensors are (*batch, width), in float32 or bfloat16, and contiguous or made so. There is no other way here: where `available`
says no, models do these things themselves.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.kernels import native

_NORM, _NORM_BACKWARD, _GATE, _GATE_BACKWARD, _ROTATE, _ROTATE_BACKWARD, _ADD = range(7)
"""The functions of `pointwise.c`."""

_DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes that it knows, by their numbers there."""


def available(*tensors: Tensor) -> bool:
    """The library is there, and takes these tensors: all of one dtype that it knows, on the processor, or without numbers."""
    dtype = tensors[0].dtype
    suits = native.variant() not in (native.TORCH, "plain") and dtype in _DTYPES and tensors[0].shape[-1] % 2 == 0
    return suits and all([(t.is_cpu or t.is_meta) and t.dtype == dtype for t in tensors])


def rms_norm(
    x: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], eps: float
) -> tuple[Float[Tensor, "*batch width"], Float[Tensor, "*batch"]]:
    """w x s, and s = 1 / sqrt(mean(x^2) + eps) in float32."""
    y, s = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(x.shape[:-1], device=x.device)
    _run(_NORM, x, {"w": weight, "y": y, "s": s}, eps)
    return y, s


def rms_norm_backward(
    g: Float[Tensor, "*batch width"],
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, " width"],
    s: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch width"]:
    """The gradient with respect to x, from that of the result."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(_NORM_BACKWARD, x, {"w": weight, "g": g, "y": dx, "s": s})
    return dx


def silu_gate(a: Float[Tensor, "*batch width"], b: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """silu(a) b."""
    y = torch.empty_like(a, memory_format=torch.contiguous_format)
    _run(_GATE, a, {"w": b, "y": y})
    return y


def silu_gate_backward(
    g: Float[Tensor, "*batch width"], a: Float[Tensor, "*batch width"], b: Float[Tensor, "*batch width"]
) -> tuple[Float[Tensor, "*batch width"], Float[Tensor, "*batch width"]]:
    """The gradients with respect to a and b."""
    da, db = (torch.empty_like(a, memory_format=torch.contiguous_format) for _ in range(2))
    _run(_GATE_BACKWARD, a, {"w": b, "g": g, "y": da, "z": db})
    return da, db


def rotate(
    x: Float[Tensor, "tokens heads dim"],
    cos: Float[Tensor, "tokens dim"],
    sin: Float[Tensor, "tokens dim"],
    backward: bool = False,
) -> Float[Tensor, "tokens heads dim"]:
    """x cos + (-x2, x1) sin, where x1 and x2 are the halves of x; or the transpose of that. `dim` is a multiple of four."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(_ROTATE_BACKWARD if backward else _ROTATE, x, {"w": cos, "g": sin, "y": y}, heads=x.shape[1])
    return y


def add_into(
    y: Float[Tensor, "*batch width"], x: Float[Tensor, "*batch width"], w: Float[Tensor, "*more width"]
) -> None:
    """y = x + w, all contiguous; y may be x, and w a row for all of its rows."""
    width = x.shape[-1]
    _run(_ADD, x, {"w": w, "y": y}, heads=max(1, w.numel() // width))


def _run(function: int, x: Tensor, others: dict[str, Tensor], eps: float = 0.0, heads: int = 1) -> None:
    """Do a job of as many rows as x has; where these have no numbers there is none to do."""
    if x.is_meta:
        return
    tensors = {name: tensor.contiguous() for name, tensor in {"x": x, **others}.items()}
    width = x.shape[-1]
    fields = {"width": width, "heads": heads, "eps": eps, "dtype": _DTYPES.index(x.dtype)}
    native.run("pointwise", function, tensors, fields, x.numel() // max(1, width), x.numel())
