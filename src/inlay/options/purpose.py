"""What a base is loaded for: by the flag --task, by the adapter, or by the base's own files."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from inlay import formats, tasks
from inlay.base.base import Base
from inlay.data.sources import Data
from inlay.errors import ConfigError, explain
from inlay.gguf.opening import open_base
from inlay.io.checkpoint import Checkpoint
from inlay.options.types import found_in
from inlay.tasks.contract import DEFAULT_TASK, TaskSpec

TASK = Annotated[str | None, found_in(tasks.TABLE)]
"""A flag that takes the name of a task, or is not given."""

MAX_LABELS = 10
"""As many classes are named on the screen."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a base is loaded from and for, and what had to be read to know it."""

    checkpoint: Checkpoint
    spec: TaskSpec
    labels: tuple[str, ...] = ()
    """The names of the classes, where the task has classes and the checkpoint brings none."""
    data: Data[Any] | None = None
    """The rows, where the classes are theirs."""


def choose(spec: TaskSpec, checkpoint: Checkpoint, data: str, adapter: str | None = None) -> Chosen:
    """What a base is loaded for where there are rows: its classes are its checkpoint's own, those of the adapter, or those of
    the rows."""
    if spec.classes is None or tasks.has_own_head(checkpoint, spec):
        return Chosen(checkpoint, spec)
    if adapter and (labels := tasks.of_adapter(adapter)[1]):
        return Chosen(checkpoint, spec, labels)
    read = spec.read(data)
    return Chosen(checkpoint, spec, spec.classes(read.rows), read)


def choose_alone(model: str, task: str | None, adapter: str | None) -> Chosen:
    """What a base is loaded for where there are no rows with classes: by the adapter, the flag, or the base's own files.

    **Raises:**

    - `ConfigError`: the task has classes, and neither the adapter nor the base has a head for them.
    """
    checkpoint = open_base(model)
    if adapter is not None:
        return _chosen_by(adapter, checkpoint, task)
    spec = tasks.find(task or guess(checkpoint, None))
    if spec.heads and not tasks.has_own_head(checkpoint, spec):
        wrong = f"{model} has no head of its own for {spec.name}, so that it knows no classes"
        raise ConfigError(explain(wrong, found="no --adapter", do="--adapter DIR, one that inlay train --task made"))
    return Chosen(checkpoint, spec)


def _chosen_by(adapter: str, checkpoint: Checkpoint, task: str | None) -> Chosen:
    spec, labels = tasks.for_adapter(checkpoint, formats.outline(adapter))
    if task not in (None, spec.name):
        says = f"--task {task}, but {adapter} was trained for {spec.name}"
        raise ConfigError(explain("this adapter is for another task", found=says, do="leave --task out"))
    return Chosen(checkpoint, spec, labels)


def guess(checkpoint: Checkpoint, adapter: str | None) -> str:
    """The task of an adapter, or else of a base; next tokens where neither says it."""
    return tasks.of_adapter(adapter)[0] if adapter is not None else tasks.of_checkpoint(checkpoint) or DEFAULT_TASK


def check_answers(command: str, model: str, adapters: Sequence[str]) -> None:
    """Refuse adapters and bases of other tasks where prompts are to be continued.

    **Raises:**

    - `ConfigError`: one is for another task; the hint is the command that is for it.
    """
    chosen = [adapter for adapter in adapters if adapter != "none"]
    found = next(
        ((adapter, name) for adapter in chosen if (name := tasks.of_adapter(adapter)[0]) != DEFAULT_TASK), None
    )
    if found is None and not chosen and (name := tasks.of_checkpoint(open_base(model))) not in (None, DEFAULT_TASK):
        found = (model, name)
    if found is not None:
        (name, task), more = found, "" if found[0] == model else f" --adapter {found[0]}"
        wrong, task = (
            f"{name} answers no prompts: it was made for another task",
            f"{task}; inlay {command} continues text",
        )
        raise ConfigError(explain(wrong, found=task, do=f"inlay predict {model} rows.jsonl{more}"))


def check_continues(spec: TaskSpec, flag: str) -> None:
    """Refuse a flag that means something for tasks alone whose text continues the prompt.

    **Raises:**

    - `ConfigError`: the task is another.
    """
    if not spec.continues:
        raise ConfigError(
            explain("this flag does nothing for this task", found=f"{flag} with --task {spec.name}", do="leave it out")
        )


def describe(base: Base) -> str:
    """The task of a base in one line."""
    more = "" if len(base.labels) <= MAX_LABELS else " ..."
    classes = f" · {len(base.labels)} classes: {', '.join(base.labels[:MAX_LABELS])}{more}" if base.labels else ""
    fresh = f" · {', '.join(base.fresh_heads)} starts fresh" if base.fresh_heads else ""
    return f"{base.task}{classes}{fresh}"


def in_words(scores: dict[str, float]) -> str:
    """Scores for the screen."""
    return " · ".join(
        f"{name} {value:.2f}" if name == "bleu" else f"{name} {value:.3f}" for name, value in scores.items()
    )
