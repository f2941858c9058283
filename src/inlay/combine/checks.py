"""Whether adapters can be combined: of one base and task, on layers of the same shapes, with changes that add up."""

import itertools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from inlay import methods
from inlay.combine import stacks
from inlay.core.routed import Factors
from inlay.errors import CompatibilityError, explain, few
from inlay.formats.contract import AdapterFile
from inlay.io.checkpoint import name_others
from inlay.io.fingerprint import short
from inlay.methods import hooks
from inlay.methods.contract import TOKEN_ROWS, by_kind, factors, is_low_rank
from inlay.names import parents, selects

Named = Mapping[str, AdapterFile]
"""Adapters by what they are called in a message."""

OWN = ("weight", "bias")
"""Tensors that replace the module's own."""


def check(files: Named, *, takes_stacks: bool = False) -> None:
    """Refuse adapters that can't be combined with each other; everything that is in the way is named.

    **Arguments:**

    - `takes_stacks`: parameters of several maps can be combined too.

    **Raises:**

    - `CompatibilityError`: they are of different bases, tasks, tokens or shapes, or a method's changes are no products.
    """
    _same(files, "these adapters are of different bases", _weights, short, "adapters that were trained on one base")
    _check_names(files)
    _same(
        files, "these adapters are of bases with different tokenizers", _tokenizer, short, "adapters of one tokenizer"
    )
    _same(files, "these adapters are for different tasks", _task, str, "adapters of one task, with the same classes")
    _same(files, "these adapters train different tokens", _tokens, str, "adapters that train the same tokens")
    _same(
        files, "these adapters change different parameters of several maps", _parameters, str, "one set of them in all"
    )
    reasons = {name: problem for name, file in files.items() if (problem := _uncombined(file, takes_stacks))}
    if reasons:
        wrong = "these adapters are not all one pair of factors for each layer"
        others = ", ".join(name for name in reasons if not _is_convertible(files[name]))
        do = "inlay convert BASE ADAPTER --output DIR makes a plain LoRA of one"
        do = f"plain LoRAs of linear layers; none can be made of {others}" if others else do
        raise CompatibilityError(
            explain(wrong, found=few([f"{name}: {problem}" for name, problem in reasons.items()]), do=do)
        )
    problems = list(_unlike(files))
    if problems:
        wrong, do = "these adapters are of models of different shapes", "adapters of one base: inlay inspect names it"
        raise CompatibilityError(explain(wrong, found=few(problems), do=do))


def is_saved(file: AdapterFile, path: str) -> bool:
    """The adapter keeps the module at a path whole."""
    names = file.method.modules_to_save
    return bool(names) and any(selects(names, part) for part in parents(path))


def added(file: AdapterFile, path: str) -> dict[str, Tensor]:
    """The tensors at a path that the method adds, as against those that replace the module's own."""
    own = () if is_saved(file, path) else file.params[path].items()
    return {name: tensor for name, tensor in own if name not in (*OWN, TOKEN_ROWS)}


def changed(files: Named) -> list[str]:
    """The paths of the modules that the adapters change, in their order."""
    return list(dict.fromkeys(path for file in files.values() for path in file.params if added(file, path)))


def change(file: AdapterFile, path: str) -> Factors | None:
    """What an adapter does to the module at `path`, or as its file has it to a parameter; None where it has no change of it."""
    tensors = added(file, path) if path in file.params else {}
    return factors(hooks.for_module(file.method, path), tensors) if tensors else None


def _same(
    files: Named, wrong: str, what: Callable[[AdapterFile], Hashable], told: Callable[[Any], str], do: str
) -> None:
    """Refuse files of which `what` says different things; one of which it says nothing fits all."""
    said = {name: found for name, file in files.items() if (found := what(file)) is not None}
    if len(set(said.values())) > 1:
        found = few([f"{name}: {told(value)}" for name, value in said.items()])
        raise CompatibilityError(explain(wrong, found=found, do=do))


def _check_names(files: Named) -> None:
    """Refuse adapters that name different models where no digest of the weights says more, as for a base at hand."""
    named = {name: file.model.name for name, file in files.items() if file.model.name}
    pairs = itertools.combinations(named, 2)
    unknown = (pair for pair in pairs if not all(_weights(files[name]) for name in pair))
    if any(name_others(named[one], named[other]) for one, other in unknown):
        found = few([f"{name}: {base}" for name, base in named.items()])
        do = "adapters of one base; where it goes by several names, the same one in each adapter_config.json"
        raise CompatibilityError(explain("these adapters name different bases", found=found, do=do))


def _weights(file: AdapterFile) -> str | None:
    """The digest of the base's weights, or of what they were quantised from."""
    base = file.record.get("base") or {}
    return base.get("quantized_from") or base.get("weights")


def _tokenizer(file: AdapterFile) -> str | None:
    computes = file.record.get("computes") or {}
    return computes.get("tokenizer") or (file.record.get("base") or {}).get("tokenizer")


def _task(file: AdapterFile) -> str | None:
    task = file.record.get("task") or {}
    labels = task.get("labels") or ()
    return ": ".join([str(task.get("name")), ", ".join(labels)]) if task else file.model.task_type


def _tokens(file: AdapterFile) -> tuple[int, ...] | None:
    return tuple(hooks.token_ids(file.method)) or None


def _parameters(file: AdapterFile) -> tuple[str, ...] | None:
    return tuple(sorted(file.parameters)) or None


def _uncombined(file: AdapterFile, takes_stacks: bool) -> str | None:
    """Why an adapter is no pair of factors for each layer; the layers of other tensors have no sizes in its file."""
    if file.needs_model:
        return "its tensors are as another program has them: inlay export BASE ADAPTER --for inlay --output DIR"
    if file.parameters and not takes_stacks:
        return f"parameters of several maps ({', '.join(file.parameters)})"
    if problem := stacks.problem(file):
        return problem
    changes = [path for path in file.params if added(file, path)]
    sizes = [path in file.model.layers and file.model.layers[path].sizes for path in changes]
    if isinstance(file.method, hooks.Shares) or not is_low_rank(file.method) or not all(sizes):
        return f"its method is {methods.name_of(file.method)}, whose change of a layer is no product of two tensors of its own"
    return None if changes else "it changes no layer"


def _is_convertible(file: AdapterFile) -> bool:
    """`inlay convert` makes a LoRA of it."""
    is_linear = by_kind(file.method, maps=lambda _: True, blocks=lambda _: False, front=lambda _: False, none=False)
    return is_linear and not file.parameters and any(added(file, path) for path in file.params)


def _unlike(files: Named) -> list[str]:
    """Modules that two adapters have in different shapes, or one whole and the other as a change of it."""
    seen: dict[str, tuple[str, dict[str, Any]]] = {}
    problems = []
    for name, file in files.items():
        for path, module in file.params.items():
            whole = {key: tuple(tensor.shape) for key, tensor in module.items() if key in OWN}
            layer = file.model.layers.get(path)
            shape = (dict(layer.sizes) if layer and added(file, path) else {}) | whole
            shape |= {"maps": count} if (count := stacks.num_maps(file, path)) > 1 else {}
            first, others = seen.setdefault(path, (name, shape))
            if shape != others:
                problems.append(f"{path}: {shape} in {name}, {others} in {first}")
    return problems
