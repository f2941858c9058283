"""The forms in which PEFT has the tensors of convolutions, here matrices, of fused experts, here stacks, and single tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from inlay.errors import CompatibilityError, explain


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


def one_table(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with trainable tokens as a list: PEFT also writes them by module, {"embed_tokens": [3, 7]}."""
    tokens = config.get("trainable_token_indices")
    if not isinstance(tokens, dict) or not tokens:
        return dict(config)
    if len(tokens) > 1:
        raise CompatibilityError(
            explain(
                "this adapter trains tokens of several modules, and one is what can be read",
                found=f"{path}: trainable_token_indices of {', '.join(map(str, tokens))}",
                do="merge it with peft",
            )
        )
    return {**config, "trainable_token_indices": next(iter(tokens.values()))}
