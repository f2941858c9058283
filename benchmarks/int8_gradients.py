"""What int8 products would do to a gradient: python -m benchmarks.int8_gradients MODEL

Frozen weights in int8 by rows, what they are multiplied with in int8 by tokens as it comes: both ways, or in the backward pass
alone. Products are exact, so that nothing but the rounding to int8 is measured; the output head stays as it is. Printed are the
loss against float32's, and the cosine of every adapter tensor's gradient with float32's: the least, the median, and how many
are below 0.999. bfloat16's is beside it.
"""

import functools
import sys
from statistics import median

import torch
from torch import Tensor

import inlay
from inlay.core import product, routed
from inlay.tasks._packed import loss_of
from inlay.text.mask import Example

ENOUGH = 0.999
ROWS, LENGTH = 4, 128


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers up to 127, and what each row of them is multiplied by."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (x / scale).round(), scale


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """x W^T + b."""
    (whole, scale), (weights, scales) = quantized(x.float()), quantized(weight.float())
    y = (whole @ weights.T * scale * scales.T).to(x.dtype)
    return y if bias is None else y + bias


def linear_backward(g: Tensor, weight: Tensor) -> Tensor:
    """g W, where g takes the scales of the rows of W before it is quantised itself."""
    weights, scales = quantized(weight.float())
    whole, scale = quantized(g.float() * scales.T)
    return (whole @ weights * scale).to(g.dtype)


def gradients(model: str, dtype: str) -> tuple[float, list[Tensor]]:
    """The loss of some random rows, and the gradient of each tensor of an adapter that has begun to learn."""
    base = inlay.load(model, dtype=dtype)
    base.attach(inlay.Lora(r=8), "it")
    generator = torch.Generator().manual_seed(1)
    for tensor in base.adapters["it"].tensors():
        if not tensor.any():
            tensor.normal_(0, 0.02, generator=generator)
    tensors = base.adapters["it"].train_()
    ids = torch.randint(3, 500, (ROWS, LENGTH), generator=generator)
    with base.using("it"):
        loss = loss_of(base, [Example(tuple(row), (True,) * LENGTH, "row") for row in ids.tolist()])
        loss.backward()
    return loss.item(), [tensor.grad.double().flatten() for tensor in tensors if tensor.grad is not None]


def main(model: str) -> None:
    """Print a line for each way."""
    expected_loss, expected = gradients(model, "float32")
    ways = {
        "bfloat16": ("bfloat16", product.linear, product.linear_backward),
        "int8, both ways": ("float32", linear, linear_backward),
        "int8, backward": ("float32", product.linear, linear_backward),
    }
    for name, (dtype, routed.linear, routed.linear_backward) in ways.items():
        loss, found = gradients(model, dtype)
        print(f"{name:16} loss {100 * (loss / expected_loss - 1):+.3f} %, {likeness(found, expected)}")


def likeness(found: list[Tensor], expected: list[Tensor]) -> str:
    """The cosines of gradients with those that are expected, in words."""
    cosines = list(map(functools.partial(torch.nn.functional.cosine_similarity, dim=0), found, expected))
    least, middle = min(cosines).item(), median(c.item() for c in cosines)
    return f"cosines from {least:.4f}, median {middle:.4f}, {sum(c < ENOUGH for c in cosines)} of {len(cosines)} below {ENOUGH}"


if __name__ == "__main__":
    main(*sys.argv[1:])
