"""Adapters on any torch module, of which nothing is known but itself."""

from pathlib import Path

from torch import nn

from inlay import tasks
from inlay.methods.contract import Method
from inlay.model.adapter_set import AdapterSet


def attach(module: nn.Module, source: str | Path | Method, name: str | None = None, seed: int = 0) -> AdapterSet:
    """Freeze any torch module and attach an adapter to it: a new one of a method, or one from disk.

    The module computes with the adapter from now on. `parameters()` of what is returned are to be trained, `save(name,
    directory)` writes them, `release()` gives the module back as it was.

    **Arguments:**

    - `module`: it may be on any device and of any dtype; its own parameters collect no gradients until it is released.
    - `source`: a method such as `inlay.Lora(r=4)`, or the directory or hub name of an adapter.
    - `name`: what to call the adapter; 'default', or the directory's name, unless given.
    - `seed`: for the tensors of a new adapter.

    **Raises:**

    - `TargetError`: the method finds nothing to change in the module.
    - `UnknownNameError`, `FormatError`, `CompatibilityError`: see `inlay.model.adapter_set.AdapterSet.attach`.
    """
    adapters = AdapterSet(module, task_type=tasks.type_of(module))
    adapters.attach(source, name, seed=seed)
    return adapters
