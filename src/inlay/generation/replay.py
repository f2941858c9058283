"""Layers in steps that are like the last one: what they do is recorded once, and done again without their code.

A step of decoding asks hundreds of kernels for a few microseconds of work each; to come from one to the next through a layer's
Python takes as long. Where the sequences of a step, their adapters and the shapes of all tensors are those of the step before
(`inlay.model.batch.Plan`), each layer's kernels are known: the third such step records them, those that follow run them. A
layer that does anything else is called as always.
"""

import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.kernels import program
from inlay.model.adapted import Adapted
from inlay.model.batch import passing

RECORDED = 3
"""The step of a plan that is recorded: that takes twice as long, and is not worth it where requests come at every step."""


def adopt_(model: Any) -> None:
    """Let the layers of a model be replayed, once."""
    for layer in _layers(model):
        if "forward" not in vars(layer):
            layer.forward = types.MethodType(_forward, layer)


def _layers(model: Any) -> Sequence[Any]:
    """The layers that a model goes through one after the other, without what adapters put around them."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    return [layer.base if isinstance(layer, Adapted) else layer for layer in (lists[0] if lists else ())]


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The `forward` of a layer."""
    batch = passing()
    plan = None if batch is None or torch.is_grad_enabled() else batch.plan
    if plan is None or plan.num_passes < RECORDED:
        return type(self).forward(self, *args, **kwargs)
    if self not in plan.kept:
        plan.kept[self] = _Recording(self, args, kwargs)
        return plan.kept[self].out
    return plan.kept[self].again(args, kwargs)


class _Recording:
    """What a layer did once."""

    def __init__(self, layer: Any, args: Any, kwargs: Any):
        self._layer = layer
        taken = {id(leaf): leaf.clone() for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        own_args, own_kwargs = _with(taken, (args, kwargs))
        self._leaves = list(_leaves((own_args, own_kwargs)))
        self.out, self._again = program.recorded(lambda: type(layer).forward(layer, *own_args, **own_kwargs))

    def again(self, args: Any, kwargs: Any) -> Any:
        """What it does now."""
        leaves = list(_leaves((args, kwargs)))
        if self._again is None or not _takes(self._leaves, leaves):
            return type(self._layer).forward(self._layer, *args, **kwargs)
        for own, leaf in zip(self._leaves, leaves, strict=True):
            if isinstance(leaf, Tensor):
                own.copy_(leaf)
        self._again()
        return self.out


def _leaves(value: Any) -> Iterator[Any]:
    """What tuples, lists and dictionaries hold, each key before what it is for."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _with(taken: dict[int, Tensor], value: Any) -> Any:
    """The same with other tensors."""
    if isinstance(value, dict):
        return {key: _with(taken, inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_with(taken, inner) for inner in value)
    return taken.get(id(value), value)


def _takes(known: list[Any], given: list[Any]) -> bool:
    """A call with these leaves does what one with those did, with other numbers."""
    if len(known) != len(given):
        return False
    for own, leaf in zip(known, given, strict=True):
        if isinstance(own, Tensor):
            if not isinstance(leaf, Tensor) or own.shape != leaf.shape or own.dtype != leaf.dtype:
                return False
        elif own is not leaf and (isinstance(leaf, Tensor) or own != leaf):
            return False
    return True
