"""Layers in steps that are like the last one: what they do is recorded once, and done again without their code.

A step of decoding asks hundreds of kernels for a few microseconds of work each; to come from one to the next through a layer's
Python takes as long. Where the sequences of a step, their adapters and the shapes of all tensors are those of the step before
(`inlay.model.batch.Plan`), each layer's kernels are known: the third such step records them, those that follow run them, of
all layers in one go. A layer that does anything else is called as always.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.kernels import program
from inlay.model.adapted import Adapted
from inlay.model.batch import passing

RECORDED = 3
"""The step of a plan that is recorded: that takes twice as long, and is not worth it where requests come at every step."""

_LAST = "the layer that was recorded last"
"""Its place in what is kept of a plan."""


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
        plan.kept[self] = plan.kept[_LAST] = _Recording(self, args, kwargs, plan.kept.get(_LAST))
        return plan.kept[self].out
    return plan.kept[self].again(args, kwargs)


class _Chain:
    """Layers of which each takes what the one before gave and what the first was given, and nothing else.

    What all of them do is done when the first is called, and those that follow have nothing to do: to call a layer takes about
    as long as its kernels.
    """

    def __init__(self, given: Sequence[Tensor]):
        self.given = given
        """What the first was given when it was recorded."""
        self.read = {id(tensor): tensor.clone() for tensor in given}
        """What is read in the place of each tensor that there was, by its identity."""
        self._held = dict(self.read)
        self._programs: list[Callable[[], None]] = []
        self.leaves: Sequence[Any] = ()
        """What the first was given in this step, once all is done."""

    def takes(self, given: Sequence[Tensor]) -> bool:
        """There is nothing else among what a layer is given, and nobody has changed it meanwhile."""
        known = bool(self._programs) and all(id(tensor) in self._held for tensor in given)
        return known and all(torch.equal(tensor, self._held[id(tensor)]) for tensor in given)

    def add(self, out: Any, program: Callable[[], None] | None) -> None:
        """Let the chain go on with what gave this; it ends where that can't be done again."""
        if program is None:
            self._held = {}
            return
        self._programs.append(program)
        for leaf in _leaves(out):
            if isinstance(leaf, Tensor):
                self.read[id(leaf)], self._held[id(leaf)] = leaf, leaf.clone()

    def run(self, leaves: Sequence[Any]) -> None:
        """Do it all again."""
        for once_more in self._programs:
            once_more()
        self.leaves = leaves


class _Recording:
    """What a layer did once."""

    def __init__(self, layer: Any, args: Any, kwargs: Any, before: "_Recording | None"):
        leaves = list(_leaves((args, kwargs)))
        given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._layer, self._follows = layer, before is not None and before.chain.takes(given)
        self.chain = before.chain if before is not None and self._follows else _Chain(given)
        own_args, own_kwargs = _with(self.chain.read, (args, kwargs))
        self._leaves = list(_leaves((own_args, own_kwargs)))
        self._places = [_place(leaf, self.chain.given) for leaf in leaves]
        self.out, self._again = program.recorded(lambda: type(layer).forward(layer, *own_args, **own_kwargs))
        self.chain.add(self.out, self._again)

    def again(self, args: Any, kwargs: Any) -> Any:
        """What it does now."""
        leaves = list(_leaves((args, kwargs)))
        if self._again is not None and (self._was_done(leaves) if self._follows else self._does(leaves)):
            return self.out
        return type(self._layer).forward(self._layer, *args, **kwargs)

    def _was_done(self, leaves: list[Any]) -> bool:
        """The first of the chain was called in this step, and has done what this call asks for."""
        first = self.chain.leaves
        if not first or len(leaves) != len(self._leaves):
            return False
        for own, leaf, place in zip(self._leaves, leaves, self._places, strict=True):
            wanted = own if place is None else first[place]
            if leaf is not wanted and (isinstance(leaf, Tensor) or isinstance(wanted, Tensor) or leaf != wanted):
                return False
        return True

    def _does(self, leaves: list[Any]) -> bool:
        """Do it for the whole chain, where that is what this call asks for."""
        self.chain.leaves = ()
        if not _takes(self._leaves, leaves):
            return False
        for own, leaf in zip(self._leaves, leaves, strict=True):
            if isinstance(leaf, Tensor):
                own.copy_(leaf)
        self.chain.run([leaf for leaf in leaves if isinstance(leaf, Tensor)])
        return True


def _place(leaf: Any, given: Sequence[Tensor]) -> int | None:
    """Where a tensor stands among what the first of a chain was given."""
    return next((place for place, tensor in enumerate(given) if tensor is leaf), None)


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
