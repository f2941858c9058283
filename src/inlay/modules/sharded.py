"""Frozen weights of which each of several processes holds a part; the whole is gathered when it is used.

    held by p    bytes p S / n to (p + 1) S / n of the S bytes of a weight, as it is packed
    use(k)       all-gather of weight k into the one slot that all weights share, unless it is there still

Codes lie row after row, and the constants of the rows after them: a part is a run of rows in the bytes that the file has, 4 or
8 bits a weight, and that is what travels. Whatever reads a weight asks `Matrix.before_use`: layers, the output head. So one
way serves weights that are quantised and those that are not, forward and back.

All processes have to use the weights in the same order, equally often: they pass through the model together (`World.rounds`).
So a model where the tokens decide which maps are used is refused.

Not done: sending for the next weight while one is used, as `inlay.modules.streamed` does. No device has confirmed this.
"""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inlay.distributed.world import World
from inlay.errors import ConfigError, explain
from inlay.kernels import native
from inlay.modules.frozen import FrozenEmbedding, FrozenLinear
from inlay.modules.maps import maps_of
from inlay.modules.streamed import fill_, moved, slot_bytes, views
from inlay.quant.contract import Matrix, Packed, Table


class Sharded:
    """Weights that the processes of `world` hold together.

    **Attributes:**

    - `matrices`: the weights over the slot; whoever uses one has it gathered.
    - `num_bytes`: what this process holds of them.
    """

    def __init__(self, whole: Sequence[Matrix], world: World, device: torch.device):
        self._world, self._holds = world, -1
        sizes = [-(-slot_bytes(matrix) // world.size) for matrix in whole]
        self._slot = torch.empty(max(sizes, default=0) * world.size, dtype=torch.uint8, device=device)
        self._own: list[Tensor] = []
        for matrix, size in zip(whole, sizes, strict=True):
            fill_(self._slot, matrix.packed)
            self._own.append(self._slot[world.rank * size : (world.rank + 1) * size].clone())
        self.matrices = [matrix.over(views(self._slot, matrix.packed)) for matrix in whole]
        for number, matrix in enumerate(self.matrices):
            matrix.before_use = functools.partial(self._use, number)
        self.num_bytes = sum(sizes)

    def _use(self, number: int) -> None:
        native.not_again()  # what lies in the slot is another weight at another time
        if self._holds != number:
            own = self._own[number]
            self._holds = -1  # where it breaks off, nothing is there
            self._world.gather_(self._slot[: self._world.size * len(own)], own)
            self._holds = number


class Plain(Matrix):
    """A weight in the numbers that the file has."""

    def _read(self, start: int, out: Float[Tensor, "rows in"]) -> None:
        out.copy_(self.packed[""][start : start + len(out)])

    def _product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"] | None:
        return None

    def over(self, packed: Packed) -> Matrix:
        return Plain(self.shape, self.dtype, packed)


def place(matrices: Sequence[Matrix], world: World, device: torch.device) -> list[Matrix]:
    """The matrices as they are used on `device`, held together; a table, whose rows are taken one by one, by each in whole."""
    shared = [matrix for matrix in matrices if not isinstance(matrix, Table)]
    found = iter(Sharded(shared, world, device).matrices)
    return [moved(matrix, device) if isinstance(matrix, Table) else next(found) for matrix in matrices]


def shard_(model: nn.Module, world: World | None, device: torch.device) -> None:
    """Replace the linear layers of a model that are not quantised by such as the processes hold together, if there are any.

    A head whose weight is the embedding's stays: each process has that in whole.

    **Raises:**

    - `ConfigError`: there is one process; or one parameter of the model holds several maps, of which each token uses some.
    """
    if world is None:
        return
    if world.size == 1:
        what, do = "a base is held in parts by several processes", "torchrun --nproc-per-node 2 -m -- inlay train ..."
        raise ConfigError(explain(what, found="one process", do=do))
    several = [path for path, linear in maps_of(model).items() if linear.count is not None]
    if several:
        what = "a model is not held in parts where it depends on the tokens which maps are used"
        raise ConfigError(explain(what, found=several[0], do="without --shard-base"))
    tables = {m.weight.data_ptr() for m in model.modules() if isinstance(m, nn.Embedding | FrozenEmbedding)}
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, FrozenLinear) and module.weight.data_ptr() not in tables
    }
    whole = [Plain((m.out_features, m.in_features), m.weight.dtype, {"": m.matrix.detach()}) for m in layers.values()]
    world.holds_base = True
    for (path, layer), matrix in zip(layers.items(), Sharded(whole, world, device).matrices, strict=True):
        model.set_submodule(path, layer.over(matrix))
