"""What the commands that take --task share."""

from collections.abc import Sequence

from inlay.base.base import Base
from inlay.base.purpose import CAUSAL_LM, Purpose, has_own_head
from inlay.errors import ConfigError, explain
from inlay.io.checkpoint import open_checkpoint
from inlay.training import tasks

MAX_LABELS = 10
"""As many classes are named on the screen."""


def purpose(model: str, task: str, data: str, adapter: str | None = None) -> Purpose:
    """What a base is loaded for: its classes are its checkpoint's own, those of the adapter, or those of the data."""
    found = tasks.find(task)
    if not found.heads or has_own_head(open_checkpoint(model), found.purpose()):
        return tasks.purpose(model, task)
    labels = tasks.about(adapter)[1] if adapter else ()
    return tasks.purpose(model, task, labels or found.labels(found.read(data).rows))


def purpose_of(model: str, task: str | None, adapter: str | None) -> Purpose:
    """What a base is loaded for where there are no rows with classes: by the adapter, the flag, or the base's own files.

    **Raises:**

    - `ConfigError`: the task has classes, and neither the adapter nor the base has a head for them.
    """
    if adapter is not None:
        found = tasks.of_adapter(model, adapter)
        if task not in (None, found.task):
            says = f"--task {task}, but {adapter} was trained for {found.task}"
            raise ConfigError(explain("this adapter is for another task", found=says, do="leave --task out"))
        return found
    name = task or tasks.of_checkpoint(model) or CAUSAL_LM
    wanted = tasks.find(name)
    if wanted.heads and not has_own_head(open_checkpoint(model), wanted.purpose()):
        raise ConfigError(
            explain(
                f"{model} has no head of its own for {name}, so that it knows no classes",
                found="no --adapter",
                do="--adapter DIR, one that inlay train --task made",
            )
        )
    return tasks.purpose(model, name)


def guess(model: str, adapter: str | None) -> str:
    """The task of an adapter, or else of a base; next tokens where neither says it."""
    return tasks.about(adapter)[0] if adapter is not None else tasks.of_checkpoint(model) or CAUSAL_LM


def check_answers(command: str, model: str, adapters: Sequence[str]) -> None:
    """Refuse adapters and bases of other tasks where prompts are to be continued.

    **Raises:**

    - `ConfigError`: one is for another task; the hint is the command that is for it.
    """
    chosen = [adapter for adapter in adapters if adapter != "none"]
    found = next(((adapter, name) for adapter in chosen if (name := tasks.about(adapter)[0]) != CAUSAL_LM), None)
    if found is None and not chosen and (name := tasks.of_checkpoint(model)) not in (None, CAUSAL_LM):
        found = (model, name)
    if found is not None:
        more = "" if found[0] == model else f" --adapter {found[0]}"
        raise ConfigError(
            explain(
                f"{found[0]} answers no prompts: it was made for another task",
                found=f"{found[1]}; inlay {command} continues text",
                do=f"inlay predict {model} rows.jsonl{more}",
            )
        )


def check_causal(task: str, flag: str) -> None:
    """Refuse a flag that means something for causal language models alone.

    **Raises:**

    - `ConfigError`: the task is another.
    """
    if task != CAUSAL_LM:
        raise ConfigError(
            explain("this flag does nothing for this task", found=f"{flag} with --task {task}", do="leave it out")
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
