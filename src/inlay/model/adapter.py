"""An adapter in memory: a method, and its tensors for every module that it changes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from inlay.core.routed import Factors
from inlay.methods import name_of
from inlay.methods._contract import LinearMethod, Params


class Adapter:
    """A method and its tensors, by module path; what is attached, routed to, saved and shared."""

    def __init__(
        self,
        name: str,
        method: LinearMethod,
        params: Mapping[str, Params],
        record: Mapping[str, Any] | None = None,
    ):
        self.name = name
        self.method = method
        self.params = dict(params)
        """The tensors: module path -> tensor name -> tensor."""
        self.methods = {path: method.for_module(path) for path in self.params}
        """The method as it applies to each module."""
        self.record = dict(record or {})
        """What `inlay.json` says: the base it was trained on, and how."""
        self.trained = False
        """The tensors collect gradients, and the method's dropout is on wherever gradients are."""
        self._factors: dict[tuple[str, torch.dtype], Factors | None] = {}

    def __repr__(self) -> str:
        return (
            f"Adapter({self.name!r}, {name_of(self.method)} on {len(self.params)} layers, {self.num_weights:,} weights)"
        )

    @property
    def num_weights(self) -> int:
        """How many numbers the adapter holds."""
        return sum(tensor.numel() for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, module by module."""
        return (tensor for params in self.params.values() for tensor in params.values())

    def train_(self, trained: bool = True) -> list[Tensor]:
        """Make every tensor a leaf that collects gradients, or stop that; the tensors, for an optimiser."""
        self._factors.clear()
        self.trained = trained
        return [tensor.requires_grad_(trained) for tensor in self.tensors()]

    def dropout(self, path: str) -> float:
        """The input dropout of the module at `path`: the method's while the adapter is trained with gradients on."""
        return self.methods[path].input_dropout if self.trained and torch.is_grad_enabled() else 0.0

    def factors(self, path: str, dtype: torch.dtype) -> Factors | None:
        """The low-rank factors of the module at `path`, or None where the change is not low-rank.

        Cast to `dtype` once and kept while nothing is trained; as they are, for the routed product to cast, otherwise.
        """
        params = self.params[path]
        if self.trained:
            return self.methods[path].factors(params)
        key = (path, dtype)
        if key not in self._factors:
            found = self.methods[path].factors(params)
            self._factors[key] = found and Factors(found.A.to(dtype), found.B.to(dtype), found.scaling)
        return self._factors[key]
