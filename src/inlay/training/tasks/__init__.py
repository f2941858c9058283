"""What can be trained, one file per task: the file's name is the task's name with _ for -, and nothing else lists them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inlay import formats, plugins
from inlay.base import load as loading
from inlay.base.base import Base
from inlay.base.purpose import CAUSAL_LM, Purpose, has_own_head
from inlay.errors import ConfigError, explain
from inlay.formats.contract import AdapterFile
from inlay.io.checkpoint import open_checkpoint
from inlay.training.tasks._contract import Task


def names() -> list[str]:
    """The tasks that exist, by name: the files of this folder."""
    return [name.replace("_", "-") for name in plugins.names(__path__)]


def find(name: str) -> Task:
    """The task called `name`.

    **Raises:**

    - `UnknownNameError`: there is no file of that name.
    """
    cls: Any = plugins.find(
        __name__, names(), name.replace("_", "-"), Task, "task", f"--task {CAUSAL_LM}"
    )  # not abstract
    return cls()


def of(base: Base) -> Task:
    """The task that a base was loaded for."""
    return find(base.task)


def load(source: str | Path, *, task: str = CAUSAL_LM, labels: Sequence[str] = (), **how: Any) -> Base:
    """The base at a directory or of a name on the hub, loaded for a task: mapped, frozen, in evaluation mode.

    **Arguments:** those of `inlay.base.load.load` but `purpose`, and

    - `task`: causal-lm, sequence-classification, token-classification, seq2seq or embedding.
    - `labels`: the names of the classes, where the task has classes; not needed where the checkpoint brings its own.

    **Raises:** what `inlay.base.load.load` raises, and

    - `UnknownNameError`: there is no such task.
    - `ConfigError`: labels for a task without classes, or none where they are needed.
    """
    return loading.load(source, purpose=purpose(source, task, labels), **how)


def purpose(source: str | Path, task: str, labels: Sequence[str] = ()) -> Purpose:
    """What a base at `source` is loaded for; see `load`."""
    found = find(task).purpose(tuple(labels))
    if bool(found.heads) and not labels and not has_own_head(open_checkpoint(source), found):
        raise ConfigError(
            explain(
                "this base has no head of its own, so that the names of the classes have to be said",
                found=f"{source}: task {task}, no labels",
                do=f'inlay.load(MODEL, task="{task}", labels=["no", "yes"])',
            )
        )
    if labels and not found.heads:
        raise ConfigError(
            explain(f"{task} has no classes", found=f"labels={list(labels)}", do=f'inlay.load(MODEL, task="{task}")')
        )
    return found


def of_adapter(source: str | Path, adapter: str | Path) -> Purpose:
    """What a base at `source` is loaded for to carry an adapter, by its files; next tokens where they say nothing.

    A file of `peft` names the kind of model and not the classes, which are then called as `transformers` calls them.
    """
    name, labels = about(adapter)
    found = find(name)
    if not found.heads or has_own_head(open_checkpoint(source), found.purpose()):
        return found.purpose()
    numbers = range(0 if labels else _num_classes(formats.outline(adapter), found))
    return purpose(source, found.name, labels or tuple(f"LABEL_{i}" for i in numbers))


def _num_classes(file: AdapterFile, task: Task) -> int:
    """The rows of the last weight in the head that a file holds; 0 where it holds none."""
    weights = [
        tensors["weight"]
        for path, tensors in file.params.items()
        if set(path.split(".")) & set(task.heads) and "weight" in tensors
    ]
    return len(weights[-1]) if weights else 0


def about(adapter: str | Path) -> tuple[str, tuple[str, ...]]:
    """(the task that an adapter was trained for, the names of its classes where it says them), before its tensors are read."""
    file = formats.outline(adapter)
    record = file.record.get("task") or {}
    by_type = {find(name).task_type: name for name in names()}
    return record.get("name") or by_type.get(str(file.model.task_type), CAUSAL_LM), tuple(record.get("labels") or ())


def of_checkpoint(source: str | Path) -> str | None:
    """The task that a base was made for, by its files: that of its class; None where that has no head of a task."""
    checkpoint = open_checkpoint(source)
    made = str((checkpoint.config.get("architectures") or [""])[0])
    by_kind = {find(name).auto_class.removeprefix("AutoModel"): name for name in names() if find(name).heads}
    classes = next((name for kind, name in by_kind.items() if made.endswith(kind)), None)
    if classes is not None:
        return classes
    if checkpoint.config.get("is_encoder_decoder"):
        return "seq2seq"
    is_embedder = (checkpoint.directory / "modules.json").is_file()  # as sentence-transformers writes them
    return "embedding" if is_embedder else CAUSAL_LM if made.endswith(("ForCausalLM", "LMHeadModel")) else None
