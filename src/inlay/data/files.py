"""Values out of data files, whatever kind of file they are in; what they mean is for `inlay.data.forms` to say."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inlay.errors import DataError, FormatError, explain

MAX_PROBLEMS = 10
"""As many are named in one message; the rest are counted."""


def values(path: Path) -> list[tuple[int, Any]]:
    """The rows of a file as they stand in it, each with its line or number.

    **Raises:**

    - `FormatError`: the file is of an unknown kind, malformed, not UTF-8, or can't be read.
    - `DataError`: it is empty.
    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise FormatError(
            explain("this kind of data file is not known", found=str(path), do=f"a file of {kinds()}, named so")
        )
    try:
        found = list(reader(path))
    except UnicodeDecodeError as error:
        raise FormatError(
            explain("this file is not UTF-8 text", found=f"{path}: {error}", do="iconv -t utf-8")
        ) from None
    except OSError as error:
        raise FormatError(explain("this data file can't be read", found=f"{path}: {error.strerror}")) from None
    if not found:
        raise DataError(
            explain("this data file is empty", found=str(path), do="one JSON object per line, for instance")
        )
    return found


def first(problems: list[str]) -> list[str]:
    """The problems that a message names."""
    more = len(problems) - MAX_PROBLEMS
    return problems[:MAX_PROBLEMS] + ([f"and {more:,} more"] if more > 0 else [])


def what(value: Any) -> str:
    """What a value is, in words."""
    return "null" if value is None else f"a {type(value).__name__}" if value else f"an empty {type(value).__name__}"


def kinds() -> str:
    """The endings of data files, for a message."""
    return ", ".join(READERS)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    problems: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parsed(line.rstrip(), path, number, problems)
    _check_json(problems)


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    problems: list[str] = []
    text = path.read_text("utf-8-sig")
    value = _parsed(text, path, 1, problems) if text.strip() else []
    _check_json(problems)
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise FormatError(explain("this JSON file is not a list of rows", found=f"{path}: {what(value)}"))
    yield from enumerate(value, start=1)


def _read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    limit = csv.field_size_limit(1 << 30)  # Python's own, 128 KiB, is less than a long text has
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                if None in row or None in row.values():
                    raise FormatError(
                        explain(
                            "a row of this CSV file has not as many fields as its header",
                            found=f"{path}:{reader.line_num}",
                            do="quote fields that hold commas or line breaks",
                        )
                    )
                yield reader.line_num, row
    except csv.Error as error:
        raise FormatError(explain("this is not CSV", found=f"{path}: {error}")) from None
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.lib.ArrowException, OSError) as error:
        raise FormatError(
            explain("this is not a Parquet file", found=f"{path}: {str(error).splitlines()[0]}")
        ) from None
    yield from enumerate(table.to_pylist(), start=1)


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _parsed(text: str, path: Path, line: int, problems: list[str]) -> Any:
    """The value of a text that starts at `line` of a file, or None and an entry in `problems`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(f"{path}:{line + error.lineno - 1}, column {error.colno}: {error.msg}")
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        problems.append(f"{path}:{line}: {str(error).split(';')[0]}")
    return None


def _check_json(problems: list[str]) -> None:
    if problems:
        raise FormatError(
            explain("this is not JSON", found=first(problems), do="mend the line; python -m json.tool shows it")
        )
