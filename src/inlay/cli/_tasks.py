"""What the commands that take --task share."""

from inlay.errors import ConfigError, explain
from inlay.io.checkpoint import open_checkpoint
from inlay.model.base import Base
from inlay.model.purpose import CAUSAL_LM, Purpose, has_own_head
from inlay.training import tasks

MAX_LABELS = 10
"""As many classes are named on the screen."""


def purpose(model: str, task: str, data: str, adapter: str | None = None) -> Purpose:
    """What a base is loaded for: its classes are its checkpoint's own, those of the adapter, or those of the data."""
    found = tasks.find(task)
    if not found.heads or has_own_head(open_checkpoint(model), found.purpose()):
        return tasks.purpose(model, task)
    labels = tasks.labels_of(adapter) if adapter else ()
    return tasks.purpose(model, task, labels or found.labels(found.read(data).rows))


def check_causal(task: str, flag: str) -> None:
    """Refuse a flag that means something for causal language models alone.

    **Raises:**

    - `ConfigError`: the task is another.
    """
    if task != CAUSAL_LM:
        raise ConfigError(
            explain("this flag is for causal language models", found=f"{flag} with --task {task}", do="leave it out")
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
