"""The forms in which PEFT has the tensors of convolutions, here matrices, and of fused experts, here stacks."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def flat(tensor: Tensor, kind: str | None) -> Tensor:
    """A tensor of a convolution's adapter as the matrix or vector that it is."""
    if tensor.dim() != 4 or kind is None:
        return tensor
    return tensor.flatten() if kind == "channel" else tensor.flatten(1)


def kernel(tensor: Tensor, kind: str | None, shape: Sequence[int]) -> Tensor:
    """A tensor of the adapter of a convolution whose weight has this shape, as PEFT has it."""
    if kind == "kernel":
        return tensor.view(len(tensor), *shape[1:])
    if kind == "point":
        return tensor[:, :, None, None]
    return tensor.view(1, -1, 1, 1) if kind == "channel" else tensor


def flattened(name: str, tensor: Tensor) -> Tensor:
    """A tensor of fused experts as PEFT has it: A has the experts one after the other, B has them within each rank."""
    return tensor.permute(1, 2, 0).flatten(1) if name == "lora_B" else tensor.flatten(0, 1)


def unflattened(name: str, tensor: Tensor, count: int) -> Tensor:
    """A tensor of PEFT's, (experts r, in) or (out, r experts), with the experts in front; as it is where it does not fit."""
    if tensor.dim() != 2 or tensor.shape[name == "lora_B"] % count:
        return tensor
    if name == "lora_B":
        return tensor.unflatten(1, (-1, count)).permute(2, 0, 1).contiguous()
    return tensor.unflatten(0, (count, -1))


def whole(value: Any) -> Any:
    """32.0 as 32: readers expect whole numbers where `peft` writes them."""
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(value) or None
    return int(value) if isinstance(value, float) and value.is_integer() and value else value
