"""Causal attention over packed documents by the fastest way that is there: `attention.c` for bfloat16 on a processor that
multiplies it, else what `inlay.core.attention` makes of torch's fused kernel.

The first works on each document where it lies: nothing is padded or copied, and only q, k, v and a number for each token and
head are kept for the backward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core import attention as in_torch
from inlay.errors import CapacityError, explain
from inlay.kernels import native

SMALLEST_DIM = 16
"""What the width of a head is a multiple of."""

_FORWARD, _BACKWARD = range(2)
"""The functions of `attention.c`."""

_FEWEST = 4
"""Heads of keys for each thread: of fewer, one thread's last may be waited for as long as all took."""


def document_attention(
    q: Float[Tensor, "heads t dim"],
    k: Float[Tensor, "kv_heads t dim"],
    v: Float[Tensor, "kv_heads t dim"],
    lengths: Sequence[int],
    scaling: float,
    parents: Sequence[int] = (),
) -> Float[Tensor, "t heads dim"]:
    """As `inlay.core.attention.document_attention`; the last of the lengths are those of branches of `parents`."""
    if parents:
        documents = lengths[: -len(parents)]
        q_of, k_of, v_of = (x[:, : sum(documents)] for x in (q, k, v))
        branches = in_torch.branch_attention(q, k, v, lengths, parents, scaling)
        return torch.cat([document_attention(q_of, k_of, v_of, documents, scaling), branches])
    tensors = (q, k, v)
    suits = (
        all((x.is_cpu or x.is_meta) and x.dtype == torch.bfloat16 for x in tensors) and q.shape[-1] % SMALLEST_DIM == 0
    )
    if not (suits and scaling > 0 and native.multiplies_bfloat16()):
        return in_torch.document_attention(q, k, v, lengths, scaling)
    out: Tensor = _Attention.apply(q, k, v, tuple(lengths), scaling)  # type: ignore[assignment]  # torch types apply as Any
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scaling: float) -> Tensor:
        heads, tokens, dim = q.shape
        q, k, v = (_dense(x) for x in (q, k, v))
        out, logs = q.new_empty(tokens, heads, dim), torch.empty(heads, tokens, device=q.device)
        _run(_FORWARD, {"q": q, "k": k, "v": v, "out": out, "logs": logs}, lengths, scaling)
        ctx.lengths, ctx.scaling = lengths, scaling
        ctx.save_for_backward(q, k, v, logs)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        q, k, v, logs = ctx.saved_tensors
        dq, dk, dv = (x.new_empty(x.shape[1], x.shape[0], x.shape[2]) for x in (q, k, v))
        given = {"q": q, "k": k, "v": v, "g": grad_outputs[0].contiguous(), "logs": logs, "dq": dq, "dk": dk, "dv": dv}
        _run(_BACKWARD, given, ctx.lengths, ctx.scaling)
        return *(x.transpose(0, 1) for x in (dq, dk, dv)), None, None


def _dense(x: Tensor) -> Tensor:
    """x itself, where its numbers lie side by side and its strides suit words of two; else a copy."""
    return x if x.stride(2) == 1 and x.stride(0) % 2 == x.stride(1) % 2 == 0 else x.contiguous()


def _run(function: int, given: dict[str, Tensor], lengths: Sequence[int], scaling: float) -> None:
    """Do a job: a unit for each document and head of keys, or of queries; none where these have no numbers."""
    if given["q"].is_meta:
        return
    (heads, tokens, dim), kv_heads = given["q"].shape, len(given["k"])
    starts = torch.tensor((0, *lengths)).cumsum(0)
    failed = torch.zeros(1, dtype=torch.int32)
    tensors = {"starts": starts, "failed": failed, **given}
    strides = {f"{name}_{axis}": given[name].stride(i) for name in "qkv" for i, axis in enumerate(("head", "token"))}
    is_apart = function == _FORWARD and len(lengths) * kv_heads < _FEWEST * torch.get_num_threads()
    together = 1 if is_apart else heads // kv_heads
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "tokens": tokens, "together": together}
    fields = {**sizes, **strides, "scaling": scaling}
    native.run("attention", function, tensors, fields, len(lengths) * heads // together, tokens * heads * dim)
    if failed.item():
        raise CapacityError(
            explain(
                "there is no memory left for attention",
                found=f"documents of up to {max(lengths)} tokens, {heads} heads of {dim}",
                do="--max-length with fewer tokens",
            )
        )
