"""An adapter out of a checkpoint that was fine-tuned, and its base: what was learned, apart from the model.

    B A = the best approximation of W' - W of rank r;   a norm, a bias or whatever else differs is kept whole

The two are read tensor by tensor, so that no more than the largest is in memory. The residual |W' - W - B A| of each is looked
at, not estimated. Source: LoRD, as in mergekit's extract_lora; randomised decomposition by Halko, Martinsson, Tropp 2011.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from inlay.combine.combine import Combined, Module, as_module, as_params, plain
from inlay.combine.contract import Made
from inlay.combine.entries import approximated
from inlay.errors import CompatibilityError, explain, few
from inlay.formats.contract import AdapterFile, Layer, ModelFacts
from inlay.io.checkpoint import Checkpoint
from inlay.io.safetensors import read_tensor
from inlay.methods.contract import Params
from inlay.methods.lora import Lora

MAPS = ("linear", "embedding")
"""The kinds of layers whose change becomes a product of factors."""


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    names: Mapping[str, Sequence[tuple[str, str]]],
    model: ModelFacts,
    r: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Combined:
    """The adapter that makes `tuned` of `base`, as near as rank r allows.

    **Arguments:**

    - `names`: tensor of the checkpoint -> the modules that hold it, by path, and what each calls it: a change of embeddings
      that are the head too becomes one of either.
    - `model`: what its layers are.

    **Raises:**

    - `CompatibilityError`: they hold other tensors, in other shapes, or do not differ at all.
    """
    _check_alike(base, tuned)
    params, modules, saved, biases = dict[str, Params](), dict[str, Module](), dict[str, None](), False
    for name, change in _changes(base, tuned, names, progress):
        for path, key in names[name]:
            layer = model.layers[path]
            if key == "weight" and layer.kind in MAPS:
                made = _factors(change, layer, r)
                params[path], modules[path] = as_params(made) | params.get(path, {}), as_module(made)
            elif key == "bias":
                biases = True
            else:
                saved[path] = None
    for name, path, key in ((name, *place) for name, places in names.items() for place in places):
        if path in saved or (biases and key == "bias"):  # a module is saved with all that it has, biases are kept all
            params.setdefault(path, {})[key] = read_tensor(tuned.tensors[name])
    _check_found(modules, base, tuned)
    method = Lora(target_modules=tuple(modules), modules_to_save=tuple(saved), bias="all" if biases else "none")
    source = AdapterFile(method=method, params=params, model=model)
    record = {"combined": {"how": "extracted", "r": r, "of": [{"name": tuned.directory.name}]}}
    return Combined(plain([source], params, {path: module.r for path, module in modules.items()}, record), modules)


def _check_found(modules: Mapping[str, Module], base: Checkpoint, tuned: Checkpoint) -> None:
    if not modules:
        wrong, found = "these two checkpoints do not differ in any linear layer", f"{base.directory}, {tuned.directory}"
        raise CompatibilityError(explain(wrong, found=found, do="the base first, then what was made of it"))


def _factors(change: Tensor, layer: Layer, r: int) -> Made:
    """The best ones of rank r, of a change that lies as the layer's weight does."""
    mapped = change.T if next(iter(layer.sizes)) == "in" else change
    return approximated(mapped.contiguous(), r, torch.Generator().manual_seed(0))


def _changes(
    base: Checkpoint,
    tuned: Checkpoint,
    names: Mapping[str, Sequence[tuple[str, str]]],
    progress: Callable[[int, int], None],
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that differ, by name: what was added to each."""
    for number, (name, entry) in enumerate(base.tensors.items()):
        progress(number, len(base.tensors))
        before, after = read_tensor(entry).float(), read_tensor(tuned.tensors[name]).float()
        if torch.equal(before, after):
            continue
        if name not in names:
            raise _unlike([f"{name}: differs, and no layer of the model holds it"])
        yield name, after - before


def _check_alike(base: Checkpoint, tuned: Checkpoint) -> None:
    problems = [f"{name}: only in {base.name}" for name in base.tensors.keys() - tuned.tensors.keys()]
    problems += [f"{name}: only in {tuned.name}" for name in tuned.tensors.keys() - base.tensors.keys()]
    shapes = {
        name: (base.tensors[name].shape, tuned.tensors[name].shape) for name in base.tensors.keys() & tuned.tensors
    }
    problems += [f"{name}: {one} and {other}" for name, (one, other) in shapes.items() if one != other]
    if problems:
        raise _unlike(sorted(problems))


def _unlike(problems: list[str]) -> CompatibilityError:
    do = "the base that it was made of; of a vocabulary that grew, the base with the same added tokens"
    return CompatibilityError(explain("one of these checkpoints was not made of the other", found=few(problems), do=do))
