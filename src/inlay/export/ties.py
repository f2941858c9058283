"""A head and embeddings that are one weight: whether they still are with an adapter in it, and how it is stored."""

from inlay.base import meta_model
from inlay.base.base import Base
from inlay.io.safetensors import TensorEntry
from inlay.model.adapter import Adapter


def unties(base: Base, adapter: Adapter) -> bool:
    """The head and the embeddings are one weight, and would not be with the adapter in it."""
    table, head = table_of(base), base.head
    if table is None or head is None or head in adapter.aliases:
        return False
    return any(adapter.adds(path) or adapter.own_at(path) for path in (table, head))


def table_of(base: Base) -> str | None:
    """The embeddings that share their weight with the head, where they do."""
    return next((path for path, tied in base.layout.tied.items() if base.head in tied), None)


def table_names(base: Base, prefix: str, plain: dict[str, TensorEntry]) -> dict[str, str]:
    """What the checkpoint may call the weight that head and embeddings share -> the module's path."""
    found = (
        (path, meta_model.checkpoint_path(f"{path}.weight", prefix, plain))
        for path in (table_of(base), base.head)
        if path
    )
    return {name: path for path, name in found if name is not None}
