"""Rows as tokens in a file that nobody else sees: they are written once, in their order, and read where they are asked for.

A token takes 5 bytes there, and a row 20 in memory. The file has no name, so that it goes with the process, however that ends.
"""

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inlay.disk import OnDisk
from inlay.io.output import refusals
from inlay.streams.places import Places
from inlay.text.mask import Example

FOLDER = "/var/tmp"  # of temporary files that are kept on the disk: others may be kept in memory
"""Where the file lies, unless TMPDIR says otherwise."""

_BUFFERED = 1 << 20
"""Bytes that are written at a time."""


class Samples(OnDisk[Example]):
    """Examples in the order in which they were added."""

    def __init__(self) -> None:
        folder = None if "TMPDIR" in os.environ or not os.path.isdir(FOLDER) else FOLDER
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # as long as this lives
        weakref.finalize(self, self._file.close)
        self._waiting = bytearray()
        self._written = 0
        self._starts, self._lengths = array("q"), array("i")
        self._ends, self._ends_of = list[tuple[int, ...]](), array("H")
        self._places = Places()

    def __len__(self) -> int:
        return len(self._starts)

    def __iadd__(self, examples: Iterable[Example]) -> "Samples":
        for example in examples:
            self._add(example)
        return self

    def at(self, number: int) -> Example:
        """One example."""
        self._flush()
        length = self._lengths[number]
        read = os.pread(self._file.fileno(), 5 * length, self._starts[number])
        ids = array("i")
        ids.frombytes(read[: 4 * length])
        return Example(ids, read[4 * length :], self._places[number], self._ends[self._ends_of[number]])

    def _add(self, example: Example) -> None:
        self._starts.append(self._written + len(self._waiting))
        self._lengths.append(len(example.input_ids))
        self._ends_of.append(_number_in(self._ends, example.ends))
        self._places.add(example.source)
        self._waiting += array("i", example.input_ids).tobytes() + bytes(example.trained)
        if len(self._waiting) >= _BUFFERED:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            with refusals(Path(tempfile.gettempdir()) / "samples"):
                self._file.write(self._waiting)
            self._written += len(self._waiting)
            self._waiting = bytearray()


def _number_in(known: list[Any], value: Any) -> int:
    """The number of a value among a few known ones, to which it is added."""
    if value not in known:
        known.append(value)
    return known.index(value)
