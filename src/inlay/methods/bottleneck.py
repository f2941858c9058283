"""Bottleneck adapters: a small network inside each layer, of two maps with a non-linearity between them.

    h + scaling (up(f(down(h) + b1)) + b2),   down (size, width), up (width, size)

    houlsby     after attention and after the MLP, before what they say is added to the stream
    pfeiffer    after the MLP alone
    parallel    beside the MLP: the network sees what goes into it

up starts at zero, so that training starts from the base itself. layer_norm puts a norm of the adapter's own in front of the
network, as the adapters of Lin et al. have it. 2 size width + size + width weights per place, and 2 width for a norm.

Sources: Houlsby et al. 2019, arXiv 1902.00751, section 2; Pfeiffer et al. 2020 (AdapterFusion), arXiv 2005.00247; He et al.
2021 (parallel), arXiv 2110.04366; Lin et al. 2020 (with a norm), arXiv 2004.03829.

When not to use it: where answers have to be fast. The network can't be merged into the base: it adds depth to every layer, 20
to 30 % of latency at batch 1 (LoRA, table 1). Only Inlay and AdapterHub's `adapters` know it, not PEFT and not the servers.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from inlay.core import lowrank
from inlay.methods.contract import Block, BlockMethod, Params, require
from inlay.methods.hooks import Rates

FUNCTIONS = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
"""The non-linearities."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bottleneck(BlockMethod, Rates):
    """h + scaling (up(f(down(h) + b1)) + b2)"""

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """After attention and MLP, after the MLP alone, or beside the MLP."""

    reduction_factor: float = 16
    """The model's width divided by the size of the bottleneck."""

    bottleneck_size: int | None = None
    """The size itself; it wins over reduction_factor."""

    non_linearity: Literal["relu", "gelu", "swish", "tanh"] = "relu"
    """The function between the two maps."""

    layer_norm: bool = False
    """A norm of the adapter's own in front of the network."""

    scaling: float = 1.0
    """What multiplies the network's answer; He et al. take 4 where it is parallel."""

    learning_rate_scale: ClassVar[float] = 2.5  # measured: docs/evidence/family.md

    def __post_init__(self) -> None:
        super().__post_init__()
        size, factor = self.bottleneck_size, self.reduction_factor
        require(self.scaling != 0, "scaling must not be 0", f"scaling={self.scaling:g}", "--scaling 1")
        require(
            size is None or size >= 1,
            "bottleneck_size must be at least 1",
            f"bottleneck_size={size}",
            "--bottleneck-size 64",
        )
        require(factor > 0, "reduction_factor must be above 0", f"reduction_factor={factor}", "--reduction-factor 16")

    @property
    def roles(self) -> tuple[str, ...]:
        return ("attention", "mlp") if self.placement == "houlsby" else ("mlp",)

    @property
    def is_parallel(self) -> bool:
        return self.placement == "parallel"

    def shapes(self, block: Block) -> dict[str, tuple[int, ...]]:
        width = block.width
        size = self.bottleneck_size or max(1, int(width // self.reduction_factor))
        norm: dict[str, tuple[int, ...]] = {"adapter_norm": (width,), "adapter_norm_bias": (width,)}
        return {
            "adapter_down": (size, width),
            "adapter_down_bias": (size,),
            "adapter_up": (width, size),
            "adapter_up_bias": (width,),
        } | (norm if self.layer_norm else {})

    def init(self, block: Block, generator: torch.Generator) -> Params:
        zeros = {name: torch.zeros(shape) for name, shape in self.shapes(block).items()}
        size, width = zeros["adapter_down"].shape
        return (
            zeros
            | {"adapter_down": lowrank.kaiming_uniform(size, width, generator)}
            | ({"adapter_norm": torch.ones(width)} if self.layer_norm else {})
        )

    def transform(self, params: Params, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        tensors = {name: tensor.to(h.dtype) for name, tensor in params.items()}
        if self.layer_norm:
            h = functional.layer_norm(h, h.shape[-1:], tensors["adapter_norm"], tensors["adapter_norm_bias"])
        down = functional.linear(h, tensors["adapter_down"], tensors["adapter_down_bias"])
        up = functional.linear(FUNCTIONS[self.non_linearity](down), tensors["adapter_up"], tensors["adapter_up_bias"])
        return self.scaling * up

    def describe(self) -> str:
        size = f"size {self.bottleneck_size}" if self.bottleneck_size else f"reduction {self.reduction_factor:g}"
        return f"{self.placement} {size} {self.non_linearity}"

    @property
    def rates(self) -> Mapping[str, tuple[float, float]]:
        return dict.fromkeys(("adapter_up", "adapter_up_bias"), (1.0, 1 / abs(self.scaling)))
