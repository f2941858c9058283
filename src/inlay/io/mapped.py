"""Tensors as the pages of their files: read-only, shared between processes, in memory only while they are used.

A file larger than memory can be mapped whole: the system reads pages when they are touched and drops them when it needs the
room. `Pages.prefetch` has them read ahead, while something else is computed.
"""

import mmap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from inlay.io import _safe


class Pages(NamedTuple):
    """A range of a mapped file."""

    file: mmap.mmap
    start: int
    stop: int

    def prefetch(self) -> None:
        """Ask the system to read these pages soon; returns at once."""
        if hasattr(self.file, "madvise"):  # not on Windows
            start = self.start // mmap.PAGESIZE * mmap.PAGESIZE
            self.file.madvise(mmap.MADV_WILLNEED, start, self.stop - start)


class Mapped:
    """Safetensors files, each mapped when a tensor of it is first asked for."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[mmap.mmap, Tensor]] = {}

    def tensor(self, entry: _safe.TensorEntry) -> Tensor:
        """The tensor at `entry`, which must not be written to; a copy where its bytes are not aligned for its dtype."""
        _, data = self._open(entry.file)
        return _safe.view(data[entry.start : entry.stop], entry)

    def pages(self, entry: _safe.TensorEntry) -> Pages:
        """Where the bytes of `entry` lie."""
        return Pages(self._open(entry.file)[0], entry.start, entry.stop)

    def tensors(self, entries: Mapping[str, _safe.TensorEntry]) -> dict[str, Tensor]:
        """`tensor` of several entries, by the same names."""
        return {name: self.tensor(entry) for name, entry in entries.items()}

    def _open(self, path: Path) -> tuple[mmap.mmap, Tensor]:
        if path not in self._files:
            with path.open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch warns that the bytes can't be written to
                self._files[path] = (pages, torch.frombuffer(pages, dtype=torch.uint8))
        return self._files[path]
