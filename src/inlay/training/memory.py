"""Freed memory that stays: a training step asks for the same blocks again and again.

glibc takes large blocks from the kernel and hands them back when they are freed, so that each is zeroed page by page once more
at every step. Told not to map blocks apart (M_MMAP_MAX = 0) and never to trim its heap (M_TRIM_THRESHOLD = -1), it reuses
them; the price is that a process which needs much once keeps it.
"""

import ctypes
import functools
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""The numbers of `mallopt`'s parameters in glibc's malloc.h."""


@functools.cache
def keep_freed_blocks() -> bool:
    """Make the allocator keep what is freed; whether it can, which is on glibc alone."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
