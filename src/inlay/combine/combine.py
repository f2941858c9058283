"""Several adapters into one: what each does to a module goes through a way of combining, and the result is a plain LoRA.

Scalings, ranks and patterns of the adapters are in the factors that the result is made of; its own scaling is 1.
Factors are computed in float64 and kept in float32.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from inlay.combine import stacks, whole
from inlay.combine.checks import Named, change, changed, check
from inlay.combine.contract import Made, Way, Weighted, settings
from inlay.core.routed import Factors
from inlay.errors import ConfigError, explain, few
from inlay.formats.contract import AdapterFile
from inlay.io import meaning
from inlay.methods import hooks
from inlay.methods.contract import Params
from inlay.methods.lora import Lora
from inlay.names import is_regex, split

KEPT = ("base", meaning.KEY, "task", "text")
"""The parts of an adapter's record that hold for what is made of it."""

Biases = Literal["none", "lora_only", "all"]


class Module(NamedTuple):
    """What was made for one module."""

    r: int
    norm: float
    """The size of the change that was wanted: the square root of the sum of its squares; 0 where it was not looked for."""
    error: float
    """How far from it is what was made, as part of that size."""


class Combined(NamedTuple):
    """An adapter that was made of others."""

    file: AdapterFile
    modules: dict[str, Module]

    @property
    def error(self) -> float:
        """How far the change of all modules is from the one that was wanted, as part of its size."""
        wanted = sum(module.norm**2 for module in self.modules.values())
        off = sum((module.norm * module.error) ** 2 for module in self.modules.values())
        return math.sqrt(off / wanted) if wanted else 0.0

    def describe(self) -> str:
        """What was kept of the change that was wanted, in one line."""
        if not any(module.norm for module in self.modules.values()):
            return "everything: this way is exact"
        worst = max(self.modules, key=lambda path: self.modules[path].error)
        most = self.modules[worst].error
        off = f"off by {100 * self.error:.3g} % of the size of the change; most in {worst}: {100 * most:.3g} %"
        return f"{100 * (1 - self.error**2):.4g} % of the energy, {off}" if self.error < 1 else off

    def as_json(self) -> dict[str, Any]:
        """The same as values for JSON, with each module's."""
        modules = {path: module._asdict() for path, module in self.modules.items()}
        return {**self.file.record["combined"], "relative_error": self.error, "modules": modules}


def combine(
    files: Named,
    weights: Mapping[str, float],
    way: Way,
    progress: Callable[[int, int], None] = lambda done, total: None,
    after: Callable[[str, Made], Made] | None = None,
) -> Combined:
    """One adapter made of several, module by module; one that has no change of a module counts as none there.

    **Arguments:**

    - `files`: the adapters, by what they are called in messages and in the record.
    - `weights`: what each counts; below 0, its change is taken away.
    - `after`: what becomes of the change that was made of a module, by its path; see `inlay.combine.intruders.Shrinking`.

    **Raises:**

    - `CompatibilityError`: they are not of one base, task and shapes, or their changes do not add up; see `checks` and `whole`.
    - `ConfigError`: a weight is no finite number, or so large that the result is none; or the way has no use for these.
    """
    _check_weights(weights)
    check(files, takes_stacks=True)
    way.check(weights)
    params: dict[str, Params] = whole.sums(files, weights, way)
    modules: dict[str, Module] = {}
    given = _given(way)
    paths = changed(files)
    for number, path in enumerate(paths):
        progress(number, len(paths))
        generator = torch.Generator().manual_seed(_seed(given.get("seed", 0), path))
        each = [way.merge(changes, generator) for changes in _changes(files, weights, path)]
        result = stacks.together(each)
        result = after(path, result) if after else result
        modules[path] = as_module(result, len(each))
        params[path] = as_params(result) | params.get(path, {})
    _check_finite(params)
    record = {"combined": {"how": type(way).__name__.lower(), **given, "of": _named(files, weights)}}
    return Combined(
        plain(files.values(), params, {path: module.r for path, module in modules.items()}, record), modules
    )


def plain(
    sources: Iterable[AdapterFile],
    params: dict[str, Params],
    ranks: Mapping[str, int],
    record: Mapping[str, Any],
    bias: Biases | None = None,
) -> AdapterFile:
    """A LoRA of these tensors, of scaling 1, for the model of the adapters that it was made of.

    **Arguments:**

    - `ranks`: module path -> the rank there.
    - `record`: what its record says beside what those of the sources say alike.
    - `bias`: which biases are among the tensors, where that is not what the first source says.
    """
    sources = list(sources)
    first, parameters = sources[0], next((file.parameters for file in sources if file.parameters), ())
    r = _rank(sources, ranks)
    others = _short({path: rank for path, rank in ranks.items() if rank != r}, ranks)
    method = Lora(
        r=r,
        lora_alpha=r,
        rank_pattern=others,
        alpha_pattern={key: float(rank) for key, rank in others.items()},
        bias=bias or getattr(first.method, "bias", "none"),
        target_modules=_targets(sources, list(ranks)),
        modules_to_save=_saved(sources),
        trainable_token_indices=next((tuple(ids) for file in sources if (ids := hooks.token_ids(file.method))), ()),
    )
    layers = {path: layer for file in reversed(sources) for path, layer in file.model.layers.items()}
    name = next((file.model.name for file in sources if file.model.name), None)
    kept = {key: file.record[key] for key in KEPT for file in reversed(sources) if key in file.record}
    model = first.model._replace(name=name, layers=layers)
    about = kept | dict(record)
    return AdapterFile(method=method, params=params, model=model, parameters=parameters, record=about)


def as_params(made: Made) -> Params:
    """The factors of a change as a LoRA's tensors, in float32."""
    return {"lora_A": made.A.float().contiguous(), "lora_B": made.B.float().contiguous()}


def _check_weights(weights: Mapping[str, float]) -> None:
    wrong = [f"{name}: {weight}" for name, weight in weights.items() if not math.isfinite(weight) or not weight]
    if wrong:
        do = "--weights 1,0.5; an adapter that is not to count is left out"
        raise ConfigError(explain("a weight has to be a finite number other than 0", found=few(wrong), do=do))


def _check_finite(params: Mapping[str, Params]) -> None:
    overflown = [path for path, module in params.items() if not all(t.isfinite().all() for t in module.values())]
    if overflown:
        wrong, do = "these weights are too large: the result is not finite", "weights near 1"
        raise ConfigError(explain(wrong, found=few(overflown), do=do))


def _changes(files: Named, weights: Mapping[str, float], path: str) -> list[list[Weighted]]:
    """What each adapter does to the module at `path`, or to each map of a parameter there; nothing, of rank 0, where it has no
    change of it."""
    count = max(stacks.num_maps(file, path) for file in files.values() if path in file.params)
    found = {name: change(file, path) for name, file in files.items()}
    each = {name: stacks.apart(factors, count) if factors else None for name, factors in found.items()}
    one = next(filter(None, each.values()))[0]
    nothing = [Factors(one.A[:0], one.B[:, :0], 1.0)] * count
    return [[Weighted((each[name] or nothing)[i], weight) for name, weight in weights.items()] for i in range(count)]


def as_module(made: Made, count: int = 1) -> Module:
    """What is said of a change that was made, of so many maps."""
    error = math.sqrt(made.square_error / made.square_norm) if made.square_norm else 0.0
    return Module(len(made.A) // count, math.sqrt(made.square_norm), error)


def _rank(sources: Sequence[AdapterFile], ranks: Mapping[str, int]) -> int:
    """The one that is no exception: that of parameters of several maps, which know no exceptions; else the commonest."""
    several = {
        rank for path, rank in ranks.items() if any(stacks.num_maps(f, path) > 1 for f in sources if path in f.params)
    }
    if len(several) > 1:
        wrong, do = "parameters of several maps have one rank", f"--r {min(several)}"
        raise ConfigError(explain(wrong, found=f"ranks {sorted(several)}", do=do))
    return max(several) if several else Counter(ranks.values()).most_common(1)[0][0]


def _targets(sources: Sequence[AdapterFile], paths: Sequence[str]) -> tuple[str, ...]:
    """The names that mean these modules on the model: those that the sources have, where they are nothing but names; else the
    paths, as nothing tells which other modules the model has."""
    chosen = [getattr(file.method, "target_modules", ()) for file in sources]
    limits = [getattr(file.method, key, None) for file in sources for key in ("exclude_modules", "layers_to_transform")]
    if any(limits) or any(is_regex(names) or split(names) == ["all-linear"] for names in chosen):
        return tuple(sorted(paths))
    return tuple(sorted({name for names in chosen for name in split(names)}))


def _saved(sources: Sequence[AdapterFile]) -> tuple[str, ...]:
    """The modules that are saved whole."""
    chosen = [file.method.modules_to_save for file in sources if file.method.modules_to_save]
    return tuple(dict.fromkeys(name for names in chosen for name in split(names)))


def _short(some: Mapping[str, int], every: Iterable[str]) -> dict[str, int]:
    """Patterns for the ranks of some modules: the last part of a path where every module of that name has the rank."""
    last: dict[str, set[int]] = {}
    for path in every:
        last.setdefault(path.rpartition(".")[2], set()).add(some.get(path, 0))
    names = {path: path.rpartition(".")[2] for path in some}
    return {name if len(last[name]) == 1 else path: some[path] for path, name in names.items()}


def _seed(seed: int, path: str) -> int:
    """What is drawn for a module does not depend on which others there are."""
    return int.from_bytes(hashlib.sha256(f"{seed} {path}".encode()).digest()[:8], "big") >> 1


def _given(way: Way) -> dict[str, Any]:
    return {key: value for key in settings(type(way)) if (value := getattr(way, key)) is not None}


def _named(files: Named, weights: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "weight": weights[name]} for name in files]
