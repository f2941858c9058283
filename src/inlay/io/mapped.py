"""Tensors as the pages of their files: read-only, shared between processes, in memory only while they are used.

A file larger than memory can be mapped whole: the system reads pages when they are touched and drops them when it needs the
room. `Pages.prefetch` has them read ahead, while something else is computed; `Pages.release` says which to drop.
"""

import mmap
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from inlay.io import safetensors


class _Descriptor:
    """An open file that is closed when nobody holds it any more."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


class Pages(NamedTuple):
    """A range of a mapped file."""

    mapped: mmap.mmap
    file: _Descriptor
    start: int
    stop: int

    def prefetch(self) -> None:
        """Ask the system to read these pages soon; returns at once."""
        if hasattr(self.mapped, "madvise"):  # not on Windows
            start = self.start // mmap.PAGESIZE * mmap.PAGESIZE
            self.mapped.madvise(mmap.MADV_WILLNEED, start, self.stop - start)

    def release(self) -> None:
        """Tell the system that these pages are not used for a while: it may take their memory before that of others."""
        start = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self.stop // mmap.PAGESIZE * mmap.PAGESIZE - start
        if size > 0 and hasattr(os, "posix_fadvise"):  # only where there is more than a page, and on Linux
            self.mapped.madvise(mmap.MADV_DONTNEED, start, size)
            os.posix_fadvise(self.file.number, start, size, os.POSIX_FADV_DONTNEED)


class Mapped:
    """Safetensors files, each mapped when a tensor of it is first asked for."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[mmap.mmap, _Descriptor, Tensor]] = {}

    def tensor(self, entry: safetensors.TensorEntry) -> Tensor:
        """The tensor at `entry`, which must not be written to; a copy where its bytes are not aligned for its dtype."""
        *_, data = self._open(entry.file)
        return safetensors.view(data[entry.start : entry.stop], entry)

    def pages(self, entry: safetensors.TensorEntry) -> Pages:
        """Where the bytes of `entry` lie."""
        pages, file, _ = self._open(entry.file)
        return Pages(pages, file, entry.start, entry.stop)

    def tensors(self, entries: Mapping[str, safetensors.TensorEntry]) -> dict[str, Tensor]:
        """`tensor` of several entries, by the same names."""
        return {name: self.tensor(entry) for name, entry in entries.items()}

    def _open(self, path: Path) -> tuple[mmap.mmap, _Descriptor, Tensor]:
        if path not in self._files:
            file = _Descriptor(path)
            pages = mmap.mmap(file.number, 0, access=mmap.ACCESS_READ)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch warns that the bytes can't be written to
                self._files[path] = (pages, file, torch.frombuffer(pages, dtype=torch.uint8))
        return self._files[path]
