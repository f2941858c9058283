"""An adapter's tensors on the layers of a model: which replace what the layer holds, and whether they change anything there."""

import dataclasses
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from inlay import formats
from inlay.errors import CompatibilityError, explain, few
from inlay.formats.contract import AdapterFile, Layer, ModelFacts
from inlay.layout import targets
from inlay.layout.layout import Layout
from inlay.methods import hooks
from inlay.methods.contract import LinearMethod, by_kind
from inlay.modules import trial
from inlay.modules.linear import Linear
from inlay.names import is_regex, split


def layers(layout: Layout) -> dict[str, Layer]:
    """What every module of the model is, and every parameter that holds several maps, by path."""
    maps = {path: Layer(linear.kind, linear.sizes) for path, linear in layout.maps.items()}
    return dict.fromkeys(layout.modules, Layer()) | maps


def fitted(
    name: str, file: AdapterFile, layout: Layout, facts: ModelFacts, *, heads: Sequence[str], title: str
) -> AdapterFile:
    """An adapter's file as it applies to a model, whose layers it fits; of an outline, the shapes alone tell.

    **Arguments:**

    - `heads`: the usual names of the heads of the model's task.
    - `title`: what the model is called in a message.

    **Raises:**

    - `CompatibilityError`: a tensor has no layer, or another shape, or a weight of the base in the file is another one here.
    """
    file = _without_unknown_heads(formats.placed(file, facts), layout, heads)
    problems = layout.problems(file.method, file.params) + [
        f"{path}: the file brings a weight of its own, and it is not this base's"
        for path, weight in file.base_weights.items()
        if path not in layout.maps or not _is_same(weight, layout.maps[path].stored)
    ]
    if not problems:  # what all layers share is known where it is known which they are
        file, problems = _with_shared(file, layout)
    if problems:
        ends = (layout.table, layout.head)
        resized = any(f"{end}.weight: shape" in problem for problem in problems for end in ends)
        what = ", with its vocabulary resized and saved with the tokenizer" if resized else ""
        hint = f"use the base it was trained on{what}: inlay inspect names it"
        raise CompatibilityError(explain(f"{name} does not fit {title}", found=few(problems), do=hint))
    return file


def _with_shared(file: AdapterFile, layout: Layout) -> tuple[AdapterFile, list[str]]:
    """(`file` with the tensors that all layers share, drawn again where it lacks them; how they don't fit these layers)."""
    method = file.method
    if not isinstance(method, hooks.Shares):
        return file, []
    paths = [path for path in layout.paths(method, strict=False) if path in file.params]
    drawn = hooks.shared(method, [layout.maps[path].one for path in paths])
    shared = {**drawn, **file.shared}
    problems = [
        f"{key}: shape {tuple(shared[key].shape)}, here {tuple(tensor.shape)}"
        for key, tensor in drawn.items()
        if shared[key].dim() != tensor.dim() or any(a < b for a, b in zip(shared[key].shape, tensor.shape, strict=True))
    ]
    for path in paths if not problems else ():
        seen, wanted = (hooks.share(method, tensors, layout.maps[path].one) for tensors in (shared, drawn))
        problems += [
            f"{path}.{key}: shape {tuple(seen[key].shape)}, here {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if seen[key].shape != tensor.shape
        ]
    return dataclasses.replace(file, shared=shared), problems


def _without_unknown_heads(file: AdapterFile, layout: Layout, heads: Sequence[str]) -> AdapterFile:
    """`file` without those names of heads that this model does not have: `peft` writes the usual ones into every file."""
    names = file.method.modules_to_save
    if not heads or not names or is_regex(names):
        return file
    last = {path.rpartition(".")[2] for path in layout.modules}
    kept = tuple(name for name in split(names) if name not in heads or name in last)
    return dataclasses.replace(file, method=dataclasses.replace(file.method, modules_to_save=kept))


def _is_same(weight: Tensor, stored: Tensor) -> bool:
    """The numbers of two tensors are equal; of one without numbers, as in an outline, the shape."""
    return weight.shape == stored.shape and (weight.is_meta or torch.equal(weight.float(), stored.float()))


def check_heard(name: str, file: AdapterFile, layout: Layout) -> None:
    """Say which layers of an adapter's file this model never calls; refuse a change of those whose weight it reads.

    **Raises:**

    - `CompatibilityError`: what the file has for such a layer would change its weight, and the model would not see it.
    """
    idle = {path: why for path in file.params if (why := layout.unused.get(path, trial.NO_EFFECT)) != trial.NO_EFFECT}
    idle = {path: why for path, why in idle.items() if path in layout.maps}
    wrong = [path for path, why in idle.items() if why == trial.READ and _changes(file, path, layout)]
    if wrong:
        raise CompatibilityError(
            explain(
                f"{name} changes layers that this model would not let it change",
                found=few(targets.reasons({path: idle[path] for path in wrong})),
                do="train it again without them, or with --method full",
            )
        )
    idle = {
        path: why for path, why in idle.items() if all(other in layout.unused for other in layout.tied.get(path, ()))
    }
    if idle:  # of a shared weight one name is never called, and the others are
        warnings.warn(
            f"{name} has tensors that change nothing: {'; '.join(targets.reasons(idle))}",
            stacklevel=5,
        )


def _changes(file: AdapterFile, path: str, layout: Layout) -> bool:
    """The weight at `path` would be another one with the adapter's change."""
    return by_kind(
        hooks.for_module(file.method, path),
        maps=lambda method: _moves(method, file, path, layout.maps[path]),
        blocks=lambda _: False,
        front=lambda _: False,
        none=False,
    )


def _moves(method: LinearMethod, file: AdapterFile, path: str, linear: Linear) -> bool:
    """What the method adds to this map is not nothing."""
    added = set(file.params[path]) & set(method.shapes(linear.one))
    params = {**hooks.share(method, file.shared, linear.one), **{key: file.params[path][key] for key in added}}
    weight = linear.weight(torch.float32).cpu()
    return bool(added) and not torch.equal(method.merge(params, weight, None)[0], weight)
