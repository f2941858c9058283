"""The maps that a model is made of, whatever holds them: what `inlay.modules.linear` and `inlay.modules.experts` know."""

from collections.abc import Iterable, Mapping

from torch import nn

from inlay.modules import experts
from inlay.modules.linear import Linear, as_linear


def maps_of(model: nn.Module) -> dict[str, Linear]:
    """Every map of `model` that a method can know, by path, in the model's own order.

    The path is that of a module, or of a parameter that holds several.
    """
    found: dict[str, Linear] = {}
    for path, module in model.named_modules():
        linear = as_linear(module)
        several = experts.experts_of(module) if linear is None else []
        found |= {path: linear} if linear is not None else {f"{path}.{one.name}": one for one in several}
    return found


def check_known(modules: Mapping[str, nn.Module], others: Iterable[str]) -> None:
    """Refuse to adapt all linear layers where most of them are of no known form; see `inlay.modules.experts`."""
    experts.check_known({path: module for path, module in modules.items() if as_linear(module) is None}, others)
