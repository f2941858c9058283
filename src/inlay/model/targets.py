"""Which linear maps of a model an adapter changes.

`resolve` turns `target_modules`, `exclude_modules` and `layers_to_transform` into module paths, and refuses whatever
matches nothing, even where the rest matches: a name that is silently ignored is an adapter that silently learns less.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeGuard

import torch
from torch import nn

from inlay.errors import TargetError, explain, nearest
from inlay.methods._contract import LinearMethod, Names, matches, matches_end
from inlay.model.linear import Linear, as_linear

_REGEX_CHARACTERS = frozenset("*+?()[]|\\^$")

Problems = dict[str, list[str]]
"""What matches nothing, by the field that asked for it."""


def linear_modules(model: nn.Module) -> dict[str, Linear]:
    """Every linear map of `model`, by path, in the model's own order."""
    found = ((path, as_linear(module)) for path, module in model.named_modules())
    return {path: linear for path, linear in found if linear is not None}


def output_head(model: nn.Module) -> str | None:
    """The path of the map from the last hidden state to the vocabulary, or None."""
    getter = getattr(model, "get_output_embeddings", None)  # transformers' models have it, other torch modules do not
    head = getter() if getter else None
    return next((path for path, module in model.named_modules() if module is head), None) if head is not None else None


def resolve(method: LinearMethod, linears: dict[str, Linear], head: str | None, strict: bool = True) -> list[str]:
    """The paths that `method` adapts, in the model's order.

    **Arguments:**

    - `linears`: the model's linear maps, as `linear_modules` gives them.
    - `head`: the path that 'all-linear' leaves out.
    - `strict`: refuse what matches nothing; without it such names are passed over, as the exchange format allows.

    **Raises:**

    - `TargetError`: a name, pattern or layer number matches nothing, or nothing is left; the message lists all of them.
    """
    paths = list(linears)
    problems: Problems = {}
    chosen = _select("target_modules", method.target_modules, paths, head, problems)
    excluded = _select("exclude_modules", method.exclude_modules, paths, None, problems)
    chosen = [path for path in paths if path in chosen and path not in excluded]
    if method.layers_to_transform is not None:
        numbers = {layer_number(path) for path in paths} - {None}
        for n in method.layers_to_transform:
            if n not in numbers:
                problems.setdefault("layers_to_transform", []).append(f"layer {n}")
        chosen = [path for path in chosen if layer_number(path) in method.layers_to_transform]
    for key in method.patterns:
        if not any(matches_end(key, path) for path in chosen):
            problems.setdefault("patterns", []).append(f"{key!r} of rank_pattern or alpha_pattern")
    if strict and (problems or not chosen):
        _refuse(problems, method, paths)
    return chosen


def layer_number(path: str) -> int | None:
    """The layer that a module belongs to: the first number in its path."""
    return next((int(part) for part in path.split(".")[1:] if part.isdigit()), None)


def short_names(chosen: Sequence[str], every: Iterable[str]) -> list[str]:
    """The shortest list of names that selects exactly `chosen` among all modules `every`, sorted.

    Last components such as q_proj where every module of that name is chosen; whole paths for the rest. Other engines read
    this list, and most of them know last components only.
    """
    every, wanted = list(every), set(chosen)
    last = {path.rpartition(".")[2] for path in chosen}
    whole = {name for name in last if all(p in wanted for p in every if p == name or p.endswith(f".{name}"))}
    return sorted(whole) + sorted(path for path in chosen if path.rpartition(".")[2] not in whole)


def summary(paths: Iterable[str]) -> str:
    """The modules in words: 'q_proj (30), v_proj (30)'."""
    counts = Counter(path.rpartition(".")[2] for path in paths)
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _select(field: str, names: Names, paths: list[str], head: str | None, problems: Problems) -> set[str]:
    if names == "all-linear":
        return {path for path in paths if path != head}
    if _is_regex(names):
        _check_regex(field, names)
        chosen = {path for path in paths if matches(names, path)}
        if not chosen:
            problems.setdefault(field, []).append(f"the regular expression {names!r} of {field}")
        return chosen
    chosen = set()
    for name in split(names):
        matched = {path for path in paths if is_named(name, path)}
        if not matched:
            problems.setdefault(field, []).append(f"{name!r} of {field}")
        chosen |= matched
    return chosen


def _is_regex(names: Names) -> TypeGuard[str]:
    return isinstance(names, str) and not _REGEX_CHARACTERS.isdisjoint(names)


def split(names: Names) -> list[str]:
    """Names with commas between them, or a tuple of names, as a list."""
    return [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]


def is_named(name: str, path: str) -> bool:
    """`name` is the whole path of a module, or its end."""
    return path == name or path.endswith(f".{name}")


def _check_regex(field: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise TargetError(
            explain(f"{field} is not a regular expression", found=f"{pattern!r}: {error}", do="check its brackets")
        ) from None


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
    raise TargetError(
        explain(
            "some of what was asked for matches no linear layer of this model",
            found=[*found, f"its linear layers are {summary(paths) or 'none'}"],
            do=" ".join(hints),
        )
    )


def _mended(names: Names, paths: list[str]) -> str | None:
    """`names` with the nearest name in the place of each that matches nothing; None where one has no such name."""
    if _is_regex(names):
        loose = f".*({names})"
        return f"'{loose}'" if any(matches(loose, path) for path in paths) else None
    known = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    mended = [
        name if any(is_named(name, path) for path in paths) else nearest(name.rpartition(".")[2], known)
        for name in split(names)
    ]
    return ",".join(name for name in mended if name) if all(mended) else None


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
