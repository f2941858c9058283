"""A head and embeddings that are one weight: whether they still are with an adapter in it, and how it is stored."""

from inlay.base.base import Base
from inlay.io.safetensors import TensorEntry
from inlay.layout import stored
from inlay.model.adapter import Adapter
from inlay.model.changes import Replace, adds, replaced


def unties(base: Base, adapter: Adapter) -> bool:
    """The head and the embeddings are one weight, and would not be with the adapter in it."""
    table, head = table_of(base), base.head
    if table is None or head is None or is_alias(adapter, head):
        return False
    return any(adds(changes) or replaced(changes) for changes in map(adapter.at, (table, head)))


def is_alias(adapter: Adapter, path: str) -> bool:
    """What replaces the tensors of the module at `path` are those of another one, with which it shares its weight."""
    return any(isinstance(change, Replace) and change.source != path for change in adapter.at(path))


def table_of(base: Base) -> str | None:
    """The embeddings that share their weight with the head, where they do."""
    return next((path for path, tied in base.layout.tied.items() if base.head in tied), None)


def table_names(base: Base, prefix: str, plain: dict[str, TensorEntry]) -> dict[str, str]:
    """What the checkpoint may call the weight that head and embeddings share -> the module's path."""
    found = (
        (path, stored.checkpoint_path(f"{path}.weight", prefix, plain)) for path in (table_of(base), base.head) if path
    )
    return {name: path for path, name in found if name is not None}
