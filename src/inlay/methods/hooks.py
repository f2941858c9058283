"""What only some methods have: each a class that such a method derives from too, and a function that asks it of any method.

TrainsOwn     some of the model's own tensors are trained
TrainsTokens  the embeddings of single tokens are trained
ByModule      its settings differ from module to module
Starts        fresh tensors are found in a matrix, not only drawn
DropsInputs   the change does not see all of its inputs while it is trained
Rates         its tensors have learning rates of their own
Shares        frozen tensors that all modules share
Finishes      training has tensors of another form than those that are kept
StepHooks     a step of training is more than the gradient of its tensors
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.initializers import Source
from inlay.methods.contract import Kind, LinearBase, LinearMethod, Method, Own, Params


class TrainsOwn(abc.ABC):
    """Some of the model's own tensors are trained, and kept with the adapter."""

    @abc.abstractmethod
    def trains(self, own: Own) -> bool:
        """This tensor is."""


def trains(method: Method, own: Own) -> bool:
    """`method` trains this tensor of the model."""
    return isinstance(method, TrainsOwn) and method.trains(own)


class TrainsTokens(abc.ABC):
    """The embeddings of single tokens are trained, and with them their rows of a head that is tied to the embedding."""

    @property
    @abc.abstractmethod
    def token_ids(self) -> Sequence[int]:
        """Of these tokens."""


def token_ids(method: Method) -> Sequence[int]:
    """The tokens whose embeddings `method` trains."""
    return method.token_ids if isinstance(method, TrainsTokens) else ()


class ByModule(abc.ABC):
    """Settings that differ from module to module."""

    @abc.abstractmethod
    def for_module(self: Kind, path: str) -> Kind:  # type: ignore[misc]  # whoever derives from this is a method
        """This method as it applies to the module at `path`."""

    @property
    @abc.abstractmethod
    def patterns(self) -> Sequence[str]:
        """The module patterns that `for_module` looks for; one that matches nothing is an error."""


def for_module(method: Kind, path: str) -> Kind:
    """`method` as it applies to the module at `path`."""
    return method.for_module(path) if isinstance(method, ByModule) else method


def patterns(method: Method) -> Sequence[str]:
    """The module patterns of `method`."""
    return method.patterns if isinstance(method, ByModule) else ()


class Starts(LinearMethod, abstract=True):
    """Fresh tensors are found in a matrix of the map, where an initialiser is chosen that looks at one."""

    @property
    @abc.abstractmethod
    def source(self) -> Source | None:
        """What they are found in; None where they are only drawn."""

    @property
    @abc.abstractmethod
    def num_found(self) -> int:
        """How many singular directions of that they need."""

    @property
    @abc.abstractmethod
    def start_changes(self) -> bool:
        """They already change what the model says."""

    @abc.abstractmethod
    def start(self, params: Params, found: Float[Tensor, "rows in"], generator: torch.Generator) -> Params:
        """The new tensors of one module, from those of `init` and the matrix that `source` names."""


def starts(method: Method) -> Starts | None:
    """How `method` starts, where that is more than what `init` draws."""
    return method if isinstance(method, Starts) and method.source else None


def changes_at_start(method: Method) -> bool:
    """Fresh tensors of `method` already change what the model says."""
    found = starts(method)
    return method.changes_at_start or (found is not None and found.start_changes)


class DropsInputs(abc.ABC):
    """The change does not see all of its inputs while it is trained."""

    @property
    @abc.abstractmethod
    def input_dropout(self) -> float:
        """The part that it does not see, 0 <= p < 1."""


def input_dropout(method: Method) -> float:
    """The part of its inputs that `method` does not see while it is trained."""
    return method.input_dropout if isinstance(method, DropsInputs) else 0.0


class Rates(abc.ABC):
    """Tensors with learning rates of their own."""

    @property
    @abc.abstractmethod
    def rates(self) -> Mapping[str, tuple[float, float]]:
        """Name -> what a learning rate that is given is multiplied by, and what the default is, which makes up
        for a scaling or a start.

        0: they are not trained; 1 for all others."""


def rate(method: Method, tensor: str, by_default: bool = False) -> float:
    """What the learning rate of the tensors of this name is multiplied by; `by_default`: it is the default one."""
    return method.rates.get(tensor, (1.0, 1.0))[by_default] if isinstance(method, Rates) else 1.0


class Shares(LinearMethod, abstract=True):
    """Frozen tensors that all adapted modules share; they are saved once."""

    @abc.abstractmethod
    def shared(self, bases: Sequence[LinearBase]) -> Params:
        """The tensors."""

    @abc.abstractmethod
    def share(self, shared: Params, base: LinearBase) -> Params:
        """What one module sees of them, beside its own."""


def shared(method: Method, bases: Sequence[LinearBase]) -> Params:
    """The frozen tensors that all of the modules that `method` adapts share."""
    return method.shared(bases) if isinstance(method, Shares) else {}


def share(method: Method, shared: Params, base: LinearBase) -> Params:
    """What one module sees of the tensors that all share."""
    return method.share(shared, base) if isinstance(method, Shares) else shared


class Finishes(abc.ABC):
    """Training has tensors of another form than those that are kept."""

    @abc.abstractmethod
    def finish(self, params: Mapping[str, Params]) -> Mapping[str, Params]:
        """The tensors of all modules that are kept once training is over."""

    @abc.abstractmethod
    def finished(self) -> Any:
        """The method that these tensors are of."""


def finish(method: Method, params: Mapping[str, Params]) -> Mapping[str, Params]:
    """The tensors of all modules that are kept once training is over."""
    return method.finish(params) if isinstance(method, Finishes) else params


def finished(method: Kind) -> Kind:
    """The method that the tensors are of that are kept."""
    if isinstance(method, Finishes):
        finished: Kind = method.finished()
        return finished
    return method


@runtime_checkable
class StepHooks(Protocol):
    """What is done in each step of training beside the gradient of the tensors."""

    @abc.abstractmethod
    def penalty(self, params: Mapping[str, Params]) -> Float[Tensor, ""]:
        """What is added to the loss of a step, from the tensors of all modules."""

    @abc.abstractmethod
    def after_step(self, params: Mapping[str, Params], step: int, num_steps: int, state: Params) -> None:
        """What is done once `step` of `num_steps` is over, gradients still there; `state` is kept from step to step, and with a
        run that is to go on later."""
