"""What a micro-batch takes, counted: it goes through the model, forward and backward, where tensors have shapes and no numbers.

    live = sum of the storages that are alive,   heap = how far they reach where they come and go in this order (`reach`)

All is the run's own code on torch's meta device: its tasks, its adapter, the functions that compute in place of a model's. So
what waits for the backward pass, what passes within a layer and what gradients take are those of the run, whatever the model
and the method are; no weight is read, and it takes a fraction of a second. What is asked of numbers gets an answer: a mask is
that of packed rows, there is one of whatever is looked for, any other condition on numbers does not hold.

A model whose own code can't do without numbers is not counted: `counted` says None then.
"""

import copy
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from inlay import quant
from inlay.base.base import Base
from inlay.base.heads import with_heads
from inlay.core.recompute import recomputing
from inlay.methods import hooks
from inlay.methods.contract import Method
from inlay.model import attention
from inlay.model.adapter import Adapter
from inlay.model.batch import is_packing
from inlay.modules.frozen import FrozenLinear, freeze_
from inlay.modules.fused import fuse_, fuse_rotation_
from inlay.planning.heap import reach
from inlay.quant.contract import Matrix
from inlay.runs.work import is_packed

NAME = "counted"
"""What the adapter is called meanwhile."""

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "_linear_pointwise", "linear")
"""The operations of torch that are products of matrices."""


class Counted(NamedTuple):
    """What a micro-batch takes."""

    live_bytes: int
    """The most that is alive at once."""
    heap_bytes: int
    """The heap that it comes to."""
    num_products: int
    """Of products of different shapes."""


def stand_in(base: Base, method: Method, scheme: str | None) -> Base:
    """An outline (`inlay.planning.outline`) that computes as the run will: frozen, fused, with a new adapter that is trained.

    **Arguments:**

    - `base`: an outline; nothing of it changes.
    - `scheme`: how the linear layers of the base are, or will be, quantised.
    """
    model: Any = copy.deepcopy(base.model)
    checkpoint = base.checkpoint
    stored = checkpoint.dtype if checkpoint.tensors else base.dtype
    model.to(stored if stored == base.dtype or base.dtype == torch.float32 else base.dtype)
    freeze_(model, base.dtype)
    if scheme is not None:
        _quantize_(model, base, scheme)
    fuse_(model, base.dtype)
    heads = (base.heads, base.fresh_heads)
    made = Base(model, base.tokenizer, checkpoint, base.dtype, base.is_mapped, scheme, spec=base.spec, heads=heads)
    if is_packed(base):
        attention.adopt_(model, made.router)
        fuse_rotation_(model.base_model, is_packing)
    whole = with_heads(method, made.heads, made.maps)
    wanted = made.layout.wanted(whole)
    params = {path: {name: torch.empty(s, device="meta") for name, s in own.items()} for path, own in wanted.items()}
    shared = hooks.shared(whole, [made.maps[path].one for path in params if path in made.maps])
    made.put(Adapter(NAME, whole, params, shared=shared)).train_()
    return made


def counted(made: Base, rows: Sequence[Any], recompute: bool = False) -> Counted | None:
    """What these rows take at most beside what a `stand_in` holds; None: its code can't do without numbers.

    **Arguments:**

    - `recompute`: as `inlay.Settings` has it.
    """
    live = _Live(len(rows) * made.adapters[NAME].num_virtual)
    try:
        with made.using(NAME), _all_chosen(), _Fused(), live:
            with recomputing(recompute):
                loss = made.spec.loss_of(made, rows)
            loss.backward()
    except Exception:  # any model's code may ask numbers in any way
        return None
    finally:
        for tensor in made.adapters[NAME].tensors():
            tensor.grad = None
    return Counted(live.most, reach(live.events), len(live.products))


def _all_chosen() -> Any:
    from torch.fx.experimental import _config

    settings: Any = _config  # a module that torch makes anew
    return settings.patch(meta_nonzero_assume_all_nonzero=True)


class _Live(TorchDispatchMode):
    """The bytes of the storages that operations make, while they are alive, and the most so far."""

    def __init__(self, num_virtual: int = 0) -> None:
        super().__init__()
        self.now = self.most = 0
        self._num_virtual = num_virtual
        self.events: list[tuple[int, int | None]] = []
        """(The number of a storage, its bytes where it comes to be and None where it goes.)"""
        self.products: set[tuple[Any, ...]] = set()
        self._known: set[int] = set()
        self._found: set[int] = set()
        """What says whether there is any of something."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return int(args[0].untyped_storage()._cdata in self._found)
        if func is torch.ops.aten.equal.default and args[0].is_meta:
            return True
        if func is torch.ops.aten.nonzero.default and args[0].is_meta and args[0].ndim == 2 and self._num_virtual:
            return torch.empty(self._num_virtual, 2, dtype=torch.int64, device="meta")
        if func.overloadpacket.__name__ in PRODUCTS:
            self.products.add((func, *(tuple(x.shape) for x in args if isinstance(x, Tensor))))
        made = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages(pytree.tree_leaves((args, kwargs)))}
        for storage in _storages(made if isinstance(made, tuple | list) else (made,)):
            if storage._cdata not in given:  # a view of what was there before is no more memory
                self._note(storage)
                self._found.update([storage._cdata] if func is torch.ops.aten.any.default else ())
        self.most = max(self.most, self.now)
        return made

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            weakref.finalize(storage, self._dropped, key, len(self.events), size)
            self.events.append((len(self.events), size))

    def _dropped(self, key: int, number: int, size: int) -> None:
        self._known.discard(key)
        self._found.discard(key)
        self.now -= size
        self.events.append((number, None))


def _storages(values: Sequence[Any]) -> list[Any]:
    return [value.untyped_storage() for value in values if isinstance(value, Tensor)]


class _Fused(TorchFunctionMode):
    """Attention holds what torch's fused kernels hold: without numbers torch takes its plain way, with all weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and all(x.is_meta for x in args[:3]):
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, logs = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, logs)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


class _Unread(Matrix):
    """A quantised weight whose rows are made of nothing."""

    def _read(self, start: int, out: Tensor) -> None:
        out.zero_()

    def _product(self, x: Tensor) -> None:
        return None

    def over(self, packed: Any) -> Matrix:
        return _Unread(self.shape, self.dtype, packed)


def _quantize_(model: Any, base: Base, scheme: str) -> None:
    """Hold the weights of linear layers as a scheme would, but for the head's."""
    how = quant.find(scheme)
    for path, linear in base.linears.items():
        module = model.get_submodule(path)
        if path == base.head or not isinstance(module, FrozenLinear):
            continue
        shape, dtype = (linear.out_features, linear.in_features), torch.bfloat16
        layout = how.layout(shape, dtype)
        packed = {
            key: torch.zeros(size, dtype=kind, device="meta" if size else "cpu") for key, (kind, size) in layout.items()
        }
        try:
            matrix = how.open(packed)
        except Exception:  # it looks at more of its numbers
            matrix = _Unread(shape, dtype, packed)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module.over(matrix))
