"""What a base is loaded for: which of `transformers`' models it becomes, and which modules of it are its head.

A head is what stands between the body of a model and the answers of a task: `score`, `classifier`. A checkpoint that was not
made for the task does not hold it; it then starts fresh, is trained whole and kept with the adapter.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.base.pooling import MEAN
from inlay.errors import CompatibilityError, ConfigError, explain
from inlay.io.checkpoint import Checkpoint
from inlay.io.configuration import read as read_configuration
from inlay.methods.contract import LinearMethod, Method, Params, PromptMethod
from inlay.names import is_inside, is_regex, joined, split

CAUSAL_LM = "causal-lm"
"""The task that a base is loaded for unless another is asked for."""

INITIALIZER_RANGE = 0.02
"""Standard deviation of a fresh head's weights where the model's configuration names none: that of BERT and GPT-2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Purpose:
    """A task in the words of `transformers` and of the exchange format."""

    task: str = CAUSAL_LM
    auto_class: str = "AutoModelForCausalLM"
    """The class of `transformers` that makes the model."""
    task_type: str = "CAUSAL_LM"
    """What the exchange format calls such a model."""
    heads: tuple[str, ...] = ()
    """Names of modules that are trained whole, wherever the model has them."""
    beside: tuple[str, ...] = ()
    """Names of modules that a checkpoint may lack; they are trained whole where it does."""
    unused: tuple[str, ...] = ()
    """Names of modules at the top of the model that the task has no use for; they are taken away."""
    labels: tuple[str, ...] = ()
    """The names of the classes, where the task has classes and the checkpoint has no head of its own."""


def configuration(checkpoint: Checkpoint, purpose: Purpose) -> Any:
    """The model's configuration, with the classes of the task where the checkpoint brings none.

    **Raises:**

    - `CompatibilityError`: `transformers` does not know the architecture.
    """
    config = read_configuration(checkpoint.directory)
    if purpose.labels and not has_own_head(checkpoint, purpose):
        config.id2label = dict(enumerate(purpose.labels))
        config.label2id = {label: number for number, label in enumerate(purpose.labels)}
    return config


def has_own_head(checkpoint: Checkpoint, purpose: Purpose) -> bool:
    """The checkpoint was saved from a model of this kind, head and all."""
    made = checkpoint.config.get("architectures") or [""]
    kind = purpose.auto_class.removeprefix("AutoModel")
    return str(made[0]).endswith(kind) and any(_outermost(name, purpose.heads) for name in checkpoint.tensors)


def heads_of(
    model: torch.nn.Module, missing: Iterable[str], purpose: Purpose, is_own: bool
) -> tuple[list[str], list[str]]:
    """(the paths of the modules that are trained whole, those of them that start fresh).

    **Arguments:**

    - `missing`: the tensors of the model that its checkpoint does not hold.
    - `is_own`: the checkpoint has a head of this kind.
    """
    paths = [path for path, _ in model.named_modules() if path]
    heads = {path for path in paths if _outermost(path, purpose.heads) == path}
    names = (*purpose.heads, *purpose.beside)
    lacking = {found for name in missing if (found := _outermost(name, names))}
    fresh = [path for path in paths if path in lacking or (path in heads and not is_own)]
    return [path for path in paths if path in heads or path in fresh], fresh


def is_head(name: str, purpose: Purpose) -> bool:
    """A checkpoint may lack the tensor of this name: it belongs to the task's head, or to nothing that the task uses."""
    return _outermost(name, (*purpose.heads, *purpose.beside, *purpose.unused)) is not None


def with_heads(method: Method, heads: list[str], maps: Iterable[str]) -> Method:
    """`method` such that it trains these modules whole and adds nothing to the maps inside them."""
    if not heads:
        return method
    changes: dict[str, Any] = {"modules_to_save": joined(method.modules_to_save, heads)}
    if isinstance(method, LinearMethod):
        inside = [path for path in maps if is_inside(path, heads)]
        changes["exclude_modules"] = joined(method.exclude_modules, inside)
    return dataclasses.replace(method, **changes)


def without_unknown_heads(method: Method, paths: Iterable[str], purpose: Purpose) -> Method:
    """`method` without those names of heads that this model does not have: `peft` writes the usual ones into every file."""
    names = method.modules_to_save
    if not purpose.heads or not names or is_regex(names):
        return method
    last = {path.rpartition(".")[2] for path in paths}
    kept = tuple(name for name in split(names) if name not in purpose.heads or name in last)
    return dataclasses.replace(method, modules_to_save=kept)


@torch.no_grad()
def draw_(params: dict[str, Params], fresh: Sequence[str], config: Any, seed: int) -> None:
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


def check_method(method: Method, purpose: Purpose) -> None:
    """Refuse virtual tokens outside causal language models: nothing there takes them out of the rows again.

    **Raises:**

    - `ConfigError`: the method puts virtual tokens in front of the rows.
    """
    if isinstance(method, PromptMethod) and purpose.task != CAUSAL_LM:
        raise ConfigError(
            explain(
                "this task has no place for virtual tokens",
                found=f"{type(method).__name__} with task {purpose.task}",
                do="--method lora",
            )
        )


def check_generates(purpose: Purpose) -> None:
    """Refuse to continue prompts with a base that was loaded for something else.

    **Raises:**

    - `ConfigError`: it was.
    """
    if purpose.task != CAUSAL_LM:
        found = f"this base was loaded for {purpose.task}"
        raise ConfigError(
            explain(
                "this base can't continue prompts",
                found=found,
                do="base.predict(rows); inlay.load(MODEL) without task= continues prompts",
            )
        )


def check_task(name: str, record: dict[str, Any], purpose: Purpose, labels: tuple[str, ...]) -> None:
    """Refuse an adapter whose record says that it was trained for another task, or for other classes.

    **Raises:**

    - `CompatibilityError`: it does.
    """
    about = record.get("task") or {}
    theirs, classes = about.get("name", purpose.task), tuple(about.get("labels") or labels)
    if theirs != purpose.task:
        raise CompatibilityError(
            explain(
                f"{name} was trained for another task",
                found=f"{theirs}; this base was loaded for {purpose.task}",
                do=f'--task {theirs} where the command has it, or inlay.load(MODEL, task="{theirs}")',
            )
        )
    if classes != labels:
        raise CompatibilityError(
            explain(
                f"{name} was trained for other classes",
                found=f"{', '.join(classes)}; this base has {', '.join(labels)}",
                do=f"inlay.load(MODEL, task={theirs!r}, labels={list(classes)!r})",
            )
        )


def check_pooling(name: str, record: dict[str, Any], pooling: str) -> None:
    """Refuse an adapter whose record says that its vectors were made in another way than this base makes them.

    **Raises:**

    - `CompatibilityError`: it does.
    """
    theirs = (record.get("task") or {}).get("pooling", MEAN)
    if theirs != pooling:
        raise CompatibilityError(
            explain(
                f"{name} was trained with another pooling",
                found=f"{theirs}; this base has {pooling}",
                do="the base that it was trained on, with the same modules.json, or train it again",
            )
        )


def _outermost(path: str, names: tuple[str, ...]) -> str | None:
    """The shortest beginning of a dotted path whose last component is one of `names`."""
    parts = path.split(".")
    return next((".".join(parts[: i + 1]) for i, part in enumerate(parts) if part in names), None)
