"""New tensors of one map: drawn, or computed from its weight or a calibration."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from inlay.errors import ConfigError, TargetError, explain
from inlay.methods.contract import LinearMethod, Params
from inlay.modules.linear import Linear

Calibration = Callable[[str], Tensor]
"""The matrix that the factors of the map at a path are found in, see `inlay.initializers.Source`: float32."""


def fresh(
    method: LinearMethod, linear: Linear, path: str, generator: torch.Generator, calibration: Calibration | None
) -> Params:
    """New tensors of one map."""
    try:
        params = method.init(linear, generator)
    except ConfigError as error:
        raise ConfigError(f"{error}, or --exclude-modules {path.rpartition('.')[2]}") from None
    if method.source == "weight":
        return method.start(params, linear.weight(torch.float32), generator)
    return method.start(params, _found(method, calibration)(path), generator) if method.source else params


def check_source(method: LinearMethod, maps: Mapping[str, Linear]) -> None:
    """Refuse an initialiser that needs to know more of a map than there is: an embedding's inputs are no vectors."""
    wrong = [f"{path} is {linear.kind}" for path, linear in maps.items() if linear.kind not in ("linear", "conv2d")]
    if wrong and method.source not in (None, "weight"):
        what = f"an initialiser that needs the {method.source} of a map is for linear and conv2d"
        raise TargetError(explain(what, found=wrong[:10], do="other --target-modules, or --initializer uniform"))


def _found(method: LinearMethod, calibration: Calibration | None) -> Calibration:
    if calibration is None:
        raise ConfigError(
            explain(
                "this adapter's initialiser needs a calibration, and there was none",
                found=f"{method.describe()}: it starts from the {method.source} of each layer",
                do="inlay.train(base, rows, method=...), or inlay train",
            )
        )
    return calibration
