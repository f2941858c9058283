"""Calibration of an initialiser: the inputs of a base's layers on some rows, or the gradients of their weights.

    inputs      s V^T of X = U diag(s) V^T, for the inputs X of the map, row after row; the smallest s are dropped as it grows
    gradient    the largest singular values of d loss / d W, for the mean loss of one part of a batch

Only a few directions per map are kept, and one gradient of a weight is in memory at a time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from inlay.base.base import Base
from inlay.core import lowrank
from inlay.errors import TargetError, explain
from inlay.layout.fresh import Calibration, check_source
from inlay.methods import hooks
from inlay.methods.contract import LinearBase, LinearMethod, Method, Params
from inlay.training.attaching import attached

NAME = "calibration"
"""What the recorder is called while it is attached."""

Pair = tuple[Tensor, Tensor]
"""A matrix as a product: (rows, k) and (k, columns)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recorder(LinearMethod):
    """Adds nothing to the maps that another method changes, and sees what goes in."""

    learning_rate_scale: ClassVar[float] = 1.0
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv2d")

    look: Callable[[LinearBase, Tensor, Tensor], Tensor]

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        return {"recorder": ()}

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        return {"recorder": torch.zeros(())}

    def delta(self, params: Params, x: Tensor, y: Tensor, base: LinearBase) -> Tensor:
        return self.look(base, x, y)

    def merge(
        self, params: Params, weight: Tensor, bias: Tensor | None, start: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        return weight, bias

    def describe(self) -> str:
        return "nothing"


def calibrate(
    base: Base, method: Method, examples: Sequence[Any], max_tokens: int | None, seed: int
) -> Calibration | None:
    """What `method` starts from, by the path of each map; None where that needs no rows.

    **Arguments:**

    - `examples`: rows of the base's task. Their inputs are seen one by one; their gradient is that of as many of them as make
      one part of a step, see `inlay.tasks.contract.TaskSpec.step_parts`.

    **Raises:**

    - `TargetError`: the method adapts an embedding, whose inputs are no vectors, or a parameter that holds several maps.
    """
    how = hooks.starts(method)
    if how is None or how.source not in ("inputs", "gradient"):
        return None
    look = _Inputs(how.num_found, seed) if how.source == "inputs" else _Gradient(how.num_found, seed)
    paths, task = base.layout.paths(how), base.spec
    check_source(how, {path: base.maps[path] for path in paths})
    with attached(base, base.fresh(_Recorder(look=look, target_modules=tuple(paths)), NAME)), base.using(NAME):
        if isinstance(look, _Inputs):
            with torch.no_grad():
                for example in examples:  # alone, a row has no padding
                    task.loss_of(base, [example])
        else:
            part = next(iter(task.step_parts(base, examples, max_tokens)))
            (task.loss_of(base, part) / task.num_targets(part)).backward()

    def found(path: str) -> Tensor:
        if base.maps[path] not in look.found:
            what = "an initialiser can't start a layer that no row goes through"
            raise TargetError(explain(what, found=path, do=f"--exclude-modules {path.rpartition('.')[2]}"))
        return look.matrix(base.maps[path])

    return found


class _Inputs:
    """The inputs of each map, folded into a few directions."""

    def __init__(self, num_directions: int, seed: int):
        self.num_directions, self.generator = num_directions, torch.Generator().manual_seed(seed)
        self.found: dict[LinearBase, Tensor] = {}

    def __call__(self, base: LinearBase, x: Tensor, y: Tensor) -> Tensor:
        rows = torch.cat([self.found[base], x.float()]) if base in self.found else x.float()
        _, s, V = lowrank.top(rows, self.num_directions, self.generator)
        self.found[base] = s[:, None] * V
        return torch.zeros_like(y)

    def matrix(self, base: LinearBase) -> Tensor:
        return self.found[base].cpu()


class _Gradient:
    """The gradient of each weight, of which the largest directions are kept."""

    def __init__(self, num_directions: int, seed: int):
        self.num_directions, self.generator = num_directions, torch.Generator().manual_seed(seed)
        self.found: dict[LinearBase, Pair] = {}

    def __call__(self, base: LinearBase, x: Tensor, y: Tensor) -> Tensor:
        change = torch.zeros_like(y, requires_grad=True)
        change.register_hook(lambda grad: self._take(base, grad.float().T @ x.detach().float()))
        return change

    def _take(self, base: LinearBase, gradient: Tensor) -> None:
        if base in self.found:  # a map that is called more than once
            U, V = self.found[base]
            gradient = gradient + U @ V
        U, s, V = lowrank.top(gradient, self.num_directions, self.generator)
        self.found[base] = (U * s, V)

    def matrix(self, base: LinearBase) -> Tensor:
        U, V = self.found[base]
        return (U @ V).cpu()
