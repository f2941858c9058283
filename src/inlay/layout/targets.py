"""Which parts of a model an adapter changes: its linear maps, its blocks, its own tensors.

`resolve` turns `target_modules`, `exclude_modules` and `layers_to_transform` into module paths, and refuses whatever
matches nothing, even where the rest matches: a name that is silently ignored is an adapter that silently learns less.

`blocks` finds where the attention and the MLP of each layer say what they have to say: the last linear map as wide as the model
in each child of a layer, a layer being a member of a `torch.nn.ModuleList`. `own_tensors` are what the modules hold.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from inlay import methods
from inlay.errors import TargetError, explain, nearest
from inlay.fields import shown
from inlay.methods import hooks, name_of
from inlay.methods.contract import Block, LinearMethod, Own
from inlay.modules.linear import Linear
from inlay.modules.maps import maps_of
from inlay.names import Names, fault, is_named, is_regex, matches, matches_end, split

Problems = dict[str, list[str]]
"""What matches nothing, by the field that asked for it."""


def linear_modules(model: nn.Module) -> dict[str, Linear]:
    """The linear layers that are modules of `model`, by path, in its own order."""
    return {path: linear for path, linear in maps_of(model).items() if linear.kind == "linear"}


def blocks(model: nn.Module, linears: dict[str, Linear]) -> dict[str, Block]:
    """The blocks of every layer, by the path of their output projections."""
    width = _width(model)
    layers = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for name in module._modules
    ]
    found: dict[str, Block] = {}
    for layer in layers:
        if any(other.startswith(f"{layer}.") for other in layers):
            continue  # it holds layers of its own
        for child, module in model.get_submodule(layer).named_children():
            place = f"{layer}.{child}"
            maps = [path for path in linears if path.startswith(f"{place}.") and linears[path].kind == "linear"]
            wide = [path for path in maps if linears[path].out_features == width]
            if wide:
                found[wide[-1]] = Block(
                    place, "attention" if _attends(module) else "mlp", linears[wide[-1]].out_features
                )
    return found


def own_tensors(
    modules: Mapping[str, nn.Module], linears: Mapping[str, Linear], adapted: Collection[str]
) -> list[tuple[Own, nn.Parameter, bool]]:
    """Every tensor that these modules hold, and whether this module is the first that holds it."""
    seen: set[int] = set()
    found = []
    for path, module in modules.items():
        for name, parameter in module._parameters.items():
            if not path or parameter is None or not parameter.is_floating_point():
                continue
            is_first = id(parameter) not in seen
            seen.add(id(parameter))
            kind = linears[path].kind if path in linears else "norm" if _is_norm(module) else "other"
            found.append((Own(path, name, kind, path in adapted), parameter, is_first))
    return found


def _is_norm(module: nn.Module) -> bool:
    """It has no parts, and its tensors are a factor, and perhaps an offset, for each number."""
    names = {name for name, parameter in module._parameters.items() if parameter is not None}
    shapes = [parameter.dim() for parameter in module._parameters.values() if parameter is not None]
    return names in ({"weight"}, {"weight", "bias"}) and set(shapes) == {1} and not any(module.children())


def _width(model: nn.Module) -> int | None:
    """The width of the stream that the layers add to: that of the embeddings."""
    config = getattr(model, "config", None)
    return getattr(config.get_text_config(), "hidden_size", None) if config is not None else None


def _attends(module: nn.Module) -> bool:
    """The module, or a part of it, is an attention, going by what `transformers` and torch call all such classes."""
    return any("Attention" in type(part).__name__ for part in module.modules())


def output_head(model: nn.Module) -> str | None:
    """The path of the map from the last hidden state to the vocabulary, or None."""
    getter = getattr(model, "get_output_embeddings", None)  # transformers' models have it, other torch modules do not
    head = getter() if getter else None
    return next((path for path, module in model.named_modules() if module is head), None) if head is not None else None


def input_embedding(modules: Mapping[str, nn.Module]) -> str | None:
    """The path of the input embedding among a model's modules; None where it has none."""
    getter = getattr(modules[""], "get_input_embeddings", None)
    table = getter() if getter else None
    return next((path for path, module in modules.items() if module is table), None)


def heads(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """Those of `paths` between the model's body and its answers: the output head, what is outside the body, poolers."""
    head, body = output_head(model), getattr(model, "base_model", model)  # a body alone is its own
    inside = next(f"{path}." if path else "" for path, module in model.named_modules() if module is body)
    return [path for path in paths if path == head or not path.startswith(inside) or "pooler" in path.split(".")]


def resolve(
    method: LinearMethod,
    linears: dict[str, Linear],
    head: str | None,
    strict: bool = True,
    unused: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """The paths that `method` adapts, in the model's order.

    **Arguments:**

    - `linears`: the model's maps, as `inlay.modules.maps.maps_of` gives them.
    - `head`: the path that 'all-linear' leaves out.
    - `strict`: refuse what matches nothing; without it such names are passed over, as the exchange format allows.
    - `unused`: maps that are left out because a change of them would have no effect, and why; see `inlay.modules.trial`.

    **Raises:**

    - `TargetError`: a name, pattern or layer number matches nothing, or nothing but unused maps, or nothing is left; the
      message lists all of them.
    """
    paths = [path for path, linear in linears.items() if linear.kind in method.kinds]
    plain = [path for path in paths if linears[path].is_layer]
    problems: Problems = {}
    without_head = [path for path in plain if path != head]
    wanted = {path for path in without_head if linears[path].one.out_features > 1}  # one output: a gate
    if method.target_modules != "all-linear":
        wanted = _select("target_modules", method.target_modules, paths, problems)
    excluded = _select("exclude_modules", method.exclude_modules, paths, problems)
    chosen = _in_layers(method, [path for path in paths if path in wanted and path not in excluded], paths, problems)
    _check_patterns(method, chosen, problems)
    if strict and (problems or not chosen):
        _check_kinds(method, linears)
        _refuse(problems, method, plain)
    if strict:
        _check_all(method, linears, without_head)
        _check_used(method, chosen, unused, [path for path in without_head if path not in unused])
    return [path for path in chosen if path not in unused]


def _check_patterns(method: LinearMethod, chosen: Sequence[str], problems: Problems) -> None:
    unmatched = [key for key in hooks.patterns(method) if not any(matches_end(key, path) for path in chosen)]
    if unmatched:
        problems["patterns"] = [f"{key!r} of rank_pattern or alpha_pattern" for key in unmatched]


def _in_layers(method: LinearMethod, chosen: list[str], paths: Sequence[str], problems: Problems) -> list[str]:
    """Those of the chosen maps that are in the layers which the method names; layers that no map is in are a problem."""
    wanted = method.layers_to_transform
    if wanted is None:
        return chosen
    numbers = {layer_number(path) for path in paths}
    missing = [f"layer {n}" for n in wanted if n not in numbers]
    if missing:
        problems["layers_to_transform"] = missing
    return [path for path in chosen if layer_number(path) in wanted]


def _check_all(method: LinearMethod, linears: Mapping[str, Linear], plain: list[str]) -> None:
    """Refuse all linear layers where most of them, those that parameters hold, can't be adapted."""
    left = {path: linear.kind for path, linear in linears.items() if linear.count and linear.kind not in method.kinds}
    if left and method.target_modules == "all-linear":
        kinds = " and ".join(dict.fromkeys(left.values()))
        raise TargetError(
            explain(
                f"{name_of(method)} can't adapt the {kinds} of this model, which are most of its linear layers",
                found=f"{summary(left)}; it could adapt {summary(plain)}",
                do=f"--method lora, or --target-modules {','.join(dict.fromkeys(p.rpartition('.')[2] for p in plain))}",
            )
        )


def _check_used(method: LinearMethod, chosen: list[str], unused: Mapping[str, str], others: list[str]) -> None:
    """Refuse a name that means unused maps alone; of those that it means with others, the caller is told."""
    names = method.target_modules
    if is_regex(names) or names == "all-linear":
        groups = [chosen]
    else:
        groups = [[path for path in chosen if is_named(name, path)] for name in split(names)]
    wrong = [path for group in groups if group and all(path in unused for path in group) for path in group]
    if wrong:
        raise TargetError(
            explain(
                "an adapter of these layers would change nothing",
                found=reasons({path: unused[path] for path in wrong}),
                do=f"--target-modules {','.join(dict.fromkeys(path.rpartition('.')[2] for path in others))}",
            )
        )


def reasons(unused: Mapping[str, str]) -> list[str]:
    """Silent modules in words, by the reason why: 'dt_proj (2): the model reads its weight itself'."""
    by_reason: dict[str, list[str]] = {}
    for path, why in unused.items():
        by_reason.setdefault(why, []).append(path)
    return [f"{summary(paths)}: {why}" for why, paths in by_reason.items()]


def _check_kinds(method: LinearMethod, linears: dict[str, Linear]) -> None:
    """Refuse names of layers that the model has and the method can't adapt."""
    names = [] if is_regex(method.target_modules) else split(method.target_modules)
    named = {path: linear.kind for path, linear in linears.items() if any(is_named(name, path) for name in names)}
    wrong = [f"{path} is {kind}" for path, kind in named.items() if kind not in method.kinds]
    if wrong:
        kinds = set(named.values())
        able = [other for other, cls in methods.TABLE.known() if kinds <= set(getattr(cls, "kinds", ()))]
        able.sort(key=lambda other: other != "lora")  # the usual one first
        what = f"{name_of(method)} can't adapt these layers, only {', '.join(method.kinds)}"
        do = f"other --target-modules{f', or --method {able[0]}' if able else ''}"
        raise TargetError(explain(what, found=wrong[:10], do=do))


def layer_number(path: str) -> int | None:
    """The layer that a module belongs to: the first number in its path."""
    return next((int(part) for part in path.split(".")[1:] if part.isdigit()), None)


def summary(paths: Iterable[str]) -> str:
    """The modules in words: 'q_proj (30), v_proj (30)'."""
    counts = Counter(path.rpartition(".")[2] for path in paths)
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _select(field: str, names: Names, paths: list[str], problems: Problems) -> set[str]:
    if is_regex(names):
        _check_regex(field, names)
        chosen = {path for path in paths if matches(names, path)}
        if not chosen:
            problems.setdefault(field, []).append(f"the regular expression {shown(names)} of {field}")
        return chosen
    chosen = set()
    for name in split(names):
        matched = {path for path in paths if is_named(name, path)}
        if not matched:
            problems.setdefault(field, []).append(f"{name!r} of {field}")
        chosen |= matched
    return chosen


def _check_regex(field: str, pattern: str) -> None:
    if reason := fault(pattern):
        raise TargetError(
            explain(
                f"{field} is not a regular expression", found=f"{shown(pattern)}: {reason}", do="check its brackets"
            )
        )


def _refuse(problems: Problems, method: LinearMethod, paths: list[str]) -> None:
    found = [problem for field in problems.values() for problem in field] or ["nothing is left to adapt"]
    hints = [
        f"--{field.replace('_', '-')} {mended}"
        for field in ("target_modules", "exclude_modules")
        if field in problems and (mended := _mended(getattr(method, field), paths))
    ]
    if "layers_to_transform" in problems:
        hints.append(f"--layers-to-transform 0-{max((layer_number(path) or 0 for path in paths), default=0)}")
    if not hints:
        whole = method.target_modules == "all-linear"
        hints = ["exclude fewer layers" if whole and not problems else "--target-modules all-linear"]
    what = "some of what was asked for matches no linear layer of this model"
    found.append(f"its linear layers are {summary(paths) or 'none'}")
    raise TargetError(explain(what, found=found, do=" ".join(hints)))


def _mended(names: Names, paths: list[str]) -> str | None:
    """`names`, each that matches nothing replaced by the nearest one that does; None where one has no such name."""
    if is_regex(names):
        loose = f".*({names})"
        return f"'{loose}'" if any(matches(loose, path) for path in paths) else None
    known = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    mended = [
        name if any(is_named(name, path) for path in paths) else nearest(name.rpartition(".")[2], known)
        for name in split(names)
    ]
    return ",".join(name for name in mended if name) if all(mended) else None


def places(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every place of every module, as the module that holds it and its name there, by the module's identity."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in module.modules():
        for name, part in parent._modules.items():
            if part is not None:
                places.setdefault(id(part), []).append((parent, name))
    return places


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
