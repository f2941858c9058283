"""What a merged checkpoint will hold: each tensor, where its bytes come from, and which of the adapter's modules it belongs to.

Nothing here reads a weight: what can't be merged into the files of this base is refused before anything is written.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch

from inlay.base.base import Base
from inlay.errors import CompatibilityError, explain, few
from inlay.export import ties
from inlay.io import bitsandbytes
from inlay.io.safetensors import TORCH_DTYPES, TensorEntry
from inlay.layout import stored
from inlay.model.adapter import Adapter
from inlay.model.changes import TokenRows, adds, replaced
from inlay.modules.linear import Linear, Part
from inlay.names import is_inside
from inlay.quant.contract import Matrix

_MERGEABLE = ("F32", "BF16", "F16", "F64")
"""The dtypes of files that a change can be rounded to."""


class Planned(NamedTuple):
    """A tensor of the merged checkpoint."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    path: str | None
    """The module whose merged weight or bias it is; None: what the base has."""
    entry: TensorEntry | None
    """Where the base has it; None: quantised, or fresh."""
    part: Part | None = None
    """What it holds of the path's weight, where it does not hold all."""
    is_fresh: bool = False
    """It is of a head that the base does not have."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


_From = tuple[str, Part | None]
"""The path of what a tensor holds, and which part of that."""


def planned(base: Base, adapter: Adapter) -> dict[str, Planned]:
    """The tensors of the merged checkpoint, by name: the base's own, quantised weights as the numbers that they stand for.

    **Raises:**

    - `CompatibilityError`: the checkpoint has an adapted weight under another name, or in another form.
    """
    packed = bitsandbytes.quantized_weights(base.checkpoint)
    plain = bitsandbytes.plain_tensors(base.checkpoint, packed)
    prefix, made, names = getattr(base.model, "base_model_prefix", ""), dict[str, Planned](), dict[str, _From]()
    for path, linear in base.linears.items():
        name = stored.checkpoint_path(path, prefix, packed)
        if name is not None:
            file, shape = packed[name][1][""].file.name, tuple(linear.sizes.values())
            made[f"{name}.weight"] = Planned(file, matrix_of(base, path).dtype, shape, path, None)
            if adapter.at(path):
                names[f"{name}.bias"] = (path, None)
    changed, problems = _changed_names(base, adapter, prefix, packed, plain)
    if problems:
        raise CompatibilityError(
            explain(
                "this adapter can't be merged into the files of this base",
                found=few(problems),
                do="keep the adapter apart: --adapter works with every command",
            )
        )
    names |= changed
    for name, entry in plain.items():
        path, part = names.get(name, (None, None))
        made[name] = Planned(entry.file.name, TORCH_DTYPES[entry.dtype], entry.shape, path, entry, part)
    made |= _fresh_tensors(base, prefix, made)
    if ties.unties(base, adapter):
        source = made[next(name for name, path in ties.table_names(base, prefix, plain).items() if name in made)]
        head = base.head if base.head and adapter.at(base.head) else None
        made[f"{base.head}.weight"] = source._replace(path=head)
    return made


def _changed_names(
    base: Base, adapter: Adapter, prefix: str, packed: Collection[str], plain: Mapping[str, TensorEntry]
) -> tuple[dict[str, _From], list[str]]:
    """The plain tensors that the adapter changes, by their name in the checkpoint, and what is in the way."""
    names, problems = dict[str, _From](), list[str]()
    for path, tensor in _changed(base, adapter):
        if is_inside(path, base.fresh_heads) or stored.checkpoint_path(path, prefix, packed) is not None:
            continue
        known = lambda name: stored.checkpoint_path(name, prefix, plain)  # noqa: E731
        is_weight = path in base.maps and tensor == "weight"
        own = f"{path}.{tensor}"
        parts = base.maps[path].stored_as(path, known) if is_weight else {known(own): None}
        found = {name: part for name, part in parts.items() if name is not None}
        if not found and ties.is_alias(adapter, path):
            continue  # it is written where the checkpoint has it, under the name of the module that it is shared with
        problem = _problem(base, path, tensor, {plain[name]: part for name, part in found.items()})
        if problem:
            problems.append(problem)
        else:
            names |= {name: (path, part) for name, part in found.items()}
    return names, problems


def _fresh_tensors(base: Base, prefix: str, made: dict[str, Planned]) -> dict[str, Planned]:
    """The tensors of the heads that the base lacks, under the names of the model, or of another head that they replace."""
    fresh = {}
    for path in (path for path in base.layout.modules if is_inside(path, base.fresh_heads)):
        own = base.layout.modules[path]._parameters  # as the base has it: an adapter may stand around it now
        for kind, shape in ((kind, tuple(tensor.shape)) for kind, tensor in own.items() if tensor is not None):
            name = stored.checkpoint_path(f"{path}.{kind}", prefix, made) or f"{path}.{kind}"
            file = made[name].file if name in made else base.checkpoint.files[-1].name
            fresh[name] = Planned(file, base.checkpoint.dtype, shape, path, None, is_fresh=True)
    return fresh


def _changed(base: Base, adapter: Adapter) -> list[tuple[str, str]]:
    """The tensors of the model that the adapter changes, as (module path, name)."""
    found = []
    for path, changes in adapter.bound.items():
        names = set(replaced(changes)) | ({"weight", "bias"} if adds(changes) else set())
        names |= {"weight"} if any(isinstance(change, TokenRows) for change in changes) else set()
        own = base.layout.modules[base.layout.module_of(path)]._parameters
        found += [(path, name) for name in names if own.get(name) is not None or name == "weight"]
    return found


def matrix_of(base: Base, path: str) -> Matrix:
    """The quantised weight of a module."""
    matrix = base.linears[path].matrix
    assert isinstance(matrix, Matrix), "what has no plain tensor in the checkpoint is quantised"
    return matrix


def _problem(base: Base, path: str, tensor: str, entries: Mapping[TensorEntry, Part | None]) -> str:
    """Why a tensor of an adapted module can't be merged where the checkpoint has it; empty where it can."""
    linear = base.maps.get(path)
    name = path if linear is not None and linear.name else f"{path}.{tensor}"  # a parameter is the tensor itself
    if not entries and path == base.head and ties.table_of(base) is not None and tensor == "weight":
        return ""  # it is written apart from the embeddings
    if not entries:
        return f"{name}: {linear.not_found if linear else Linear.not_found}"
    if linear is not None and tensor == "weight":
        stored = tuple(linear.sizes.values())
    else:
        stored = tuple(getattr(base.layout.modules[path], tensor).shape)
    for entry, part in entries.items():
        if (part is None and entry.shape != stored) or entry.dtype not in _MERGEABLE:
            return f"{name}: {entry.dtype} of shape {entry.shape} in the checkpoint, here {stored}"
    return ""
