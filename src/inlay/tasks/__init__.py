"""What can be trained, one file per task: the file's name is the task's name with _ for -, and nothing else lists them."""

from pathlib import Path
from typing import Any

from torch import nn

from inlay import formats, plugins
from inlay.errors import CompatibilityError, explain
from inlay.formats.contract import AdapterFile
from inlay.io import records
from inlay.io.checkpoint import Checkpoint
from inlay.tasks._encode import groups as groups
from inlay.tasks._memory import micro_batch_tokens as micro_batch_tokens
from inlay.tasks.contract import DEFAULT_TASK, TaskSpec


def _spec(module: Any) -> TaskSpec:
    spec = plugins.value_of("SPEC", TaskSpec)(module)
    if spec.name.replace("-", "_") != module.__name__.rpartition(".")[2]:
        found = f"{spec.name!r} in {module.__name__}"
        raise CompatibilityError(explain("its SPEC has another name than its file", found=found))
    return spec


TABLE = plugins.Table(
    room=__name__,
    folder=tuple(__path__),
    group="inlay.tasks",
    what="task",
    choice=f"--task {DEFAULT_TASK}",
    take=_spec,
    joint="-",
)
"""The tasks that exist."""

names = TABLE.names


def find(name: str) -> TaskSpec:
    """The task called `name`.

    **Raises:**

    - `UnknownNameError`: there is none of that name.
    - `CompatibilityError`: another package brings it, and it can't be used.
    """
    return TABLE.find(name.replace("_", "-"))


def by_auto_class() -> dict[str, str]:
    """The class of `transformers` that makes a task's model -> the task, the first of several."""
    return {spec.auto_class: name for name, spec in reversed([*TABLE.known()])}


def type_of(module: nn.Module) -> str | None:
    """What PEFT calls the task of a module of which no file says it: next tokens, where it has what continues a text."""
    return find(DEFAULT_TASK).task_type if hasattr(module, "prepare_inputs_for_generation") else None


def has_own_head(checkpoint: Checkpoint, spec: TaskSpec) -> bool:
    """The checkpoint was saved from a model of this task, head and all: it brings its own classes."""
    made = checkpoint.config.get("architectures") or [""]
    kind = spec.auto_class.removeprefix("AutoModel")
    parts = (part for name in checkpoint.tensors for part in name.split("."))
    return str(made[0]).endswith(kind) and any(part in spec.heads for part in parts)


def of_checkpoint(checkpoint: Checkpoint) -> str | None:
    """The task that a base was made for, by its files: that of its class; None where that has no head of a task."""
    made = str((checkpoint.config.get("architectures") or [""])[0])
    kinds = ((spec.auto_class.removeprefix("AutoModel"), spec) for _, spec in TABLE.known())
    found = next((spec for kind, spec in kinds if kind and made.endswith(kind)), None)
    if found is not None and found.heads:
        return found.name
    if checkpoint.config.get("is_encoder_decoder"):
        return "seq2seq"
    is_embedder = (checkpoint.directory / "modules.json").is_file()  # as sentence-transformers writes them
    return "embedding" if is_embedder else DEFAULT_TASK if made.endswith(("ForCausalLM", "LMHeadModel")) else None


def of_adapter(adapter: str | Path) -> tuple[str, tuple[str, ...]]:
    """(the task that an adapter was trained for, the names of its classes where it says them), before its tensors are read."""
    return _of_file(formats.outline(adapter))


def for_adapter(checkpoint: Checkpoint, file: AdapterFile) -> tuple[TaskSpec, tuple[str, ...]]:
    """(the task, the names of its classes) that a base is loaded with to carry an adapter, by its outline; next tokens where
    that says nothing. No names where the checkpoint brings its own.

    A file of `peft` names the kind of model and not the classes, which are then called as `transformers` calls them.
    """
    name, labels = _of_file(file)
    spec = find(name)
    if not spec.heads or has_own_head(checkpoint, spec):
        return spec, ()
    return spec, labels or tuple(f"LABEL_{i}" for i in range(_num_classes(file, spec)))


def _of_file(file: AdapterFile) -> tuple[str, tuple[str, ...]]:
    record = file.record.get("task") or {}
    said, kind = record.get("name"), file.model.task_type
    if said:
        TABLE.check_installed(said, file.record.get("needs", {}).get("task"), records.RECORD)
    by_type = (name for name, spec in TABLE.known() if spec.task_type == kind)
    return said or (next(by_type, DEFAULT_TASK) if kind else DEFAULT_TASK), tuple(record.get("labels") or ())


def _num_classes(file: AdapterFile, spec: TaskSpec) -> int:
    """The rows of the last weight in the head that a file holds; 0 where it holds none."""
    weights = [
        tensors["weight"]
        for path, tensors in file.params.items()
        if set(path.split(".")) & set(spec.heads) and "weight" in tensors
    ]
    return len(weights[-1]) if weights else 0
