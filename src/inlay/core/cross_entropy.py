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
        wide = torch.promote_types(dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        step = min(len(hidden), max(1, CHUNK_BYTES // (weight.shape[0] * wide.itemsize)))
        buffer = torch.empty(step, weight.shape[0], dtype=dtype, device=hidden.device)  # one for all chunks
        for start in range(0, len(hidden), max(1, step)):
            rows = slice(start, start + step)
            part = hidden[rows].to(dtype)
            logits = linear(part, weight, bias, out=buffer[: len(part)]).to(wide)
            torch.log_softmax(logits, -1, out=logits)
            chosen = labels[rows, None]
            loss -= logits.gather(1, chosen).sum()
            if grad is not None:
                logits.exp_().scatter_add_(1, chosen, logits.new_full(chosen.shape, -1))
                grad[rows] = linear_backward(logits.to(dtype), weight)
        ctx.save_for_backward(*([] if grad is None else [grad]))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        (grad,) = ctx.saved_tensors
        return grad * grad_outputs[0].to(grad.dtype), None, None, None, None
