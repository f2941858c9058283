"""Training that goes on from an adapter: its method and tensors are the start, its base is the only one that fits."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from inlay import formats, methods
from inlay.base.base import Base
from inlay.errors import ConfigError, explain
from inlay.hub.files import files_like
from inlay.io import records
from inlay.methods.contract import Method
from inlay.model.adapter import Adapter
from inlay.names import in_utf8


def read(base: Base, source: str | Path, name: str, method: Method | str | None) -> Adapter:
    """The adapter at `source`, checked against the base and not attached, its tensors in float32 and its own.

    **Arguments:**

    - `name`: what it is called from now on.
    - `method`: what was asked for; it can only be the adapter's own.

    **Raises:**

    - `ConfigError`: another method was asked for.
    - those of `inlay.model.adapter_set.AdapterSet.read`: it is no adapter, or was trained on another base.
    """
    adapter = base.read(source, in_utf8(Path(source).resolve().name))  # an error names the adapter that there is
    check_method(source, adapter.method, method)
    own = {path: {key: _own(tensor) for key, tensor in params.items()} for path, params in adapter.params.items()}
    return Adapter(name, adapter.method, own, record=adapter.record, shared=adapter.shared)


def check_method(source: str | Path, has: Method, asked: Method | str | None) -> None:
    """Refuse a method, or a field of one, that is not the adapter's.

    **Raises:**

    - `ConfigError`: it is another one.
    """
    if asked is None or asked == methods.name_of(has) or asked == has:
        return
    if isinstance(asked, str) or type(asked) is not type(has):
        other = asked if isinstance(asked, str) else methods.name_of(asked)
        found = f"{source}: {methods.name_of(has)}; asked for: {other}"
    else:
        fields = [field.name for field in dataclasses.fields(has)]
        found = [
            f"{name}={getattr(asked, name)!r}, the adapter has {getattr(has, name)!r}"
            for name in fields
            if getattr(asked, name) != getattr(has, name)
        ]
    raise ConfigError(
        explain(
            "this adapter was trained by another method than is asked for",
            found=found,
            do="leave the method's settings out",
        )
    )


def about(source: str | Path) -> dict[str, Any]:
    """The adapter at `source` for the record of the run that goes on: its name, what it holds, and how long it was trained."""
    directory = formats.fetched(source)
    form = formats.find(formats.detect(directory))
    patterns = (form.tensors,) if form.tensors else form.files
    files = sorted({file for pattern in patterns for file in files_like(directory, pattern)})
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    steps = records.read(directory).get("training", {}).get("steps")
    return {"name": in_utf8(Path(source).resolve().name), "sha256": digest, "steps": steps}


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.float32, copy=True) if tensor.is_floating_point() else tensor
