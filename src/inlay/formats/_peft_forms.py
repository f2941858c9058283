"""The forms in which PEFT has the tensors of convolutions, here matrices, of parameters that are stacks of maps, and of
single tokens."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from inlay.errors import CompatibilityError, explain
from inlay.formats.contract import AdapterFile, Layer
from inlay.methods.contract import STACK, Params, with_names
from inlay.names import is_named

INNER = ".base_layer"
"""What PEFT calls the module that a wrapper of its own holds."""


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


def layer_of(A: Tensor, B: Tensor, is_embedding: bool, in_first: bool) -> Layer:
    """What factors, in the shapes that a file has them in, tell of the layer that they change."""
    if A.dim() == 4:
        return Layer("conv2d", dict(zip(("out", "in", "height", "width"), (len(B), *A.shape[1:]), strict=True)))
    sizes = {"out": len(B), "in": A.shape[-1]}
    if is_embedding or in_first:
        sizes = {"in": sizes["in"], "out": sizes["out"]}
    return Layer("embedding" if is_embedding else "linear", sizes)


class Targets(NamedTuple):
    """What an adapter adds tensors to, as PEFT tells it apart."""

    modules: list[str]
    parameters: dict[str, str]
    """The stacks, by path, and what PEFT calls the place of each; see `_nested`."""
    every: list[str]
    """All modules of the model."""


def targets_of(file: AdapterFile, adapted: Iterable[str]) -> Targets:
    """What these of the file's paths are, to which it adds tensors."""
    kinds = {path: layer.kind for path, layer in file.model.layers.items() if path}
    parameters = _nested([path for path in adapted if kinds.get(path) == STACK])
    modules = [path for path in adapted if kinds.get(path, "other") not in (STACK, "other")]
    return Targets(modules, parameters, [path for path, kind in kinds.items() if kind != STACK])


def flattened(module: Params) -> Params:
    """The tensors of a stack as PEFT has them: A has its maps one after the other, B has them within each rank."""
    return {
        name: tensor.permute(1, 2, 0).flatten(1) if name == "lora_B" else tensor.flatten(0, 1)
        for name, tensor in module.items()
    }


def _unflattened(name: str, tensor: Tensor, count: int) -> Tensor:
    """A tensor of PEFT's, (count r, in) or (out, r count), with the maps in front; as it is where it does not fit."""
    if tensor.dim() != 2 or tensor.shape[name == "lora_B"] % count:
        return tensor
    if name == "lora_B":
        return tensor.unflatten(1, (-1, count)).permute(2, 0, 1).contiguous()
    return tensor.unflatten(0, (count, -1))


def _nested(paths: Sequence[str]) -> dict[str, str]:
    """What PEFT calls the place of each of these parameters, in the order of their definition, beside its tensors.

    It wraps a module once for each parameter, the first one innermost, and names the wrappers alone.
    """
    places = {}
    for path in paths:
        module = path.rpartition(".")[0]
        later = [other for other in paths[paths.index(path) + 1 :] if other.rpartition(".")[0] == module]
        places[path] = module + INNER * len(later)
    return places


def unnested(file: AdapterFile, layers: Mapping[str, Layer]) -> AdapterFile:
    """An adapter's file with the tensors of stacks where this model has the parameters; see `_nested`."""
    every = [path for path, layer in layers.items() if layer.kind == STACK]
    chosen = [path for path in every if any(is_named(name, path) for name in file.parameters)]
    unexpected = [name for name in file.parameters if not any(is_named(name, path) for path in every)]
    if unexpected:
        raise CompatibilityError(
            explain(
                "this adapter changes parameters that can't be adapted in this model",
                found=[f"{name} of target_parameters" for name in unexpected[:10]],
                do="the base it was trained on, or train it again without them: stacks of maps alone are adapted, no routers",
            )
        )
    if not every:
        return file
    params = dict(file.params)
    for path, place in _nested(chosen).items():
        if place in file.params:
            params[path] = {
                name: _unflattened(name, tensor, layers[path].sizes[STACK])
                for name, tensor in params.pop(place).items()
            }
    others = [path for path in every if path not in chosen]
    method = with_names(file.method, target_modules=chosen, exclude_modules=others)
    return dataclasses.replace(file, method=method, params=params)


def short_names(chosen: Sequence[str], every: Iterable[str]) -> list[str]:
    """The shortest list of names that selects exactly `chosen` among all modules `every`, sorted.

    Last components such as q_proj where every module of that name is chosen; whole paths for the rest. Other engines read
    this list, and most of them know last components only.
    """
    every, wanted = list(every), set(chosen)
    last = {path.rpartition(".")[2] for path in chosen}
    whole = {name for name in last if all(p in wanted for p in every if p == name or p.endswith(f".{name}"))}
    return sorted(whole) + sorted(path for path in chosen if path.rpartition(".")[2] not in whole)


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
                "this adapter trains tokens of several modules at once",
                found=f"{path}: trainable_token_indices of {', '.join(map(str, tokens))}",
                do="merge it with peft",
            )
        )
    return {**config, "trainable_token_indices": next(iter(tokens.values()))}
