"""Values out of data files, whatever kind of file they are in; what they mean is for `inlay.data.forms` to say.

What kind a file is of is told by what it begins with; its name decides between kinds of text alone. Rows are read one after
the other, and no more than a row is held twice: one of more than `MAX_ROW_CHARACTERS` is refused, and so is a name that stands
twice in one object or in one header, since one of the two would be lost.
"""

import csv
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any

import psutil

from inlay.data import arrow, json_text
from inlay.data.keys import twice_in
from inlay.errors import CapacityError, DataError, FormatError, explain

Numbered = tuple[int, Any]
"""A row as it stands in a file, with its line or number."""

MAX_ROW_CHARACTERS = 64 << 20
"""A row is not longer than this: a book of a hundred million words is no row."""

_KNOWN_STARTS = {
    b"\x1f\x8b": ("compressed with gzip", "gunzip {name}"),
    b"PK\x03\x04": ("a ZIP archive", "unzip {name}"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unzstd {name}"),
    b"BZh": ("compressed with bzip2", "bunzip2 {name}"),
    b"\xfd7zXZ": ("compressed with xz", "unxz {name}"),
    b"SQLite format 3": ("an SQLite database", "export its table as CSV"),
    b"version https://git-lfs": ("a pointer of git-lfs, not the data", "git lfs pull"),
    b"<!DOCTYPE": ("a web page", "fetch the file itself"),
    b"<html": ("a web page", "fetch the file itself"),
}
"""How files begin that hold no rows as they are -> what they are, what to do."""

ROWS_OF_TEXT = 'JSON lines such as {"text": "a whole document"}, or --data with prompt and completion'


def values(path: Path) -> Iterator[Numbered]:
    """The rows of a file as they stand in it, each with its line or number.

    **Raises:**

    - `FormatError`: the file is of an unknown kind, malformed, not UTF-8, or can't be read.
    - `DataError`: it is empty, or a row of it is too long.
    - `CapacityError`: it is larger than the free memory.
    """
    is_empty = True
    try:
        for value in _reader(path)(path):
            is_empty = False
            yield value
    except UnicodeDecodeError as error:
        raise FormatError(
            explain("this file is not UTF-8 text", found=f"{path}: {error}", do="iconv -t utf-8")
        ) from None
    except OSError as error:
        raise FormatError(explain("this data file can't be read", found=f"{path}: {error.strerror}")) from None
    if is_empty:
        raise DataError(
            explain("this data file is empty", found=str(path), do="one JSON object per line, for instance")
        )


def what(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, arrow.Unread):
        return f"a {value.kind}"
    is_empty = isinstance(value, Sized) and len(value) == 0  # an array of numpy is neither true nor false
    return "null" if value is None else f"{'an empty' if is_empty else 'a'} {type(value).__name__}"


def kinds() -> str:
    """The endings of data files, for a message."""
    return ", ".join(READERS)


def _reader(path: Path) -> Callable[[Path], Iterator[Numbered]]:
    """What reads a file, by its first bytes, and by its name where they may begin several kinds."""
    with path.open("rb") as file:
        start = file.read(64)
    for known, (what_it_is, do) in _KNOWN_STARTS.items():
        if start.startswith(known):
            found = f"{path} is {what_it_is}"
            raise FormatError(explain("this data file can't be read as it is", found=found, do=do.format(name=path)))
    if start.startswith(b"PAR1"):
        return arrow.read_parquet
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return arrow.read_ipc
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        do = ROWS_OF_TEXT if path.suffix.lower() in (".txt", ".md", "") else f"a file of {kinds()}, named so"
        raise FormatError(explain("this kind of data file is not known", found=str(path), do=do))
    _check_size(path)
    return reader


def _check_size(path: Path) -> None:
    size, free = path.stat().st_size, psutil.virtual_memory().available
    if size > free:
        found = f"{path}: {size:,} bytes; {free:,} are free"
        raise CapacityError(explain("this data file is larger than the free memory", found=found, do="a part of it"))


def _read_json(path: Path) -> Iterator[Numbered]:
    with path.open(encoding="utf-8-sig") as file:
        yield from json_text.values(file, path, MAX_ROW_CHARACTERS, one_per_line=path.suffix.lower() != ".json")


def _read_csv(path: Path) -> Iterator[Numbered]:
    limit = csv.field_size_limit(MAX_ROW_CHARACTERS)  # Python's own, 128 KiB, is less than a long text has
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = json_text.bounded_lines(file, path, MAX_ROW_CHARACTERS)
            reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            header = next(reader, [])
            _check_header(header, path)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise FormatError(
                        explain(
                            "a row of this CSV file has not as many fields as its header",
                            found=f"{path}:{reader.line_num}: {len(row):,} fields, and {len(header):,} columns",
                            do="quote fields that hold commas or line breaks",
                        )
                    )
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        hint = 'a quote in a field is doubled, "so ""here"" it is", and one that opens a field closes it'
        raise FormatError(explain("this is not CSV", found=f"{path}: {error}", do=hint)) from None
    finally:
        csv.field_size_limit(limit)


def _check_header(header: list[str], path: Path) -> None:
    if (twice := twice_in(header)) is not None:
        raise arrow.stands_twice(twice, str(path))
    if len(header) == 1 and (other := next((sign for sign in ";\t|" if sign in header[0]), None)):
        raise FormatError(
            explain(
                "the columns of this CSV file are not separated by commas",
                found=f"{path}: its header is {header[0][:80]!r}, with {other!r}",
                do="write it with commas; tabs where the file is named .tsv",
            )
        )


READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": arrow.read_parquet,
    ".arrow": arrow.read_ipc,
}
