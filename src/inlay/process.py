"""The memory of this process: what it has held, and that freed blocks stay.

glibc takes large blocks from the kernel and hands them back when they are freed, so that each is zeroed page by page once more
at every step. Told not to map blocks apart (M_MMAP_MAX = 0) and never to trim its heap (M_TRIM_THRESHOLD = -1), it reuses
them; the price is that a process which needs much once keeps it.
"""

import contextlib
import ctypes
import functools
import platform
import sys
from pathlib import Path

import psutil

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""The numbers of `mallopt`'s parameters in glibc's malloc.h."""


@functools.cache
def keep_freed_blocks() -> bool:
    """Make the allocator keep what is freed; whether it can, which is on glibc alone."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))


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
