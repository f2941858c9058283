"""A call that is made again and again with other numbers in the same places: its jobs are noted once, and done again in one go.

Between its kernels a layer of a model does little but look at tensors in other shapes. What is asked of torch within the call
is watched: views and new tensors are nothing that has to be done again, sums are done again by a kernel of ours with the same
bits, and anything else is a reason to make the call as usual.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inlay.kernels import native, pointwise, product

_aten = torch.ops.aten
_NEW = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}
"""What makes tensors and fills them with nothing."""

_SUMS = {_aten.add.Tensor, _aten.add_.Tensor}


class _Watch(TorchDispatchMode):
    """What torch is asked for: the tensors that were made, and what can't be done again."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []
        self.strange: Any = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        sums = func in _SUMS and not kwargs and _is_sum(*args)
        if sums:
            out = args[0] if func is _aten.add_.Tensor else torch.empty_like(args[0])
            pointwise.add_into(out, *args)
        else:
            out = func(*args, **(kwargs or {}))
            self.strange = self.strange or (None if func.is_view or func in _NEW else func)
        self.made.append(out)
        return out


def _is_sum(x: Any, w: Any = None, *more: Any) -> bool:
    """A sum of two tensors of one shape, or of a row and every row of a tensor, that `pointwise` takes."""
    if more or not isinstance(x, Tensor) or not isinstance(w, Tensor) or not pointwise.available(x, w):
        return False
    fits = x.shape == w.shape or (w.dim() == 1 and w.shape == x.shape[-1:])
    return fits and x.is_contiguous() and w.is_contiguous()


def recorded(call: Callable[[], Any]) -> tuple[Any, Callable[[], None] | None]:
    """(what a call returns, what makes it again): with whatever its tensors hold then, into the tensors that it has returned.

    None where it does something that can't be done again. All that the call reads beside its tensors has to stay as it is, and
    so has the place of every tensor.
    """
    watch = _Watch()
    with native.noting() as jobs, watch:
        out = call()
    done = [job for job in jobs if job is not None]
    if watch.strange is not None or len(done) < len(jobs) or native.variant() == native.TORCH:
        return out, None
    program, made = native.Program(_joined(done)), watch.made

    def again(made: list[Any] = made) -> None:  # which keeps the tensors that were made
        program()

    return out, again


def _joined(jobs: Sequence[native.Done]) -> list[native.Done]:
    """The jobs with what adapters add to a product in one go with it, with the same bits: half as many to share out."""
    joined: list[native.Done] = []
    for one in jobs:
        both = product.with_added(joined[-1], one) if joined else None
        joined[-1:] = [both] if both else [*joined[-1:], one]
    return joined
