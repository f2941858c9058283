"""What a linear map lost when it was quantised: what LoftQ starts from."""

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.errors import TargetError, explain
from inlay.io.checkpoint import Checkpoint
from inlay.io.mapped import Mapped
from inlay.layout import stored
from inlay.modules.frozen import QuantizedLinear
from inlay.modules.linear import Linear


def residual(linear: Linear, original: Checkpoint, path: str, prefix: str) -> Float[Tensor, "out in"]:
    """W - Q in float32: the weight at `path` as `original` has it, less the quantised weight.

    `prefix`: what the model calls the part that a checkpoint may leave out of its names.

    **Raises:**

    - `TargetError`: the map is not quantised, or the original has none of that name.
    """
    name = stored.checkpoint_path(f"{path}.weight", prefix, original.tensors)
    if name is None or not isinstance(linear.module, QuantizedLinear):
        wrong = "LoftQ has nothing to start from: this layer is not quantised"
        found = f"{path}: " + ("not quantised" if name else f"{original.name} has no tensor of that name")
        raise TargetError(explain(wrong, found=found, do="--target-modules all-linear, or --initializer uniform"))
    weight = Mapped().tensor(original.tensors[name]).float()
    return linear.as_map(weight) - linear.weight(torch.float32).cpu()
