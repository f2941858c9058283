"""Large products in float32 by the faster of the two libraries that torch has for them.

    BLAS      what `torch.mm` calls: MKL, where torch was built for x86
    oneDNN    what torch multiplies bfloat16 with, and float32 where it is asked to

MKL has its fastest kernels for Intel's processors alone: on AMD's oneDNN is ahead in the same process, by a tenth where a core
multiplies 32 numbers at a time, to more than twice where it multiplies 64. Elsewhere both are as fast, or there is one alone.
So oneDNN is taken on AMD's, BLAS elsewhere, unless a trial of some milliseconds, the first time that a product is
large enough to matter, finds the other one clearly faster: noise can't decide.

They add up in different orders: what a run comes to depends on the choice. It holds for as long as the process; a run keeps
its name with its state, and takes it again when it goes on (`use_`).
"""

import contextlib
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BLAS, ONEDNN = "BLAS", "oneDNN"

FEWEST = 1 << 23
"""Products of fewer multiplications are torch's own: to enter oneDNN takes some fifteen microseconds."""

CLEARLY = 1.25
"""How many times as fast as the usual one the other has to be in the trial."""

AMD = ("AuthenticAMD", "HygonGenuine")
"""What processors call their makers."""

TOKENS, WIDTH, ROUNDS = 256, 512, 7
"""Of the products that are tried, and how often: the fastest of each counts."""

_lock = threading.Lock()
_chosen: str | None = None


def matmul(x: Float[Tensor, "m k"], w: Float[Tensor, "k n"]) -> Float[Tensor, "m n"]:
    """x w, without gradients."""
    return _onednn(x, w) if is_ours(x, w) else x @ w


def is_ours(x: Tensor, w: Tensor) -> bool:
    """oneDNN takes the product of these."""
    if x.dtype != torch.float32 or w.dtype != torch.float32 or not (x.is_cpu and w.is_cpu):
        return False
    return x.numel() * w.shape[1] >= FEWEST and chosen() == ONEDNN


def chosen() -> str:
    """The library that is in use."""
    global _chosen
    with _lock:
        if _chosen is None:
            _chosen = _faster()
        return _chosen


def use_(name: str) -> None:
    """Take this library from now on, in the whole process, where torch has it."""
    global _chosen
    if name == BLAS or (name == ONEDNN and _works()):
        with _lock:
            _chosen = name


@contextlib.contextmanager
def only(name: str) -> Iterator[None]:
    """Within it this library is in use in the whole process; for tests and measurements."""
    global _chosen
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def _onednn(x: Tensor, w: Tensor) -> Tensor:
    made: Any = torch.ops.mkldnn._linear_pointwise(x, w.T, None, "none", [], "")
    return made


def _works() -> bool:
    """torch has oneDNN, and it multiplies."""
    x, w = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4)
    try:
        return torch.backends.mkldnn.is_available() and torch.equal(_onednn(x, w), x @ w)
    except (AttributeError, RuntimeError):  # another version of torch, or one that was built without
        return False


def _faster() -> str:
    """The usual one of this processor, unless a trial says otherwise."""
    if not _works():
        return BLAS
    usual, other = (ONEDNN, BLAS) if _maker() in AMD else (BLAS, ONEDNN)
    seconds = _seconds()
    return other if seconds[other] * CLEARLY < seconds[usual] else usual


@torch.no_grad()
def _seconds() -> dict[str, float]:
    """What a product takes by each library, on one thread and in its own time: however busy others are."""
    x, w = torch.ones(TOKENS, WIDTH), torch.ones(WIDTH, WIDTH)
    ways: dict[str, Callable[[], Tensor]] = {BLAS: lambda: x @ w.T, ONEDNN: lambda: _onednn(x, w.T)}
    best, threads = dict.fromkeys(ways, float("inf")), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS):
            for name, way in ways.items():
                begun = time.thread_time()
                way()
                best[name] = min(best[name], time.thread_time() - begun)
    finally:
        torch.set_num_threads(threads)
    return best


def _maker() -> str:
    """Who made this processor, as it says itself; empty where that is not known."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return platform.processor().rpartition(" ")[2]  # Windows has it last
