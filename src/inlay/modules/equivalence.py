"""Whether a module computes what one of our functions does: first by its structure, then by its numbers.

What a module computes is not known from its attributes: the same are found on norms that subtract the mean, take a gate, or
add a bias. So it is refused unless all that it holds is known and it is called with one tensor; what is left is asked, on
inputs at which a mean, an epsilon, a bound or another activation shows, for values and for gradients. Ours are called here
directly, never by way of a `forward` that may fall back to the module's own: the trial would compare the module with itself.

A module that can't be told apart from ours by these means is the same function; any other is computed as its class computes it.
"""

import copy
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SCALES = (1e-4, 1.0, 30.0, 1e4)
"""Sizes of the rows of an input: the first is near the root of the usual epsilons, the last beyond the usual bounds."""

LEADING = ((), (2,), (1, 2))
"""Shapes of the inputs before their rows."""

MEAN = 0.7
"""Mean of the inputs, in standard deviations."""

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2.0**-6}
"""How far results may differ, as part of the largest in each row: above rounding, far below another function."""

_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))
"""What every module has in its dictionary."""


def takes_one_tensor(module: nn.Module) -> bool:
    """The class is called with one argument and nothing stands between its call and its `forward`."""
    kind = type(module)
    if kind.__call__ is not nn.Module.__call__ or "forward" in vars(module):
        return False
    try:
        given = list(inspect.signature(kind.forward).parameters.values())[1:]
    except (TypeError, ValueError):  # a forward that has no signature
        return False
    usual = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return len(given) == 1 and given[0].kind is usual and given[0].default is inspect.Parameter.empty


def holds_only(module: nn.Module, parameters: Collection[str], modules: Collection[str]) -> bool:
    """These are all the parameters and submodules that the module has; it has no buffers and no tensors in attributes."""
    held = {name for name, value in module._parameters.items() if value is not None}
    others = [value for value in module._buffers.values() if value is not None]
    others += [value for value in vars(module).values() if isinstance(value, Tensor)]
    return held == set(parameters) and set(module._modules) <= set(modules) and not others


def settings(module: nn.Module, besides: Collection[str] = ()) -> tuple[Any, ...]:
    """What two modules have in common that compute the same function of their input and the submodules `besides`.

    Plain values are compared, anything else is taken to be the same only where it is the same object.
    """
    plain = (bool, int, float, str, type(None))
    mine = [(name, value) for name, value in vars(module).items() if name not in _OWN_ATTRIBUTES]
    values = tuple((name, value if isinstance(value, plain) else id(value)) for name, value in sorted(mine))
    inner = tuple(
        (name, settings(child)) for name, child in module._modules.items() if child is not None and name not in besides
    )
    tensors = (*module._parameters.items(), *module._buffers.items())
    shapes = tuple((name, None if tensor is None else tuple(tensor.shape)) for name, tensor in tensors)
    return (type(module), values, inner, shapes)


def twin(module: nn.Module, parameters: dict[str, Tensor], modules: dict[str, nn.Module]) -> nn.Module:
    """A copy of a module in evaluation mode with other tensors and submodules; nothing of the module itself changes."""
    made = copy.copy(module)
    made.__dict__["_parameters"] = dict(module._parameters) | parameters
    made.__dict__["_modules"] = dict(module._modules) | modules
    made.__dict__["training"] = False
    return made


def inputs(width: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Random inputs of all shapes, with rows of all sizes whose mean is not zero."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor(SCALES)[:, None]
    for leading in LEADING:
        x = torch.randn(*leading, len(SCALES), width, generator=generator) + MEAN
        yield (scales * x).to(dtype)


def agree(
    theirs: Callable[..., Any], ours: Callable[..., Any], given: Sequence[Tensor], fixed: Sequence[Tensor] = ()
) -> bool:
    """Both say the same of these tensors, in their dtype, and have the same gradients with respect to all but the `fixed` ones.

    bfloat16 rounds what is between, in another order each time: there the values alone are compared.
    """
    dtype = given[0].dtype
    with torch.enable_grad():
        try:
            expected, actual = (_results(function, given, fixed) for function in (theirs, ours))
        except Exception:  # any model's code may refuse in any way; it then does not do the same
            return False
    if [(x.shape, x.dtype) for x in expected] != [(x.shape, x.dtype) for x in actual]:
        return False
    return all(
        one.dtype == dtype and bool((_apart(one, other) <= TOLERANCE[dtype] * _size(other)).all())
        for one, other in zip(actual, expected, strict=True)
    )


def _results(function: Callable[..., Any], given: Sequence[Tensor], fixed: Sequence[Tensor]) -> list[Tensor]:
    """What a function says, and in float32 its gradients."""
    inputs = [x.detach().requires_grad_() for x in given]
    said = function(*inputs, *fixed)
    values = [said] if isinstance(said, Tensor) else list(said)
    if given[0].dtype != torch.float32:
        return [value.detach() for value in values]
    weights = [torch.randn(v.shape, generator=torch.Generator().manual_seed(1)) for v in values]
    gradients = torch.autograd.grad(values, inputs, weights)
    return [*(value.detach() for value in values), *gradients]


def _apart(one: Tensor, other: Tensor) -> Tensor:
    return (one.double() - other.double()).abs().amax(-1)


def _size(x: Tensor) -> Tensor:
    return x.double().abs().amax(-1)
