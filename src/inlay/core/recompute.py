"""Activation recomputation, tensor by tensor: what the backward pass needs and can cheaply recompute is not kept for it.

Autograd keeps every tensor that some gradient is computed from, although many of them are pointwise functions of others
that it keeps as well:

    gated MLP   p = silu(g) * u    g and u are kept; torch keeps silu(g), and p as the input of the next map
    RMS norm    y = w * (x * s)    x and s (one number per token) are kept; torch keeps y as the input of the next maps

Within `recomputing()` such a tensor is packed as the node of the graph that made it. When the backward pass asks, the same
operation on the same numbers recomputes it, bit for bit. The node's own operands are still there: it runs backward only
after everything that its output went into. At the widths of SmolLM2-135M this is half of what a layer keeps.

A `torch.autograd.Function` of ours says so itself, by a static method `recomputed` that makes its output from its context.

A tensor that was widened (bfloat16 to float32, as norms do) is kept as narrow as it came. Everything else, and every
operation that is not in the table below, is kept as autograd would keep it.

Nothing is run twice that costs a matrix product; that is what checkpointing is for, and it costs half of a step more.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, saved_tensors_hooks

MIN_ELEMENTS = 1 << 14
"""Smaller tensors are kept: what they take is less than the work of leaving them out."""

Made = Callable[[], Tensor]
"""Recomputes a tensor."""


@contextlib.contextmanager
def recomputing(is_asked: bool = True) -> Iterator[None]:
    """Within the block the graph keeps no tensor that it can cheaply recompute from the others, where that is asked for."""
    with saved_tensors_hooks(_pack, _unpack) if is_asked else contextlib.nullcontext():
        yield


def _pack(tensor: Tensor) -> Made:
    node = tensor.grad_fn
    if node is not None and tensor.numel() >= MIN_ELEMENTS:
        made = _made(node) or _narrow(node, tensor)
        if made is not None:
            return made
    kept, version = tensor.detach(), tensor._version  # detached: an output that holds its own node would never be freed

    def unchanged() -> Tensor:
        assert kept._version == version, "a tensor that a gradient is computed from was changed in place"
        return kept

    return unchanged


def _unpack(made: Made) -> Tensor:
    with torch.no_grad():
        return made()


def _made(node: Node) -> Made | None:
    """How the output of `node` is recomputed from what the graph keeps; None where it can't be, or not cheaply."""
    rule = _RULES.get(node.name())
    if rule is not None:
        return rule(node)
    own: Callable[[Node], Tensor] | None = getattr(getattr(node, "_forward_cls", None), "recomputed", None)
    return None if own is None else lambda: own(node)


def _silu(node: Any) -> Made:
    return lambda: torch.nn.functional.silu(node._saved_self)


def _gelu(node: Any) -> Made:
    return lambda: torch.nn.functional.gelu(node._saved_self, approximate=node._saved_approximate)


def _mul(node: Any) -> Made | None:
    left = _operand(node, 0, lambda: node._saved_self)
    right = _operand(node, 1, lambda: node._saved_other)
    return None if left is None or right is None else lambda: left() * right()


def _operand(node: Node, index: int, saved: Made) -> Made | None:
    """An operand of a product: torch keeps it where the other one gets a gradient."""
    if node.next_functions[1 - index][0] is not None:
        return saved
    source = node.next_functions[index][0]
    return None if source is None else _made(source)


def _copy(node: Node) -> Made | None:
    source, dtype = _source(node), node._input_metadata[0].dtype
    return None if source is None else lambda: source().to(dtype)


def _view(node: Node) -> Made | None:
    source, shape = _source(node), tuple(node._input_metadata[0].shape)
    return None if source is None else lambda: source().reshape(shape)


def _source(node: Node) -> Made | None:
    source = node.next_functions[0][0]
    return None if source is None else _made(source)


_RULES: dict[str, Callable[[Node], Made | None]] = {
    "SiluBackward0": _silu,
    "GeluBackward0": _gelu,
    "MulBackward0": _mul,
    "ToCopyBackward0": _copy,
    "ViewBackward0": _view,
    "UnsafeViewBackward0": _view,
}


def _narrow(node: Node, tensor: Tensor) -> Made | None:
    """A tensor that was widened from a narrower dtype, kept in that one, once however many gradients need it."""
    source = node.next_functions[0][0] if node.name() == "ToCopyBackward0" else None
    if source is None:
        return None
    dtype, given = tensor.dtype, source._input_metadata[0].dtype
    if given.itemsize >= dtype.itemsize or not given.is_floating_point:
        return None
    metadata: dict[str, Any] = node.metadata  # type: ignore[assignment]  # a property, which torch types as a method
    kept = metadata.setdefault("inlay_narrow", tensor.detach().to(given))
    return lambda: kept.to(dtype)
