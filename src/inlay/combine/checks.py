"""Whether adapters can be combined: of one base and task, on layers of the same shapes, with changes that add up."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from inlay import methods
from inlay.errors import CompatibilityError, explain, few
from inlay.formats.contract import AdapterFile
from inlay.io.fingerprint import short
from inlay.methods import hooks
from inlay.methods.contract import TOKEN_ROWS, factors
from inlay.names import parents, selects

Named = Mapping[str, AdapterFile]
"""Adapters by what they are called in a message."""

OWN = ("weight", "bias")
"""Tensors that replace the module's own."""


def check(files: Named) -> None:
    """Refuse adapters that can't be combined with each other; everything that is in the way is named.

    **Raises:**

    - `CompatibilityError`: they are of different bases, tasks, tokens or shapes, or a method's changes are no products.
    """
    _same(files, "these adapters are of different bases", _weights, short, "adapters that were trained on one base")
    _same(
        files, "these adapters are of bases with different tokenizers", _tokenizer, short, "adapters of one tokenizer"
    )
    _same(files, "these adapters are for different tasks", _task, str, "adapters of one task, with the same classes")
    _same(files, "these adapters train different tokens", _tokens, str, "adapters that train the same tokens")
    problems = [f"{name}: {problem}" for name, file in files.items() for problem in _uncombined(file)]
    if problems:
        wrong, do = (
            "these adapters have no changes that add up without the base",
            "inlay convert BASE ADAPTER makes a plain LoRA of it",
        )
        raise CompatibilityError(explain(wrong, found=few(problems), do=do))
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


def _same(
    files: Named, wrong: str, what: Callable[[AdapterFile], Hashable], told: Callable[[Any], str], do: str
) -> None:
    """Refuse files of which `what` says different things; one of which it says nothing fits all."""
    said = {name: found for name, file in files.items() if (found := what(file)) is not None}
    if len(set(said.values())) > 1:
        found = few([f"{name}: {told(value)}" for name, value in said.items()])
        raise CompatibilityError(explain(wrong, found=found, do=do))


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


def _uncombined(file: AdapterFile) -> list[str]:
    """Why the changes of an adapter do not add up."""
    if file.parameters:
        return [f"parameters of several maps ({', '.join(file.parameters)})"]
    changes = [tensors for path in file.params if (tensors := added(file, path))]
    if isinstance(file.method, hooks.Shares) or not all(factors(file.method, tensors) for tensors in changes[:1]):
        return [
            f"its method is {methods.name_of(file.method)}, whose change of a layer is no product of its own tensors"
        ]
    return [] if changes else ["it changes no layer"]


def _unlike(files: Named) -> list[str]:
    """Modules that two adapters have in different shapes, or one whole and the other as a change of it."""
    seen: dict[str, tuple[str, dict[str, Any]]] = {}
    problems = []
    for name, file in files.items():
        for path, module in file.params.items():
            whole = {key: tuple(tensor.shape) for key, tensor in module.items() if key in OWN}
            layer = file.model.layers.get(path)
            shape = (dict(layer.sizes) if layer and added(file, path) else {}) | whole
            first, others = seen.setdefault(path, (name, shape))
            if shape != others:
                problems.append(f"{path}: {shape} in {name}, {others} in {first}")
    return problems
