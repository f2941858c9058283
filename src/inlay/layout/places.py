"""Where a method adds something to a model, whatever its kind: the tensors that it has there, and new ones."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from inlay.layout.fresh import Calibration, check_source, fresh
from inlay.methods.contract import Block, BlockMethod, Decoder, LinearMethod, Params, PromptMethod
from inlay.modules.linear import Linear


class Place(NamedTuple):
    """Where a method adds something to a model: a map, a block, or the front of the rows."""

    path: str
    shapes: Callable[[], dict[str, tuple[int, ...]]]
    """The shapes of its tensors there."""
    new: Callable[[torch.Generator, Calibration | None], Params]
    """New tensors."""


def on_map(method: LinearMethod, path: str, linear: Linear) -> Place:
    """A linear map, or those that a parameter holds."""

    def new(generator: torch.Generator, calibration: Calibration | None) -> Params:
        check_source(method, {path: linear})
        return linear.joined([fresh(method, one, path, generator, calibration) for one in linear.each])

    return Place(path, lambda: {key: (*linear.front, *shape) for key, shape in method.shapes(linear.one).items()}, new)


def on_block(method: BlockMethod, path: str, block: Block) -> Place:
    """A block of the model, whose tensors are at `path`."""
    return Place(path, lambda: method.shapes(block), lambda generator, _: method.init(block, generator))


def in_front(method: PromptMethod, model: Decoder) -> Place:
    """The front of the rows."""
    shapes = {"prompt_embeddings": (method.num_virtual_tokens, method.numbers(model))}
    return Place("", lambda: shapes, lambda generator, _: method.init(model, generator))
