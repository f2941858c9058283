"""Mapped files that become shorter while they are computed with: the missing pages read as zeros, and it is noticed.

Where a process touches a page of a mapped file that lies beyond the file's end, the system sends it SIGBUS, and it ends without
a word, whatever it had learned. Here that signal is answered: the rest of the mapping is replaced by pages of zeros, so that
what is under way runs to its end; whoever uses the result checks `inlay.io.fingerprint.check_unchanged` first, which refuses
it.

Linux alone, whose layouts of `sigaction` and `siginfo_t` are used. A fault at any other address goes to whoever answered
before. The answer runs within Python, for which the faulting thread takes the interpreter's lock: operations of torch and our
kernels let go of it while they compute.
"""

import ctypes
import mmap
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SA_SIGINFO, _SA_NODEFER = 0x4, 0x40000000
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 0x2, 0x10, 0x20
_ADDRESS_OFFSET = 16
"""Where siginfo_t has the address of the fault, in 64-bit processes."""

_guarded: set[str] = set()
_kept: list[Any] = []
"""What the signal's answer needs for as long as the process lives: the callback, and the action that was there before."""

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def guard(files: Iterable[Path]) -> None:
    """From now on a fault in a mapping of one of these files gives zeros. Does nothing where the system is not known."""
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    _guarded.update(str(file.resolve()) for file in files)
    if not _kept:
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        before = _Action()
        callback = _Handler(lambda number, info, context: _answer(libc, before, info))
        action = _Action(ctypes.cast(callback, ctypes.c_void_p).value)
        action.flags = _SA_SIGINFO | _SA_NODEFER
        _kept.extend((callback, before))
        libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(before))


def _answer(libc: Any, before: _Action, info: int) -> None:
    """Put zeros from the page of the fault to the end of its mapping, or leave the fault to who answered before."""
    is_answered = False
    try:
        address = ctypes.c_size_t.from_address(info + _ADDRESS_OFFSET).value
        start, stop = address // mmap.PAGESIZE * mmap.PAGESIZE, _end(address)
        flags = _MAP_PRIVATE | _MAP_FIXED | _MAP_ANONYMOUS
        is_answered = stop is not None and libc.mmap(start, stop - start, mmap.PROT_READ, flags, -1, 0) == start
    finally:  # else the same fault would come again and again
        if not is_answered:
            libc.sigaction(signal.SIGBUS, ctypes.byref(before), None)


def _end(address: int) -> int | None:
    """Where the mapping of a guarded file ends that `address` lies in; None where it lies in none."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            place, *_, path = line.rstrip("\n").split(maxsplit=5)
            start, stop = (int(part, 16) for part in place.split("-"))
            if start <= address < stop:
                return stop if path.removesuffix(" (deleted)") in _guarded else None
    return None
