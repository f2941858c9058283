"""An adapter on a base for as long as a block lasts."""

import contextlib
from collections.abc import Iterator

from inlay.base.base import Base
from inlay.model.adapter import Adapter


@contextlib.contextmanager
def attached(base: Base, adapter: Adapter, *, stays: bool = False) -> Iterator[None]:
    """Within the block an adapter is attached and active; after it the base is as it was before.

    With `stays` it is so only where the block raises, and the adapter is left attached and active otherwise.

    **Raises:** what `inlay.model.adapter_set.AdapterSet.put` does, and then too the base is as it was.
    """
    before, is_left = base.active, False
    try:
        base.put(adapter)
        yield
        is_left = stays
    finally:
        if not is_left:
            if adapter in base.adapters.values():
                base.detach(adapter.name)
            base.active = before
