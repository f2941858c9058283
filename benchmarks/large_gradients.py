"""Gradients over a mapped base, against resident ones: python -m benchmarks.large_gradients [SHAPE] [LAYERS] [TOKENS]

A few layers of a large shape with random weights in NF4, LoRA r=16 on all linear layers with a B that is not zero. The loss
and every gradient are computed three times: over the mapped file, of which HELD_BYTES are held at a time, as of a base larger
than memory; over the same quantised weights in memory; and over the bfloat16 weights that they stand for. The first two must be
the same bits; printed are how many tensors are, and how far the third is, as a part of each gradient's norm.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
import torch
from torch import Tensor

import inlay
from benchmarks import shapes
from inlay.base.base import Base
from inlay.modules import ahead
from inlay.modules.frozen import QuantizedLinear
from inlay.tasks._packed import loss_of
from inlay.text.mask import Example

HELD_BYTES = 1 << 29


def main(shape: str = "65b", layers: str = "4", tokens: str = "64") -> None:
    """Make the base, compute, compare, print."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        path = shapes.quantized(shape, Path(folder) / shape, num_hidden_layers=int(layers))
        ahead.HELD = HELD_BYTES / psutil.virtual_memory().available
        row = torch.randint(3, 500, (int(tokens),), generator=torch.Generator().manual_seed(0)).tolist()
        example = Example(tuple(row), (True,) * len(row), "row")
        found = [_gradients(path, example, change) for change in (_as_it_is, _resident_, _plain_)]
    (loss, mapped), (resident_loss, resident), (plain_loss, plain) = found
    equal = sum(map(torch.equal, mapped, resident))
    apart = [((a - b).norm() / b.norm()).item() for a, b in zip(mapped, plain, strict=True)]
    print(f"{shape}, {layers} layers, {tokens} tokens: loss {loss:.6f}, {resident_loss:.6f}, {plain_loss:.6f}")
    print(f"{equal} of {len(mapped)} gradients are those of the resident weights, bit for bit")
    print(f"from bfloat16 weights: median {median(apart):.5f}, most {max(apart):.5f} of the norm")


def _gradients(path: Path, example: Example, change_: Callable[[Base], None]) -> tuple[float, list[Tensor]]:
    base = inlay.load(path)
    change_(base)
    base.attach(inlay.Lora(r=16), "it")
    generator = torch.Generator().manual_seed(1)
    tensors = base.adapters["it"].train_()
    with torch.no_grad():
        for tensor in tensors:
            if not tensor.any():
                tensor.normal_(0, 0.02, generator=generator)
    with base.using("it"):
        loss = loss_of(base, [example])
        loss.backward()
    return loss.item(), [tensor.grad for tensor in tensors if tensor.grad is not None]


def _as_it_is(base: Base) -> None:
    pass


def _resident_(base: Base) -> None:
    for module in base.model.modules():
        if isinstance(module, QuantizedLinear):
            module.matrix = module.matrix.over({key: tensor.clone() for key, tensor in module.matrix.packed.items()})


def _plain_(base: Base) -> None:
    for module in base.model.modules():
        if isinstance(module, QuantizedLinear):
            module.matrix = module.matrix.dequantize(torch.bfloat16)  # type: ignore[assignment]  # a product takes either


if __name__ == "__main__":
    main(*sys.argv[1:])
