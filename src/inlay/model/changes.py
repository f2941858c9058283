"""What one adapter does to one module, as a tuple of changes; a layer applies them, and merging is a fold over them.

    Replace        tensors of the adapter replace the module's own
    TokenRows      the vectors of single tokens are others, in an embedding and in a head tied to it
    LowRank        + scaling B A x
    Delta          + what any other linear method adds
    Block          + what a network makes of a block's input or output

Each is bound to the module when the adapter is attached (`inlay.model.binding`), in this order: what replaces comes first, then
what adds, then rows of single tokens. `apply_(out, x, dropped, y)` changes the rows `out` of one adapter in place: `x` are
their inputs, `dropped` those after dropout, `y` what the base makes of them; all have one row per token. `merge(weight, bias,
start, number)` gives rows of the weight (out, in) from `start` on, and the bias, with the change in them, of the map of this
number where a parameter holds several; nothing given is changed.
"""

import copy
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inlay.core.routed import Factors
from inlay.errors import CompatibilityError, explain
from inlay.kernels.low_rank import Packed, pack
from inlay.methods.contract import BlockMethod, LinearMethod, LowRankMethod, Params
from inlay.modules.frozen import FrozenEmbedding, QuantizedEmbedding
from inlay.modules.linear import Linear


class Replace:
    """Tensors that replace the module's own."""

    def __init__(self, tensors: Params, source: str, linear: Linear | None):
        self.tensors = tensors
        self.source = source
        """The path of the module whose tensors the adapter has: another one's where the two share a weight."""
        self.linear = linear

    def apply_(self, out: Tensor, x: Tensor, dropped: Tensor, y: Tensor) -> None:
        assert self.linear is not None, "what is no linear map is called with the tensors"
        if "weight" in self.tensors:
            out.copy_(self.linear.replaced(x, self.tensors))
        elif "bias" in self.tensors:
            assert self.linear.bias is not None, "a bias that is replaced is one that the module has"
            out += (self.tensors["bias"] - self.linear.bias).to(out.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None, start: int, number: int) -> tuple[Tensor, Tensor | None]:
        rows = slice(start, start + len(weight))
        if "weight" in self.tensors:
            assert self.linear is not None, "what is no linear map has no weight to merge"
            weight = self.linear.as_map(self.tensors["weight"])[rows].to(weight.dtype)
        if bias is not None and "bias" in self.tensors:
            bias = self.tensors["bias"][rows].to(bias.dtype)
        return weight, bias

    def called(self, module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], some: bool) -> Any:
        """The output of the module with the tensors instead of its own; `some`: for some of the rows only.

        A copy of it holds them, because another thread may be in the module itself. What the copy remembers the module does.

        **Raises:**

        - `CompatibilityError`: the module remembers tensors, and was called for some of the rows.
        """
        own = {name: tensor.to(own_dtype(module, name)) for name, tensor in self.tensors.items()}
        made = copy.copy(module)
        made.__dict__["_parameters"] = module._parameters | own
        made.__dict__["_buffers"] = dict(module._buffers)
        forward = vars(module).get("forward")
        if isinstance(forward, types.MethodType) and forward.__self__ is module:  # given to this one module
            made.__dict__["forward"] = types.MethodType(forward.__func__, made)
        out = made(*args, **kwargs)
        _remember_(module, made, some)
        return out


def _remember_(module: nn.Module, called: nn.Module, some: bool) -> None:
    """Give a module what its copy has set in its forward, as layers with a recurrent state do."""
    held, now = vars(module) | module._buffers, vars(called) | called._buffers
    left = {"_parameters", "_buffers", "forward"}
    new = {name: value for name, value in now.items() if name not in left and held.get(name) is not value}
    tensors = [name for name, value in new.items() if isinstance(value, Tensor)]
    if some and tensors:
        raise CompatibilityError(
            explain(
                "a module that remembers all rows can't be called for some of them",
                found=f"{type(module).__name__} remembers {', '.join(tensors)}",
                do="a batch for each adapter",
            )
        )
    for name, value in new.items():
        setattr(module, name, value)


class TokenRows:
    """The vectors of some tokens are others."""

    def __init__(self, ids: Sequence[int], rows: Tensor, before: Tensor, linear: Linear):
        self.ids = torch.tensor(ids, device=rows.device)
        self.rows, self.before = rows, before
        """Their vectors (tokens, width), and those that the base has for these tokens."""
        self.linear = linear

    def apply_(self, out: Tensor, x: Tensor, dropped: Tensor, y: Tensor) -> None:
        self.linear.add_rows_(out, x, self.ids, self.rows - self.before)

    def merge(self, weight: Tensor, bias: Tensor | None, start: int, number: int) -> tuple[Tensor, Tensor | None]:
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        self.linear.merge_rows_(wide, self.ids, self.rows - self.before, start)
        return wide.to(weight.dtype), bias


class Delta:
    """What a linear method adds, by its own functions."""

    def __init__(self, method: LinearMethod, params: Params, linear: Linear):
        self.method, self.params, self.linear = method, params, linear

    def apply_(self, out: Tensor, x: Tensor, dropped: Tensor, y: Tensor) -> None:
        out += self.method.delta(self.params, dropped, y, self.linear)

    def merge(self, weight: Tensor, bias: Tensor | None, start: int, number: int) -> tuple[Tensor, Tensor | None]:
        return self.method.merge(self.linear.parts(self.params)[number], weight, bias, start)


class LowRank(Delta):
    """A change with factors, of what is linear and no more: it takes one product with the map's own.

    Of a parameter that holds several maps each has its own factors, made where tokens go to it.
    """

    def __init__(self, method: LowRankMethod, params: Params, linear: Linear):
        super().__init__(method, params, linear)
        self.low_rank = method
        self._packed: tuple[list[int], torch.dtype, Packed] | None = None

    def factors(self, dtype: torch.dtype | None = None) -> Factors:
        """The factors, in `dtype`; while they are trained, as they are."""
        if dtype is None or any(tensor.requires_grad for tensor in self.params.values()):
            return self.low_rank.factors(self.params)
        return self.packed(dtype).factors

    def packed(self, dtype: torch.dtype) -> Packed:
        """The factors as products without gradients take them, kept until they are changed.

        While they are trained they are made each time: a fused optimiser's steps are not counted as changes.
        """
        versions = [0 if tensor.is_inference() else tensor._version for tensor in self.params.values()]
        known = self._packed
        if known is None or known[0] != versions or known[1] != dtype:
            with torch.no_grad():
                known = versions, dtype, pack(self.low_rank.factors(self.params), dtype)
            self._packed = None if any([tensor.requires_grad for tensor in self.params.values()]) else known
        return known[2]


class Block:
    """What a network adds to a block's output."""

    def __init__(self, method: BlockMethod, params: Params):
        self.method, self.params = method, params

    def apply_(self, out: Tensor, x: Tensor, dropped: Tensor, y: Tensor) -> None:
        out += self.method.transform(self.params, y)

    def added(self, args: Sequence[Any], y: Any) -> Any:
        """The output of any module with what is added to it."""
        return y + self.method.transform(self.params, args[0] if self.method.is_parallel else y)


Change = Replace | TokenRows | LowRank | Delta | Block
Changes = tuple[Change, ...]


def merged(
    changes: Changes, weight: Tensor, bias: Tensor | None, start: int = 0, number: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Rows of a weight (out, in) from `start` on, and the bias with them, with the changes in both.

    `number`: which map the weight is of, where a parameter holds several.
    """
    for change in changes:
        if not isinstance(change, Block):
            weight, bias = change.merge(weight, bias, start, number)
    return weight, bias


def replaced(changes: Changes) -> Mapping[str, Tensor]:
    """The tensors that replace the module's own."""
    return next((change.tensors for change in changes if isinstance(change, Replace)), {})


def adds(changes: Changes) -> bool:
    """A method adds something to what the module says."""
    return any(not isinstance(change, Replace | TokenRows) for change in changes)


def own_dtype(module: nn.Module, name: str) -> torch.dtype:
    """What a module computes with where it holds the tensor `name`."""
    return module.dtype if isinstance(module, FrozenEmbedding | QuantizedEmbedding) else getattr(module, name).dtype
