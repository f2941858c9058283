"""The loss of a language model over the tokens that are trained on.

    loss_sum = sum over t with a label of  -log softmax(logits[t])[label[t]],   in float32 or wider

A sum, not a mean: whoever steps divides by the number of supervised tokens of the whole step, so that the result does not
depend on how its rows were split into batches.

With logits = W h + b of a frozen head, the gradient needs no second pass over them:

    d h[t] = g (softmax(logits[t]) - onehot(label[t])) W

so it is computed with the loss, chunk of rows by chunk, and only d h is kept: a vocabulary of 50,000 has 80 times the width
of its model, and all logits of 1,024 tokens would be 200 MB, several times over.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inlay.core.product import Rows, linear, linear_backward

IGNORE = -100
"""The label of a token that is not trained on, as torch's `cross_entropy` and the field use it."""

CHUNK_BYTES = 64 << 20
"""Size of the logits that are held at a time; chunks much smaller would read the head's weight too often."""

CHUNK_ROWS = 512
"""The most rows in a chunk: products of more rows with a head's many take up to twice the time of these."""

WIDE_BYTES = 4 << 20
"""Size of those that are widened at a time, which then stay in the cache while they are passed over."""


def cross_entropy_sum(logits: Float[Tensor, "*batch t vocab"], labels: Int[Tensor, "*batch t"]) -> Float[Tensor, ""]:
    """The summed loss of the labelled positions in nats; zero where there is none.

    **Arguments:**

    - `logits`: what the model says at each position about the next token.
    - `labels`: the next token of each position (already shifted), or `IGNORE`.
    """
    chosen = labels != IGNORE
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.nn.functional.cross_entropy(logits[chosen].to(wide), labels[chosen], reduction="sum")


def head_cross_entropy_sum(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"] | Rows,
    bias: Float[Tensor, " vocab"] | None,
    labels: Int[Tensor, " tokens"],
    dtype: torch.dtype,
) -> Float[Tensor, ""]:
    """`cross_entropy_sum(hidden W^T + b, labels)` without holding all logits.

    **Arguments:**

    - `hidden`: what the head is given; the only argument that gets a gradient.
    - `weight`, `bias`: the frozen head, in any dtype or quantised.
    - `labels`: the next token of each position; all of them have one.
    - `dtype`: what the products run in.
    """
    loss: Tensor = _HeadCrossEntropy.apply(hidden, weight, bias, labels, dtype)  # type: ignore[assignment]  # torch types apply as Any
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | Rows, bias: Tensor | None, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        vocabulary, device = weight.shape[0], hidden.device
        loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        most = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (vocabulary * dtype.itemsize)))
        step = -(-len(hidden) // max(1, -(-len(hidden) // most)))  # chunks of one size
        buffer = torch.empty(step, vocabulary, dtype=dtype, device=device)  # one for all chunks
        wide = torch.empty(
            min(step, max(1, WIDE_BYTES // (4 * vocabulary))), vocabulary, dtype=loss.dtype, device=device
        )
        for start in range(0, len(hidden), max(1, step)):
            rows = slice(start, start + step)
            part = hidden[rows].to(dtype)
            logits = linear(part, weight, bias, out=buffer[: len(part)])
            for few, chosen in zip(logits.split(len(wide)), labels[rows, None].split(len(wide)), strict=True):
                loss += _loss_(few, chosen, wide[: len(few)], grad is not None)
            if grad is not None:
                grad[rows] = linear_backward(logits, weight)
        ctx.save_for_backward(*([] if grad is None else [grad]))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        (grad,) = ctx.saved_tensors
        return grad * grad_outputs[0].to(grad.dtype), None, None, None, None


def _loss_(
    logits: Float[Tensor, "t vocab"], labels: Int[Tensor, "t 1"], wide: Float[Tensor, "t vocab"], needs_grad: bool
) -> Float[Tensor, ""]:
    """The summed loss of a few positions, whose logits become its gradient where one is needed; `wide` is overwritten."""
    torch.log_softmax(wide.copy_(logits), -1, out=wide)
    loss = -wide.gather(1, labels).sum()
    if needs_grad:
        torch.softmax(wide, -1, out=wide)  # their exponentials: torch's softmax is five times as fast as its exp
        logits.copy_(wide.scatter_add_(1, labels, wide.new_full(labels.shape, -1)))
    return loss
