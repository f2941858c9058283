"""Parameters that hold several maps each, as fused layers of mixtures do: the change of each map out of a file, and back.

    A (maps r, in) has the maps one after the other, B (out, r maps) has them within each rank: PEFT's form

Each map is combined by itself, at a rank that all of them share. Which of its places is which parameter's is not said by a file
alone, but by the model: files of the same parameters go together.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from inlay.combine.contract import Made
from inlay.core.routed import Factors
from inlay.formats.contract import AdapterFile
from inlay.methods import hooks
from inlay.methods.lora import Lora
from inlay.names import is_named

WRAPPER = ".base_layer"
"""What PEFT adds to the place of a parameter for each that it wraps later."""


def num_maps(file: AdapterFile, path: str) -> int:
    """How many maps the tensors at a path of the file change; 1 where they are a module's."""
    modules = {name.rpartition(".")[0] for name in file.parameters}
    if not any(is_named(module, path.replace(WRAPPER, "")) for module in modules) or "lora_A" not in file.params[path]:
        return 1
    return len(file.params[path]["lora_A"]) // _rank(file)


def problem(file: AdapterFile) -> str | None:
    """Why the parameters of several maps that a file changes can't be taken apart; None where they can, or it has none."""
    if not file.parameters:
        return None
    if not isinstance(file.method, Lora):
        return "parameters of several maps by another method than LoRA"
    places = [path for path in file.params if num_maps(file, path) > 1]
    if any(hooks.for_module(file.method, path) != file.method for path in (*places, *file.parameters)):
        return "parameters of several maps with ranks of their own"
    sizes = [
        (tensors["lora_A"].shape[0], tensors["lora_B"].shape[1]) for tensors in map(file.params.get, places) if tensors
    ]
    if any(rows != columns or rows % file.method.r for rows, columns in sizes):
        return f"parameters of several maps that are not all of rank {file.method.r}"
    return None


def apart(factors: Factors, count: int) -> list[Factors]:
    """The change of each of so many maps."""
    if count == 1:
        return [factors]
    A, B = factors.A.unflatten(0, (count, -1)), factors.B.unflatten(1, (-1, count))
    return [Factors(A[i], B[:, :, i], factors.scaling) for i in range(count)]


def together(each: Sequence[Made]) -> Made:
    """The changes of maps as a file has them, of one rank: a smaller one is filled up with zeros."""
    if len(each) == 1:
        return each[0]
    r = max(len(made.A) for made in each)
    A = torch.cat([functional.pad(made.A, (0, 0, 0, r - len(made.A))) for made in each])
    B = torch.stack([functional.pad(made.B, (0, r - len(made.A))) for made in each], 2).flatten(1)  # (out, r maps)
    return Made(A, B, sum(made.square_norm for made in each), sum(made.square_error for made in each))


def _rank(file: AdapterFile) -> int:
    return file.method.r if isinstance(file.method, Lora) else 1
