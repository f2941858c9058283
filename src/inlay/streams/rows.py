"""The rows of a large file of JSON lines, read where they are asked for.

A first reading checks every row and keeps where it begins, its line and a checksum, 20 bytes; a row is then decoded each time
that it is asked for, and refused where it is another one by then. Any order is as near as any other: a run draws the same rows
in the same order as if it held them all.
"""

import os
import weakref
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from inlay.data import files, forms, json_text, sources
from inlay.data.keys import ROW_KEYS
from inlay.data.rows import Row
from inlay.data.sources import Data, Source
from inlay.disk import OnDisk
from inlay.errors import DataError, FormatError, explain, few

PART_OF_MEMORY = 0.125
"""A file of more than this part of the free memory stays on the disk: as rows, and as tokens, it takes some times its size."""

_SUFFIXES = (".jsonl", ".ndjson")


def is_large(source: Source) -> bool:
    """A source is a file with an object on each line that is better left on the disk."""
    if not isinstance(source, str | os.PathLike):
        return False
    path = Path(os.path.expanduser(source))
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        return False
    return path.stat().st_size > PART_OF_MEMORY * psutil.virtual_memory().available and _has_lines(path)


def read(source: Source, splits: tuple[str, ...] = sources.TRAIN) -> Data[Row]:
    """The rows of a source, as `inlay.data.forms.read`; those of a large file stay there."""
    if not is_large(source):
        return forms.read(source, splits)
    path, unused = Path(os.path.expanduser(str(source))), Counter[str]()
    rows = Rows.of(path, unused)
    notes = (sources.unused_in_words(unused, len(rows)),) if unused else ()
    return Data(sources.name_of(source), rows, [], "", notes, True, sources.license_of(source), dict(unused))


class Rows(OnDisk[Row]):
    """Rows of a file, by where their lines begin."""

    def __init__(self, path: Path):
        self._name = path.name
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self._starts, self._lines, self._sums = array("q"), array("q"), array("I")
        self._size = 0

    @classmethod
    def of(cls, path: Path, unused: Counter[str]) -> "Rows":
        """The rows of a file, each of them checked; columns that are not used are counted in `unused`.

        **Raises:**

        - `FormatError`: it is not UTF-8, or a line of it is no JSON.
        - `DataError`: it is empty, or rows are of no form that is known, or not all of one.
        """
        rows, checked = cls(path), _Checked(path.name)
        for number, (line, text) in enumerate(_lines(rows._file, path), start=1):
            if text := text.strip(json_text.SPACE):
                checked.add(number, text, unused)
                rows._starts.append(rows._size)
                rows._lines.append(number)
                rows._sums.append(zlib.crc32(line))
            elif rows._sums:
                rows._sums[-1] = zlib.crc32(line, rows._sums[-1])
            rows._size += len(line)
        checked.enforce(len(rows), path)
        return rows

    def __len__(self) -> int:
        return len(self._starts)

    def at(self, number: int) -> Row:
        """One row.

        **Raises:**

        - `DataError`: the file changed since it was first read.
        """
        start = self._starts[number]
        stop = self._starts[number + 1] if number + 1 < len(self._starts) else self._size
        line = os.pread(self._file.fileno(), stop - start, start)
        self._check_same(number, line)
        value = [(self._lines[number], json_text.decode(line.decode("utf-8").strip(json_text.SPACE)))]
        (row,) = forms.rows_of(value, self._name, Counter())
        return row

    def _check_same(self, number: int, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size == self._size and zlib.crc32(line) == self._sums[number]:
            return
        found = f"{self._name}: {self._size:,} bytes when it was first read, {size:,} now"
        if size == self._size:
            found = f"{self._name}:{self._lines[number]} is not what it was when it was first read"
        do = "the same once more, when nothing writes to it"
        raise DataError(explain("this data file changed while it was read", found=found, do=do))


class _Checked:
    """What is wrong with rows that are read one by one."""

    def __init__(self, name: str):
        self._name = name
        self._broken: list[str] = []
        self._problems: list[str] = []
        self._forms: dict[str, str] = {}

    def add(self, number: int, text: str, unused: Counter[str]) -> None:
        """A line that is not empty."""
        place = f"{self._name}:{number}"
        try:
            value = json_text.decode(text)
        except (ValueError, RecursionError) as error:
            self._broken.append(f"{place}: {str(error).split(';')[0]}")
            return
        try:
            (row,) = forms.rows_of([(number, value)], self._name, unused)
        except DataError as error:
            self._problems += error.found
            return
        self._forms.setdefault(row.form, place)

    def enforce(self, num_rows: int, path: Path) -> None:
        """Refuse the file where something is wrong."""
        if self._broken:
            raise FormatError(
                explain("this is not JSON", found=few(self._broken), do="mend the line; inlay data check")
            )
        if self._problems:
            do = "mend these rows, or remove them: inlay data check --fix"
            raise DataError(explain("some rows can't be used as they stand", found=few(self._problems), do=do))
        if len(self._forms) > 1:
            listed = ", ".join(f"{form} at {place}" for form, place in self._forms.items())
            raise DataError(explain("the rows are not all of one form", found=listed, do="one form per data set"))
        if not num_rows:
            raise DataError(explain("this data file is empty", found=str(path), do="one JSON object per line"))


def _has_lines(path: Path) -> bool:
    """The file holds an object on each line, by its first line: a row, not a list of rows with a name."""
    try:
        with path.open("rb") as file:
            texts = (line.strip(json_text.SPACE) for _, line in _lines(file, path))
            first = next(filter(None, texts), "")
        value = json_text.decode(first)
    except (DataError, FormatError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not value.keys().isdisjoint(ROW_KEYS)


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, str]]:
    """Each line and its text.

    **Raises:**

    - `FormatError`: it is not UTF-8.
    - `DataError`: a line is too long.
    """
    start, most = 0, 4 * files.MAX_ROW_CHARACTERS
    while line := file.readline(most + 1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            found, do = f"{path}: {error.reason} at byte {start + error.start}", "iconv -t utf-8"
            raise FormatError(explain("this file is not UTF-8 text", found=found, do=do)) from None
        if len(text) > files.MAX_ROW_CHARACTERS:
            wrong, found = "a row is too long to be read", f"{path}: more than {files.MAX_ROW_CHARACTERS:,} characters"
            raise DataError(explain(wrong, found=found, do="cut it into several rows"))
        yield line, text
        start += len(line)
