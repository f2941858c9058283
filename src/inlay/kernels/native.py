"""The compiled part of the kernels, where it is there: found, loaded, and run on torch's own threads.

The C files of this folder are an optional extension of the package: built where there is GCC or Clang, and left out in silence
where there is none. It is no Python module but a library that is called through `ctypes`, which gives up the lock of the
interpreter meanwhile. Each file is a kernel with functions of its own, which work on a job.

Threads are those of the OpenMP library that torch has loaded, entered by the address of its `GOMP_parallel`: a second library
would have threads of its own, which wait in a loop and take the cores from torch's. Where it is not found, as outside Linux,
one thread does the work.
"""

import contextlib
import ctypes
import functools
import importlib.machinery
import mmap
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from inlay.errors import UnknownNameError, explain

VARIANTS = ("plain", "avx2", "avx512", "neon")
"""The ways of the library, by the numbers that it knows them by; a later one is faster where there is a choice."""

TORCH = "torch"
"""What is in use where the library is not: the functions of `inlay.core`."""

FEWEST_NUMBERS = 1 << 16
"""Below this one thread does the work: it takes some twenty microseconds, and waking others takes some of that."""

_CHUNKS = 8
"""Shares of the work for each thread, so that one which is interrupted does not keep the others waiting."""

_forced: str | None = None


class Nf4Job(ctypes.Structure):
    """`struct job` of `nf4.c`, where its fields are explained."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("code", "code_bytes", "steps", "codes", "absmax", "nested", "map")],
        *[(name, ctypes.c_void_p) for name in ("values", "x", "own", "y")],
        *[(name, ctypes.c_int64) for name in ("first", "block", "tokens", "rows", "in")],
        *[(name, ctypes.c_float) for name in ("offset", "smallest")],
        *[(name, ctypes.c_int32) for name in ("nested_shift", "dtype")],
    )


class GgmlJob(ctypes.Structure):
    """`struct job` of `ggml.c`, where its fields are explained."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("data", "numbers", "values", "x", "y")],
        *[(name, ctypes.c_int64) for name in ("row_bytes", "in", "tokens", "rows")],
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


class PointwiseJob(ctypes.Structure):
    """`struct job` of `pointwise.c`, where its fields are explained."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("x", "w", "g", "y", "z", "s")],
        ("width", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


class AttentionJob(ctypes.Structure):
    """`struct job` of `attention.c`, where its fields are explained."""

    _fields_ = (
        *[
            (name, ctypes.c_void_p)
            for name in ("q", "k", "v", "g", "out", "dq", "dk", "dv", "failed", "logs", "starts")
        ],
        *[(name, ctypes.c_int64) for name in ("q_token", "q_head", "k_token", "k_head", "v_token", "v_head")],
        *[(name, ctypes.c_int64) for name in ("heads", "kv_heads", "dim", "tokens", "together")],
        ("scaling", ctypes.c_float),
    )


class ProductJob(ctypes.Structure):
    """`struct job` of `product.c`, where its fields are explained."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("x", "w", "y")],
        *[(name, ctypes.c_int64) for name in ("tokens", "rows", "in")],
        *[(name, ctypes.c_void_p) for name in ("added", "scales")],
    )


class CacheJob(ctypes.Structure):
    """`struct job` of `cache.c`, where its fields are explained."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("q", "k", "v", "keys", "values", "out", "tokens", "lengths", "tables")],
        *[(name, ctypes.c_int64) for name in ("q_token", "q_head", "k_token", "k_head", "v_token", "v_head")],
        *[(name, ctypes.c_int64) for name in ("heads", "kv_heads", "dim", "most", "window")],
        ("scaling", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    )


class LowRankJob(ctypes.Structure):
    """`struct added` of `low_rank.h`, where its fields are explained."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("x", "y", "tokens", "A", "B", "ranks", "scalings")],
        *[(name, ctypes.c_int64) for name in ("entries", "most", "in", "out")],
        ("dtype", ctypes.c_int32),
    )


class ThinJob(ctypes.Structure):
    """`struct job` of `thin.c`, where its fields are explained."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("x", "g", "y", "h", "A", "B", "dA", "dB", "words")],
        *[(name, ctypes.c_int64) for name in ("tokens", "in", "out", "r")],
        ("scaling", ctypes.c_float),
    )


KERNELS = {
    "nf4": Nf4Job,
    "ggml": GgmlJob,
    "pointwise": PointwiseJob,
    "attention": AttentionJob,
    "product": ProductJob,
    "cache": CacheJob,
    "low_rank": LowRankJob,
    "thin": ThinJob,
}
"""The kernels of the library and their jobs."""


def variant() -> str:
    """Which way is in use: one of `VARIANTS`, or `TORCH`."""
    if _forced is not None:
        return _forced
    known = supported()
    return known[-1] if known else TORCH


@functools.cache
def supported() -> tuple[str, ...]:
    """The `VARIANTS` that this processor can run, the fastest last; none where there is no library."""
    library = _load()
    if isinstance(library, str):
        return ()
    return tuple(name for number, name in enumerate(VARIANTS) if library.inlay_supports(number))


def multiplies_bfloat16() -> bool:
    """The library is in use with instructions that multiply bfloat16: for attention, for products
    of few tokens, and for an adapter's with many."""
    library = _load()
    return variant() == "avx512" and not isinstance(library, str) and bool(library.inlay_multiplies_bfloat16())


@functools.cache
def _has_tiles() -> bool:
    library = _load()
    return not isinstance(library, str) and bool(library.inlay_has_tiles())


def has_tiles() -> bool:
    """The same with registers of whole tiles, which the system has granted."""
    return multiplies_bfloat16() and _has_tiles()


@functools.cache
def widens_bfloat16() -> bool:
    """Many tokens are multiplied sooner in float32 than in bfloat16, though there are instructions for both."""
    library = _load()
    return multiplies_bfloat16() and not isinstance(library, str) and bool(library.inlay_widens_bfloat16())


def why_not() -> str | None:
    """Why the library is not in use; None where it is."""
    library = _load()
    return library if isinstance(library, str) else None


@contextlib.contextmanager
def only(name: str) -> Iterator[None]:
    """Within it, this way is in use in the whole process; for tests and measurements.

    **Raises:**

    - `UnknownNameError`: this processor has no such variant.
    """
    global _forced
    if name not in (*supported(), TORCH):
        raise UnknownNameError(
            explain("no such way on this processor", found=repr(name), do=f"one of {', '.join((*supported(), TORCH))}")
        )
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def run(
    kernel: str, function: int, tensors: Mapping[str, torch.Tensor], fields: Mapping[str, float], total: int, size: int
) -> None:
    """Do the units 0 <= i < total of a job, `size` numbers in all, on as many threads as torch uses.

    The job of a kernel's function has these fields, and of these tensors the addresses of their data.

    There must be a library: `variant` is not `TORCH`.
    """
    do(kernel, function, KERNELS[kernel](**fields, **{name: t.data_ptr() for name, t in tensors.items()}), total, size)


def do(kernel: str, function: int, job: ctypes.Structure, total: int, size: int, *, keep: object = None) -> None:
    """`run` for a job that is made already; what its addresses point to has to live as long as this takes.

    **Arguments:**

    - `keep`: what has to live for that and is no tensor, for whoever does the job again.
    """
    threads = torch.get_num_threads() if size >= FEWEST_NUMBERS else 1
    chunk = max(1, -(-total // (_CHUNKS * threads)))
    if (noted := getattr(_local, "noted", None)) is not None:
        noted.append(Done(kernel, function, job, total, chunk, threads, keep))
    _function(kernel)(_NUMBERS[variant()], function, ctypes.byref(job), total, chunk, threads, _gomp_parallel())


class Done(NamedTuple):
    """A job that was done, and how."""

    kernel: str
    function: int
    job: ctypes.Structure
    total: int
    chunk: int
    threads: int
    keep: object


_local = threading.local()


@contextlib.contextmanager
def noting() -> Iterator[list[Done | None]]:
    """Within it, the jobs that this thread does, as it does them; None for what has to be asked for each time (`not_again`)."""
    before, _local.noted = getattr(_local, "noted", None), list[Done | None]()
    try:
        yield _local.noted
    finally:
        _local.noted = before


def not_again() -> None:
    """What is done now is more than jobs: whoever notes them must not only do those again."""
    if (noted := getattr(_local, "noted", None)) is not None:
        noted.append(None)


class _Step(ctypes.Structure):
    """`struct step` of `program.c`."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("run", "job")],
        *[(name, ctypes.c_int64) for name in ("total", "chunk")],
        *[(name, ctypes.c_int32) for name in ("variant", "function", "threads", "padding")],
    )


class Program:
    """Jobs to be done again, one after the other, in one call: what their addresses point to has to live as long as this."""

    def __init__(self, jobs: Sequence[Done]):
        self._jobs = tuple(jobs)
        number, library = _NUMBERS[variant()], _load()
        assert not isinstance(library, str), library
        steps = []
        for one in self._jobs:
            addresses = (
                ctypes.cast(library[f"inlay_{one.kernel}_run"], ctypes.c_void_p).value,
                ctypes.addressof(one.job),
            )
            steps.append(_Step(*addresses, one.total, one.chunk, number, one.function, one.threads))
        self._given = (_Step * len(steps))(*steps), ctypes.c_int64(len(steps)), ctypes.c_void_p(_gomp_parallel())
        self._run = library.inlay_program_run

    def __call__(self) -> None:
        self._run(*self._given)


_NUMBERS = {name: number for number, name in enumerate(VARIANTS)}


@functools.cache
def _function(kernel: str) -> Callable[..., None]:
    """What runs the jobs of a kernel."""
    library = _load()
    assert not isinstance(library, str), library
    run = library[f"inlay_{kernel}_run"]
    number, count = ctypes.c_int, ctypes.c_int64
    run.argtypes = [number, number, ctypes.c_void_p, count, count, number, ctypes.c_void_p]
    run.restype = None
    return run


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    paths = [Path(__file__).with_name(f"_kernels{suffix}") for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return "it was not built when inlay was installed, which takes GCC or Clang"
    try:
        library = ctypes.CDLL(str(path))
        fits = all(library[f"inlay_{name}_job_bytes"]() == ctypes.sizeof(job) for name, job in KERNELS.items())
        fits = fits and library.inlay_program_step_bytes() == ctypes.sizeof(_Step)
    except (OSError, AttributeError) as error:  # of another processor, or of another version
        return f"{path.name} can't be loaded: {error}"
    if not fits:
        return f"{path.name} was built from another version of its files: install inlay again"
    return library


def huge_pages(tensor: torch.Tensor) -> None:
    """Ask for pages of two megabytes where the data of a new tensor lies; where the system has none, nothing happens.

    The system clears memory when it is first written to: in pages of four kilobytes that takes it several times as long as
    it takes a kernel to fill them.
    """
    if sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = tensor.data_ptr() + tensor.nbytes - start
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(max(0, size)), mmap.MADV_HUGEPAGE)


@functools.cache
def _gomp_parallel() -> int | None:
    """The address of the function that torch's OpenMP library starts its threads with.

    First among the symbols that every library sees, as torch's own calls are resolved; then among those that torch's sees.
    """
    if sys.platform != "linux":
        return None
    for name in (None, f"{torch.__path__[0]}/lib/libtorch_cpu.so"):
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p).value
    return None
