"""Any change of linear maps as a plain LoRA, with how far it is from it.

    delta W = merge(W) - W,   B A = the best approximation of delta W of rank r

`merge` is the method's own, in float64. What is a product of two factors already (LoRA, AdaLoRA, VeRA, and LoHa with r^2) is
taken as it is, exactly, unless a rank is asked for. Biases that the method changes are kept whole.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from inlay import methods
from inlay.combine.combine import Combined, as_module, as_params, plain
from inlay.combine.contract import Made, Weighted
from inlay.combine.entries import approximated
from inlay.combine.ways.svd import Svd
from inlay.errors import CompatibilityError, explain
from inlay.formats.contract import AdapterFile
from inlay.methods import hooks
from inlay.methods.contract import LinearBase, LinearMethod, Params, by_kind, factors

DEFAULT_R = 16
"""The rank of a change that is no product of factors."""


def convert(
    name: str,
    file: AdapterFile,
    maps: Mapping[str, LinearBase],
    r: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Combined:
    """An adapter of a method that changes linear maps as a LoRA.

    **Arguments:**

    - `file`: it fits the model that `maps` are of.
    - `maps`: module path -> the base's map there.
    - `r`: the rank of each change; without it, that of its factors, or `DEFAULT_R` where it has none.

    **Raises:**

    - `CompatibilityError`: the method changes no linear maps, or parameters of several.
    """
    method = _of_maps(name, file)
    params: dict[str, Params] = {}
    modules, biases, is_other = {}, dict[str, Tensor](), False
    for number, (path, module) in enumerate(file.params.items()):
        progress(number, len(file.params))
        own = set(hooks.for_module(method, path).shapes(maps[path])) & set(module) if path in maps else set()
        params[path] = {key: tensor for key, tensor in module.items() if key not in own}
        if not own:
            continue
        tensors = {**hooks.share(method, file.shared, maps[path]), **{key: module[key] for key in own}}
        made, bias, moved = _made(hooks.for_module(method, path), tensors, maps[path], r)
        params[path] |= as_params(made)
        modules[path] = as_module(made)
        biases |= {} if bias is None else {path: bias}
        is_other |= moved
    for path, bias in biases.items() if is_other else ():
        params[path]["bias"] = bias.float()
    record: dict[str, Any] = {"how": f"converted from {methods.name_of(method)}", "of": [{"name": name}]}
    ranks = {path: module.r for path, module in modules.items()}
    return Combined(plain([file], params, ranks, {"combined": record}, "lora_only" if is_other else None), modules)


def _of_maps(name: str, file: AdapterFile) -> LinearMethod:
    """The method of an adapter, which changes linear maps."""
    if file.parameters:
        wrong, found = "this adapter changes parameters of several maps", f"{name}: {', '.join(file.parameters)}"
        raise CompatibilityError(explain(wrong, found=found, do="the adapter as it is: the other commands take it"))
    method = by_kind(file.method, maps=lambda m: m, blocks=lambda _: None, front=lambda _: None, none=None)
    if method is None:
        found, do = f"{name}: {methods.name_of(file.method)}", "an adapter of another method: inlay train --method lora"
        raise CompatibilityError(explain("this adapter has no changes that a LoRA could hold", found=found, do=do))
    return method


def _made(method: LinearMethod, tensors: Params, base: LinearBase, r: int | None) -> tuple[Made, Tensor | None, bool]:
    """The change of one map as factors, its bias with the method, and whether that is another one than the base's."""
    known = factors(method, tensors)
    if known is not None and r is None:
        return Made(known.A.double(), known.B.double() * known.scaling), None, False
    if known is not None:
        return Svd(r=r).merge([Weighted(known, 1.0)], torch.Generator()), None, False
    weight, bias = base.weight(torch.float64).cpu(), base.bias
    bias = None if bias is None else bias.double().cpu()
    merged, new = method.merge({key: tensor.double() for key, tensor in tensors.items()}, weight, bias)
    moved = new is not None and (bias is None or not torch.equal(new, bias))
    return approximated(merged - weight, r or DEFAULT_R, torch.Generator().manual_seed(0)), new, moved
