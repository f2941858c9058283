"""JSON files, read within limits: a name stands once in an object, and no file is read that is larger than any of its kind."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inlay.errors import ConfigError, FormatError, explain
from inlay.fields import shown

MAX_JSON_BYTES = 10_000_000
"""Largest configuration, record or plan that is read."""

MAX_TOKENIZER_BYTES = 100_000_000
"""Largest file of a tokenizer that is read."""


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file that has at most `limit` bytes: nothing is read of a larger one, and no more of one that grows.

    **Raises:**

    - `FormatError`: it is larger, or no regular file.
    """
    size = path.stat().st_size
    if size <= limit and path.is_file():
        with path.open("rb") as file:
            content = file.read(limit + 1)
        size = len(content)
        if size <= limit:
            return content
    what = f"{path}: {size:,} bytes; at most {limit:,} are read" if path.is_file() else f"{path}: no regular file"
    raise FormatError(explain("this file is larger than any of its kind", found=what, do="fetch it again"))


def parse(text: str | bytes) -> Any:
    """What a JSON text says.

    **Raises:**

    - `ValueError`: it is not JSON, or gives a name twice: the last value would win in silence.
    - `RecursionError`: brackets within brackets, too many of them.
    """
    return json.loads(text, object_pairs_hook=once)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose names stand once in it.

    **Raises:**

    - `FormatError`, a ValueError: they don't.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise FormatError(f"the name {shown(twice)} stands twice in one object")
    return values


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    **Raises:**

    - `FormatError`: it is larger, is not JSON, not an object, or gives a name twice.
    """
    content = read_bytes(path, limit)
    try:
        value = parse(content.decode("utf-8"))
    except FormatError as error:
        found, do = f"{path}: {error}", "remove the wrong one"
        raise FormatError(explain("this file says one thing twice", found=found, do=do)) from None
    except (ValueError, RecursionError) as error:  # too many brackets within each other
        raise FormatError(explain("this file is not JSON", found=f"{path}: {error}", do="fetch it again")) from None
    if not isinstance(value, dict):
        found = f"{path}: a {type(value).__name__}"
        raise FormatError(explain("this file holds no JSON object", found=found, do="fetch it again"))
    return value


@contextlib.contextmanager
def about(path: Path) -> Iterator[None]:
    """Say in which file a value is that can't be."""
    try:
        yield
    except ConfigError as error:
        wrong, *found = str(error).split("\n  hint:")[0].split("\n  found: ")
        raise FormatError(
            explain(
                f"this adapter says what can't be: {wrong}",
                found=[f"{path}: {value}" for value in found],
                do="ask its author for a whole file",
            )
        ) from None
