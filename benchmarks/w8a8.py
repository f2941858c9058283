"""W8A8 beside bfloat16, by a prototype: python -m benchmarks.w8a8 step [SHAPE] [ROWS] [TOKENS] | parts |
gradients MODEL | loss MODEL DATA [SEEDS] [WAY ...]

The frozen weights of a model's body are int8 with a scale for each row, rotated by blocks of 64 (Hadamard), which spreads what
sticks out; what they are multiplied with is rotated and rounded to int8 by token, and so are the gradients of their outputs:

    W = (S q) H,   x W^T = s S (round(x H / s) q^T),   g W = t (round(g S / t) q) H

Products are torch's of int8, and what stands around them is w8a8.c, compiled here. Embeddings stay as they are, and the head
but for its logits in one way. In another, each 64 numbers of a token have a scale of their own (s and t by block): they are
rounded so and multiplied in float32, which tells what is lost, and no time.

`step`: r=16 on all linear layers, AdamW, every token supervised, two threads, either way in turn; medians of seconds and their
ratio. `loss`: what runs end at on rows that they did not see, from the same seeds. `gradients`: as `benchmarks.int8_gradients`
measures them. `parts`: what a layer's products and all around them take.

Source: QuaRot (Ashkboos et al. 2024, arXiv 2404.00456) for the rotation, LLM.int8() (arXiv 2208.07339) for the scales.
"""

import ctypes
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import torch
from torch import Tensor

from benchmarks import int8_gradients
from inlay.core import cross_entropy, product, routed
from inlay.kernels import native

TIMED = {"w8a8": 1, "w8a8, logits too": 2, "bfloat16": 0}
WAYS = {**TIMED, "w8a8, by 64": 3}
BLOCK = 64
NUM_STEPS = 7
STEPS, BATCH, LENGTH, TESTED = 60, 8, 256, 120
QUANTIZE, SCALE = range(2)


class Job(ctypes.Structure):
    """`struct job` of w8a8.c, where its fields are explained."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("x", "columns", "s", "y")],
        ("width", ctypes.c_int64),
        ("mode", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


@functools.cache
def compiled() -> ctypes.CDLL:
    """The C around the products."""
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "w8a8.so"
        flags = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
        subprocess.run(["cc", *flags, str(source), "-o", str(library), "-lm"], check=True)
        return ctypes.CDLL(str(library))


def _run(mode: int, x: Tensor, columns: Tensor | None, s: Tensor, y: Tensor) -> None:
    job = Job(
        x.data_ptr(), None if columns is None else columns.data_ptr(), s.data_ptr(), y.data_ptr(), x.shape[1], mode, 1
    )
    variant, rows, threads = native.VARIANTS.index(native.variant()), len(x), torch.get_num_threads()
    count = ctypes.c_int64
    given = (variant, 0, ctypes.byref(job), count(rows), count(max(1, rows // (8 * threads))), threads)
    compiled().inlay_w8a8_run(*given, ctypes.c_void_p(native._gomp_parallel()))


def quantized(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x (rows, width) in int8, and the scale of each row: times `columns`, or rotated."""
    whole, s = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x))
    _run(QUANTIZE, x.contiguous(), columns, s, whole)
    return whole, s


def scaled(sums: Tensor, s: Tensor, columns: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Whole sums (rows, width) times the scale of their row: and of their column, or rotated back."""
    y = torch.empty(sums.shape, dtype=torch.bfloat16) if out is None else out
    _run(SCALE, sums, columns, s, y)
    return y


class Scheme:
    """The two products of a frozen weight (out, in), and what was rounded for them."""

    def __init__(self) -> None:
        self.weights: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.last: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None

    def weight(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A weight in int8, rounded once."""
        if weight.data_ptr() not in self.weights:
            self.weights[weight.data_ptr()] = (weight, *quantized(weight.to(torch.bfloat16)))
        return self.weights[weight.data_ptr()][1:]

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
        """x W^T + b; what three maps are given is rounded once."""
        whole, rows = self.weight(weight)
        if self.last is None or self.last[0].data_ptr() != x.data_ptr() or self.last[1] != x._version:
            self.last = x, x._version, quantized(x)
        given, s = self.last[2]
        y = scaled(torch._int_mm(given, whole.T), s, rows, out)
        return y if bias is None else y.add_(bias)

    def linear_backward(self, g: Tensor, weight: Tensor) -> Tensor:
        """g W, where g takes the scales of the rows of W before it is rounded."""
        whole, rows = self.weight(weight)
        given, t = quantized(g, rows)
        return scaled(torch._int_mm(given, whole), t)


class ByBlock(Scheme):
    """The same, where each 64 numbers of a token have a scale; in float32."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
        assert out is None, "only logits have a place"
        whole, rows = self.weight(weight)
        y = (_rounded(_rotated(x.float())) @ (whole * rows[:, None]).T).to(x.dtype)
        return y if bias is None else y.add_(bias)

    def linear_backward(self, g: Tensor, weight: Tensor) -> Tensor:
        whole, rows = self.weight(weight)
        return _rotated(_rounded(g * rows) @ whole.float()).to(g.dtype)


def _rotated(x: Tensor) -> Tensor:
    """x H, for blocks of `BLOCK` columns."""
    return (x.unflatten(-1, (-1, BLOCK)) @ _hadamard()).flatten(-2)


@functools.cache
def _hadamard() -> Tensor:
    H = torch.ones(1, 1)
    while len(H) < BLOCK:
        H = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), H)
    return H / BLOCK**0.5


def _rounded(x: Tensor) -> Tensor:
    """What int8 keeps of x, with a scale for each `BLOCK` columns."""
    whole, scale = int8_gradients.quantized(x.unflatten(-1, (-1, BLOCK)))
    return (whole * scale).flatten(-2)


SCHEME, BY_BLOCK = Scheme(), ByBlock()
PLAIN = product.linear, product.linear_backward


def take(w8a8: int) -> None:
    """Make the products of a model's body by the scheme, or as Inlay does; 2: its logits too, but not their gradient.

    That has a large number at the label of a token and small ones elsewhere, which int8 would make nought: the loss of a run on
    e2e then ended at 2.42 in the place of 1.91.
    """
    SCHEME.last = None
    scheme = BY_BLOCK if w8a8 == WAYS["w8a8, by 64"] else SCHEME
    chosen = (scheme.linear, scheme.linear_backward) if w8a8 else PLAIN
    routed.linear, routed.linear_backward = product.linear, product.linear_backward = chosen  # trained, and evaluated
    cross_entropy.linear = SCHEME.linear if w8a8 == WAYS["w8a8, logits too"] else PLAIN[0]


def step(shape: str = "135m", rows: str = "4", tokens: str = "256") -> None:
    """A step by either way, in turn, of a model of some shape."""
    from benchmarks.shared_prefix import in_turn
    from inlay.text.mask import Example

    def draw(generator: torch.Generator) -> list[Example]:
        draws = torch.randint(3, 500, (int(rows), int(tokens)), generator=generator).tolist()
        return [Example(row, [True] * len(row), "row") for row in draws]

    print(f"{shape}, {rows} x {tokens} tokens")
    times, _ = in_turn(shape, "bfloat16", draw, take, TIMED, NUM_STEPS)
    for way in list(TIMED)[:-1]:
        print(f"{way}: {times[way] / times['bfloat16']:.3f} of bfloat16's time")


def parts() -> None:
    """What the products of a layer of 135m's shape take, and all that stands around them: 1,024 tokens, medians."""
    maps = (2, 576, 576), (2, 576, 192), (2, 576, 1536), (1, 1536, 576)
    taken = [[number * seconds for seconds in _of_map(width, rows)] for number, width, rows in maps]
    names = ("bfloat16", "int8 products", "rounding", "scaling")
    print(", ".join(f"{name} {1e3 * sum(some):.1f} ms" for name, *some in zip(names, *taken, strict=True)))


def _of_map(width: int, rows: int) -> list[float]:
    x, g, W = (torch.randn(*size).bfloat16() for size in ((1024, width), (1024, rows), (rows, width)))
    whole, scale = quantized(W)
    (qx, s), (qg, t) = quantized(x), quantized(g, scale)
    y, dx = torch._int_mm(qx, whole.T), torch._int_mm(qg, whole)
    return [
        _seconds(lambda: (x @ W.T, g @ W)),
        _seconds(lambda: (torch._int_mm(qx, whole.T), torch._int_mm(qg, whole))),
        _seconds(lambda: (quantized(x), quantized(g, scale))),
        _seconds(lambda: (scaled(y, s, scale), scaled(dx, t))),
    ]


def _seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(12):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times[2:])


def loss(model: str, data: str, seeds: str = "3", *some: str) -> None:
    """What a run on sentences about restaurants ends at, by some ways or all, from the same seeds."""
    import inlay
    from benchmarks import evidence

    ways = {way: WAYS[way] for way in ((*some, "bfloat16") if some else WAYS)}
    apart: dict[str, list[float]] = {way: [] for way in ways if way != "bfloat16"}
    with tempfile.TemporaryDirectory() as folder:
        train, test = (
            evidence.first(Path(data) / evidence.TASKS["e2e"][name], number, Path(folder) / f"{name}.jsonl")
            for name, number in (("train", 2000), ("test", TESTED))
        )
        for seed in range(int(seeds)):
            ends = {}
            for way, number in ways.items():
                take(number)
                base = inlay.load(model, dtype="bfloat16")
                inlay.train(
                    base, train, output=f"{folder}/{number}-{seed}", eval_fraction=0.0, max_steps=STEPS, batch_size=BATCH,
                    max_length=LENGTH, too_long="drop", seed=seed, check="off", progress=False,
                )  # fmt: skip
                ends[way] = evidence.held_out_loss(base, f"{number}-{seed}", test, LENGTH)
            for way in apart:
                apart[way].append(100 * (ends[way] / ends["bfloat16"] - 1))
            print(f"seed {seed}: " + ", ".join(f"{way} {end:.4f}" for way, end in ends.items()), flush=True)
    for way, found in apart.items():
        print(f"{way}: {', '.join(f'{one:+.2f}' for one in found)}: {mean(found):+.2f} % on average")


def gradients(model: str) -> None:
    """How far the gradients of an adapter are from float32's."""
    take(0)
    _, expected = int8_gradients.gradients(model, "float32")
    for way, number in WAYS.items():
        take(number)
        _, found = int8_gradients.gradients(model, "bfloat16")
        print(f"{way:16} {int8_gradients.likeness(found, expected)}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    {"step": step, "loss": loss, "gradients": gradients, "parts": parts}[sys.argv[1]](*sys.argv[2:])
