"""New tensors of one map: drawn, or computed from its weight or a calibration."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from inlay.errors import ConfigError, TargetError, explain
from inlay.methods import hooks
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
    how = hooks.starts(method)
    if how is None:
        return params
    found = linear.weight(torch.float32) if how.source == "weight" else _found(method, how, calibration)(path)
    return how.start(params, found, generator)


def check_source(method: LinearMethod, maps: Mapping[str, Linear]) -> None:
    """Refuse an initialiser that needs to know more of a map than there is: an embedding's inputs are no vectors."""
    wrong = [f"{path} is {linear.kind}" for path, linear in maps.items() if linear.kind not in ("linear", "conv2d")]
    how = hooks.starts(method)
    if wrong and how is not None and how.source != "weight":
        what = f"an initialiser that needs the {how.source} of a map is for linear and conv2d"
        raise TargetError(explain(what, found=wrong[:10], do="other --target-modules, or --initializer uniform"))


def _found(method: LinearMethod, how: hooks.Starts, calibration: Calibration | None) -> Calibration:
    if calibration is None:
        raise ConfigError(
            explain(
                "this adapter's initialiser needs a calibration, and there was none",
                found=f"{method.describe()}: it starts from the {how.source} of each layer",
                do="inlay.train(base, rows, method=...), or inlay train",
            )
        )
    return calibration
