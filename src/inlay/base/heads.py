"""The heads of a task: which modules of a model they are, and what a checkpoint that lacks them starts with.

A head is what stands between the body of a model and the answers of a task: `score`, `classifier`. A checkpoint that was not
made for the task does not hold it; it then starts fresh, is trained whole and kept with the adapter.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.io.checkpoint import Checkpoint
from inlay.io.configuration import read as read_configuration
from inlay.methods.contract import Method, Params, with_names
from inlay.names import is_inside
from inlay.tasks.contract import TaskSpec

INITIALIZER_RANGE = 0.02
"""Standard deviation of a fresh head's weights where the model's configuration names none: that of BERT and GPT-2."""


def configuration(checkpoint: Checkpoint, labels: Sequence[str]) -> Any:
    """The model's configuration, with these names of classes, if there are any.

    **Raises:**

    - `CompatibilityError`: `transformers` does not know the architecture.
    """
    config = read_configuration(checkpoint.directory)
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    return config


def labels_of(config: Any) -> tuple[str, ...]:
    """The names of the classes, by number, that a model's configuration has."""
    return tuple(config.id2label[i] for i in range(config.num_labels))


def heads_of(
    model: torch.nn.Module, missing: Iterable[str], spec: TaskSpec, is_own: bool
) -> tuple[list[str], list[str]]:
    """(the paths of the modules that are trained whole, those of them that start fresh).

    **Arguments:**

    - `missing`: the tensors of the model that its checkpoint does not hold.
    - `is_own`: the checkpoint has a head of this kind.
    """
    paths = [path for path, _ in model.named_modules() if path]
    heads = {path for path in paths if _outermost(path, spec.heads) == path}
    names = (*spec.heads, *spec.optional_heads)
    lacking = {found for name in missing if (found := _outermost(name, names))}
    fresh = [path for path in paths if path in lacking or (path in heads and not is_own)]
    return [path for path in paths if path in heads or path in fresh], fresh


def is_head(name: str, spec: TaskSpec) -> bool:
    """A checkpoint may lack the tensor of this name: it belongs to the task's head, or to nothing that the task uses."""
    return _outermost(name, (*spec.heads, *spec.optional_heads, *spec.dropped_modules)) is not None


def with_heads(method: Method, heads: list[str], maps: Iterable[str]) -> Method:
    """`method` such that it trains these modules whole and adds nothing to the maps inside them."""
    if not heads:
        return method
    inside = [path for path in maps if is_inside(path, heads)]
    return with_names(method, modules_to_save=heads, exclude_modules=inside)


@torch.no_grad()
def draw_(params: Mapping[str, Params], fresh: Sequence[str], config: Any, seed: int) -> None:
    """Fill the tensors of fresh heads: weights from a normal distribution, drawn from `seed` alone, offsets with 0."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(config.get_text_config(), "initializer_range", None) or INITIALIZER_RANGE
    for path, tensors in params.items():
        if is_inside(path, fresh):
            for name, tensor in sorted(tensors.items()):
                _draw_(name, tensor, std, generator)


def _draw_(name: str, tensor: Tensor, std: float, generator: torch.Generator) -> None:
    if tensor.dim() > 1:
        tensor.copy_(std * torch.randn(tensor.shape, generator=generator))
    elif name == "bias":
        tensor.zero_()  # the factors of a norm stay what they are: 1


def _outermost(path: str, names: tuple[str, ...]) -> str | None:
    """The shortest beginning of a dotted path whose last component is one of `names`."""
    parts = path.split(".")
    return next((".".join(parts[: i + 1]) for i, part in enumerate(parts) if part in names), None)
