"""The memory of this process: what it has held, and that freed blocks stay until they are asked for.

glibc takes large blocks from the kernel and hands them back when they are freed, so that each is zeroed page by page once more
at every step. Told not to map blocks apart (M_MMAP_MAX = 0) and never to trim its heap (M_TRIM_THRESHOLD = -1), it reuses
them; the price is that a process which needs much once keeps it, and that blocks of ever other sizes leave holes: after some
micro-batches of other lengths the heap is up to half as large again as all that was in use at once. `release_freed_blocks`
hands the pages of these holes back.

What a product of some shape needs, its code and its plan, is kept twice: by oneDNN, and by torch over it, about 250 kB each,
for 1,024 shapes. A run whose micro-batches are all of other lengths meets some 25 new shapes in each, so that these grow by
10 MB a micro-batch up to half a gigabyte.
"""

import contextlib
import ctypes
import functools
import gc
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""The numbers of `mallopt`'s parameters in glibc's malloc.h."""

PRODUCT_SHAPES = 128
"""For as many shapes of products what they need is kept: those of one micro-batch are up to 50."""


@functools.cache
def keep_freed_blocks() -> bool:
    """Make the allocator keep what is freed; whether it can, which is on glibc alone."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


def release_freed_blocks() -> bool:
    """Hand the pages of freed blocks back to the kernel; whether that can be done. What takes their place is zeroed anew."""
    if platform.libc_ver()[0] != "glibc":
        return False
    ctypes.CDLL(None).malloc_trim(0)
    return True


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Within the block the garbage collector does not scan what exists at its beginning: a loaded base is so many objects that
    a full collection takes 0.2 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def keep_few_products() -> None:
    """Keep what a product needs for `PRODUCT_SHAPES` shapes; before the first one, as both ask the environment only then."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PRODUCT_SHAPES))


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far.

    From /proc where there is one: the figure of `getrusage` begins with what the process held that started this one.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    with contextlib.suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return psutil.Process().memory_info().rss


def rss_bytes() -> int:
    """The memory that this process holds now, mapped pages among it."""
    return psutil.Process().memory_info().rss


def virtual_bytes() -> int:
    """The addresses that this process has taken, used or not: what `ulimit -v` counts."""
    return psutil.Process().memory_info().vms
