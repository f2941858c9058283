"""Fused experts: one tensor holds a linear map for each expert, and every token goes through a few of them.

    gate_up_proj (experts, out, in),  down_proj (experts, out, in)         or (experts, in, out), as the module says
    y = sum over a token's experts e of  weight_e  down_e(act(gate_up_e(x)))

An adapter of such a parameter is the same for each expert: its tensors have the experts in front, (experts, r, in) and
(experts, out, r). A row's tokens take their own row's adapter in every expert; the change of a weight is never formed.

Source of the layout: the experts of transformers 5, `integrations/moe.py` there.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inlay.methods.contract import Params
from inlay.modules.linear import Dense, Linear

UP, DOWN = ("gate_up_proj", "up_proj"), "down_proj"


_SPELLINGS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",), ("w1",)),
    "down_proj": (("down_proj",), ("w2",)),
}
"""What the linear maps of a parameter are called where a checkpoint has them expert by expert, in the order of their rows."""


class Part(NamedTuple):
    """The rows of one expert's weight from `start` on."""

    number: int
    start: int


class Expert(Dense):
    """The linear map of one expert."""

    def __init__(self, module: nn.Module, name: str, number: int):
        self._name, self._number = name, number
        super().__init__(module, transposed=_flag(module, "is_transposed"))

    @property
    def stored(self) -> Tensor:
        return self.module.get_parameter(self._name)[self._number]

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        bias = self.module._parameters.get(f"{self._name}_bias")
        return None if bias is None else bias[self._number]


class Experts(Dense):
    """The linear maps of all experts, as one parameter holds them."""

    kind = "experts"

    def __init__(self, module: nn.Module, name: str):
        self.name = name
        self.module = module
        self.transposed, self.is_plain = _flag(module, "is_transposed"), False

    @property
    def sizes(self) -> dict[str, int]:
        return {"experts": len(self.stored), **self.one.sizes}

    @property
    def one(self) -> Linear:
        return self._one

    @cached_property
    def _one(self) -> Expert:
        return Expert(self.module, self.name, 0)

    @property
    def stored(self) -> Tensor:
        return self.module.get_parameter(self.name)

    @cached_property
    def each(self) -> Sequence[Expert]:
        return [Expert(self.module, self.name, number) for number in range(len(self.stored))]


def experts_of(module: nn.Module) -> list[Experts]:
    """The parameters of a module of fused experts, in the order of their definition; nothing of any other module."""
    names = [name for name, tensor in module._parameters.items() if tensor is not None and tensor.dim() == 3]
    known = all(hasattr(module, flag) for flag in ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm"))
    return [Experts(module, name) for name in names if name in (*UP, DOWN)] if known else []


def stacked(each: Sequence[Params]) -> Params:
    """The tensors of every expert as those of the parameter."""
    return {name: torch.stack([params[name] for params in each]) for name in each[0]}


def parts_of(path: str, experts: Experts, known: Callable[[str], str | None]) -> dict[str, Part | None]:
    """Where a checkpoint has the weights of a parameter, by tensor name: all in one (None), or expert by expert.

    `known` gives the name under which the checkpoint has a tensor of the model, or None. Nothing, where it has them otherwise.
    """
    whole = known(path)
    if whole is not None:
        return {whole: None}
    module = path.rpartition(".")[0]
    for spelling in _SPELLINGS[experts.name]:
        rows = experts.one.out_features // len(spelling)
        for place in (module, module.replace(".mlp.", ".block_sparse_moe.")):
            parts = {
                known(f"{place}.{e}.{name}.weight"): Part(e, number * rows)
                for e in range(len(experts.each))
                for number, name in enumerate(spelling)
            }
            if None not in parts:
                return {name: part for name, part in parts.items() if name is not None}
    return {}


def _flag(module: nn.Module, name: str) -> bool:
    return bool(getattr(module, name))
