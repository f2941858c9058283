"""Rows out of Parquet files and Arrow files, the latter as `datasets` saves them.

Read in small batches, so that a few rows are held in Arrow's form at a time. A file of a few kilobytes can hold a thousand
million rows, or gigabytes of one letter: what its own figures say is looked at before anything is decompressed, and what is
read is counted.

Arrow gives every struct of a column all members that any row has, filled up with nulls: these are left out again, at any
depth. Columns of types that no text is made of, such as time stamps and pictures, are not read; a row has an `Unread` there,
which names the type where somebody wanted it.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from inlay import extras
from inlay.data.keys import cut, twice_in
from inlay.errors import CapacityError, DataError, FormatError, InlayError, explain

MAX_INFLATED_BYTES = 1 << 29
"""Beyond this a file may not hold more than `MAX_RATIO` times its own size."""

MAX_RATIO = 20
"""Text that was written by people becomes three to ten times smaller, not twenty."""

MAX_ROW_BYTES = 64 << 20
"""A row is not longer than this, as in files of text."""

MIN_ROW_BYTES = 128
"""What a row takes at least, as Python holds it."""

BATCH_ROWS, _BATCH_BYTES = 100, 256 << 20
"""Rows that are read at a time, and what they may take if every one of them were all that its row group holds."""


@dataclasses.dataclass(frozen=True)
class Unread:
    """Stands for a value of a column that was not read."""

    kind: str
    """The type of the column, as Arrow writes it."""


def read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a Parquet file, numbered from 1; errors as `inlay.data.files.values` says."""
    extras.need("pyarrow", "a Parquet file")
    import pyarrow.lib
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns, unread = _columns(file.schema_arrow, str(path))
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            inflated = max(sum(group.total_byte_size for group in groups), MIN_ROW_BYTES * file.metadata.num_rows)
            meter = _Meter(path)
            meter.check(inflated)
            number = 0
            for i, group in enumerate(groups):
                meter.check_row(group.total_byte_size, group.num_rows)
                size = min(BATCH_ROWS, _BATCH_BYTES // max(1, group.total_byte_size))
                for batch in file.iter_batches(max(size, 16), row_groups=[i], columns=columns):
                    for row in _rows(batch, unread, meter, size or 1):
                        number += 1
                        yield number, row
    except (InlayError, UnicodeDecodeError):
        raise
    except (pyarrow.lib.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _broken("a Parquet file", path, error) from None


def read_ipc(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of an Arrow file, of either form, numbered from 1; errors as `inlay.data.files.values` says."""
    extras.need("pyarrow", "an Arrow file")
    import pyarrow
    import pyarrow.ipc
    import pyarrow.lib

    try:
        with pyarrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                reader: Any = pyarrow.ipc.open_file(source)  # two readers without a common class
                batches: Iterator[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                source.seek(0)
                reader = batches = pyarrow.ipc.open_stream(source)
            columns, unread = _columns(reader.schema, str(path))
            meter, number = _Meter(path), 0
            for batch in batches:
                at_once = max(1, min(BATCH_ROWS, _BATCH_BYTES // max(1, batch.nbytes)))
                for row in _rows(batch.select(columns), unread, meter, at_once):
                    number += 1
                    yield number, row
    except (InlayError, UnicodeDecodeError):
        raise
    except (pyarrow.lib.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _broken("an Arrow file", path, error) from None


def rows_of(batches: Iterable[Any], where: str) -> Iterator[tuple[int, Any]]:
    """The rows of tables or batches that Python holds already, numbered from 1; `where` they are, for a message.

    **Raises:**

    - `FormatError`: two columns, or two members of a struct, have one name.
    """
    number = 0
    for batch in batches:
        columns, unread = _columns(batch.schema, where)
        for row in batch.select(columns).to_pylist():
            number += 1
            yield number, without_nulls(row) | unread


def stands_twice(name: str, where: str) -> FormatError:
    """That a column stands twice: a row can keep one of the two alone."""
    do = "rename or remove one of the two"
    return FormatError(explain("a column stands twice", found=f"{where}: {cut(name)!r}", do=do))


def without_nulls(value: Any) -> Any:
    """A value without the members of objects that are null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _broken(kind: str, path: Path, error: Exception) -> FormatError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return FormatError(explain(f"this is not {kind}, or a broken one", found=f"{path}: {reason}"))


def _columns(schema: Any, where: str) -> tuple[list[str], dict[str, Unread]]:
    """(The columns that are read, the others by name).

    **Raises:**

    - `FormatError`: two columns, or two members of a struct, have one name.
    """
    _check_names(schema, where)
    unread = {field.name: Unread(str(field.type)) for field in schema if not _is_readable(field.type)}
    return [name for name in schema.names if name not in unread], unread


def _check_names(fields: Any, where: str) -> None:
    twice = twice_in(field.name for field in fields)
    if twice is not None:
        raise stands_twice(twice, where)
    for field in fields:
        _check_names([field.type.field(i) for i in range(field.type.num_fields)], f"{where}: {field.name}")


def _is_readable(kind: Any) -> bool:
    """A value of this type is text, a number, true or false, or made of these."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_readable(kind.value_type)
    if types.is_struct(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return all(_is_readable(kind.field(i).type) for i in range(kind.num_fields))
    plain = (types.is_string, types.is_large_string, types.is_string_view, types.is_boolean, types.is_null)
    return any(is_kind(kind) for is_kind in (*plain, types.is_integer, types.is_floating))


def _rows(batch: Any, unread: dict[str, Unread], meter: "_Meter", at_once: int) -> Iterator[dict[str, Any]]:
    for start in range(0, batch.num_rows, at_once):
        for row in batch.slice(start, at_once).to_pylist():
            meter.count(row)
            yield without_nulls(row) | unread


def _size(value: Any) -> int:
    """The bytes of what a value says, as Python holds it: a letter of a text takes up to four."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else sys.getsizeof(value)


class _Meter:
    """Counts what a file becomes."""

    def __init__(self, path: Path):
        self._path, self._total, self._size = path, 0, path.stat().st_size
        self._free = psutil.virtual_memory().available

    def count(self, row: dict[str, Any]) -> None:
        """Add a row."""
        size = max(MIN_ROW_BYTES, _size(row))
        self.check_row(size // 4, 1)
        self._total += size
        self.check(self._total)

    def check_row(self, num_bytes: int, num_rows: int) -> None:
        """Refuse rows that are too long.

        **Raises:**

        - `DataError`: on the average they are longer than a row may be.
        """
        if num_bytes > MAX_ROW_BYTES * max(1, num_rows):
            found = f"{self._path}: {num_rows:,} rows of {num_bytes:,} bytes"
            raise DataError(explain("a row is too long to be read", found=found, do="cut it into several rows"))

    def check(self, inflated: int) -> None:
        """Refuse a file that holds far more than its size, or than the memory.

        **Raises:**

        - `CapacityError`: it does.
        """
        if inflated > self._free:
            found = f"{self._path}: {inflated:,} bytes or more when it is read; {self._free:,} are free"
            raise CapacityError(
                explain("this data file is larger than the free memory", found=found, do="a part of it")
            )
        if inflated > MAX_INFLATED_BYTES and inflated > MAX_RATIO * self._size:
            wrong, do = "this data file becomes far larger than data does", "JSON lines, if it is what it should be"
            found = f"{self._path}: {self._size:,} bytes, {inflated:,} or more when it is read"
            raise CapacityError(explain(wrong, found=found, do=do))
