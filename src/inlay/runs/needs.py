"""What a run needs, by the shapes of its model and the sizes of its micro-batches: no weight is read.

    memory = program + base + adapter + products + the heap of the longest micro-batch
    seconds = operations / (products per second of this machine * PART)

program       what the process holds once its libraries are loaded
base          the pages of its weights, which every step touches; the table of an untied embedding is not, but for a few rows
adapter       per weight trained: itself, two moments of AdamW, the copy that is best so far, in float32
products      what one of some shape needs is kept, for `inlay.process.PRODUCT_SHAPES` shapes; every length has its own
micro-batch   what waits for the backward pass, what passes within a layer, gradients, and the holes between them:
              `inlay.planning.counted` counts it

Operations are products: two per weight and token forward, two more for the gradient of the inputs, which need no gradient of
frozen weights; six per weight of an adapter; attention's grow with the square of a row.
"""

import math
from typing import NamedTuple

import torch

from inlay import quant
from inlay.base.base import Base
from inlay.core.cross_entropy import CHUNK_ROWS
from inlay.core.product import TILE_BYTES, product_dtype
from inlay.methods.contract import Method
from inlay.modules.frozen import Quantized
from inlay.process import PRODUCT_SHAPES
from inlay.runs.machine import products_per_second
from inlay.runs.work import Part, Work, is_packed

BYTES_PER_WEIGHT = 16
"""Of a trained weight in float32: itself, the two moments, and the copy that is kept."""

MOMENTS_BYTES_PER_WEIGHT = 8
"""Of these, what is there from the first step on."""

STATE_BYTES_PER_WEIGHT = 16
"""Of the state that a run keeps on the disk: all of that."""

HEAP = 1.3
"""Where a micro-batch can't be counted: its heap, as part of what is in use at once in it."""

KEPT = 1.6
"""Where a micro-batch can't be counted: numbers that wait for the backward pass, as a multiple of what the linear maps of the
layers say. It is 1.5 in a Llama with a LoRA on all of its maps."""

PART = 0.75
"""Of the rate of products alone, what a step reaches: between them lie norms, attention and Python. A rough figure, of
runs beside other programs: what a run measures of itself takes its place."""

PRODUCT_BYTES = {torch.bfloat16: 650 << 10, torch.float32: 400 << 10}
"""What is kept of products of one shape, by what a process holds after ever more lengths of rows."""

PROGRAM_BYTES = 60 << 20
"""What a run loads beside what a plan has loaded: the model's own code, kernels, the optimiser."""


class Taken(NamedTuple):
    """What a micro-batch takes."""

    heap_bytes: float
    num_products: int
    """Of different shapes."""


class Memory(NamedTuple):
    """Where the memory of a run goes, in bytes."""

    program: int
    base: int
    adapter: int
    products: int
    transient: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def memory(base: Base, scheme: str | None, weights: int, taken: Taken, num_lengths: int, program: int) -> Memory:
    """The most that a run holds.

    **Arguments:**

    - `scheme`: how the linear layers of the base are, or will be, quantised.
    - `weights`: how many the adapter trains.
    - `taken`: by the micro-batch with the most tokens; `num_lengths`: how many lengths micro-batches have.
    - `program`: what the process holds without all of this.
    """
    num_kept = min(PRODUCT_SHAPES, num_lengths * taken.num_products)
    products = num_kept * most_kept_bytes(base) // PRODUCT_SHAPES
    return Memory(program, base_bytes(base, scheme), BYTES_PER_WEIGHT * weights, products, int(taken.heap_bytes))


def most_kept_bytes(base: Base) -> int:
    """What is kept of products at most."""
    return PRODUCT_SHAPES * PRODUCT_BYTES[product_dtype(torch.empty(0, dtype=base.dtype))]


def about(base: Base, part: Part) -> Taken:
    """About what a micro-batch takes that can't be counted."""
    linears = [linear.out_features for path, linear in base.linears.items() if path != base.head]
    numbers = KEPT * sum(linears) + 8 * max(linears, default=0)
    head = base.linears.get(base.head or "")
    said = (
        0 if head is None else head.out_features * (min(part.targets, CHUNK_ROWS) if is_packed(base) else part.tokens)
    )
    live = TILE_BYTES + base.dtype.itemsize * (numbers * part.tokens + 3 * said)
    return Taken(HEAP * live, PRODUCT_SHAPES)


def base_bytes(base: Base, scheme: str | None) -> int:
    """The pages of the base's weights that a step touches. Those that are quantised already, or lie in a GGUF file, say what
    they take."""
    checkpoint, model = base.checkpoint, base.model
    total = sum(parameter.numel() for parameter in model.parameters())
    linears = {path: linear.in_features * linear.out_features for path, linear in base.linears.items()}
    held = _held_bytes(base)
    packed = {path: shape for path, shape in linears.items() if path != base.head} if scheme and not held else {}
    stored = (checkpoint.dtype if checkpoint.tensors else base.dtype).itemsize
    plain = stored * (total - sum(packed.values()))
    is_tied = base.head is not None and base.head in base.layout.tied
    if base.adapters.table is not None and not is_tied and base.head is not None:
        plain -= stored * linears.get(base.head, 0)  # an embedding of the head's size, of which few rows are read
    return max(0, plain) + (held or packed_bytes(base, scheme))


def _held_bytes(base: Base) -> int:
    """What the quantised weights of a base take that is loaded; its parameters are the others."""
    return sum(matrix.num_bytes for matrix in {m.matrix for m in base.model.modules() if isinstance(m, Quantized)})


def packed_bytes(base: Base, scheme: str | None) -> int:
    """What the linear layers of the base take, quantised; 0 where they are not."""
    if scheme is None:
        return 0
    how = quant.find(scheme)
    shapes = [(linear.out_features, linear.in_features) for path, linear in base.linears.items() if path != base.head]
    return sum(how.num_bytes(shape, torch.bfloat16) for shape in shapes)


def adapter_weights(base: Base, method: Method) -> int:
    """How many weights the files of an adapter hold."""
    return sum(math.prod(shape) for own in base.layout.wanted(method).values() for shape in own.values())


class Seconds(NamedTuple):
    """How long a run computes."""

    steps: float
    evaluations: float


def seconds(base: Base, weights: int, work: Work) -> Seconds:
    """How long the steps and evaluations of a run take, by the rate of this machine's products, which is measured here."""
    like = torch.empty(1, dtype=base.dtype)
    dtype = product_dtype(like)
    rate = PART * products_per_second(dtype, base.dtype)
    body = sum(li.in_features * li.out_features for path, li in base.linears.items() if path != base.head)
    head = base.linears.get(base.head or "")
    said = 0 if head is None else head.in_features * head.out_features
    layers = getattr(base.model.config.get_text_config(), "num_hidden_layers", 1)
    width = getattr(base.model.config.get_text_config(), "hidden_size", 0)

    def operations(total: "dict[str, float]", passes: int, adapter: int) -> float:
        heads = total["targets"] if is_packed(base) else total["tokens"]
        attention = 2 * layers * width * total["squares"]
        return (
            passes * (2 * body * total["tokens"] + 2 * said * heads + attention) + adapter * weights * total["tokens"]
        )

    steps = {name: work.total(name) for name in ("tokens", "squares", "targets")}
    evaluated = {name: work.evaluations(name) for name in ("tokens", "squares", "targets")}
    return Seconds(operations(steps, 2, 6) / rate, operations(evaluated, 1, 2) / rate)
