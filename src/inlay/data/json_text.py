"""Rows out of JSON: an object per line, a list of objects, objects over many lines, or one object that holds the list.

Which of these a file is, is told by its text, since all four are found under both .jsonl and .json. A list is decoded item by
item out of a window of text that grows with its items, so that its memory is that of its rows.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from inlay.data.keys import ROW_KEYS, cut, twice_in
from inlay.errors import DataError, FormatError, explain, few

_CHUNK = 1 << 20
"""Characters that are read at a time."""

SPACE = " \t\n\r\ufeff"
"""What may stand around values: the white space of JSON, and the mark that files begin with, where several were joined."""


def values(file: TextIO, path: Path, max_characters: int, *, one_per_line: bool) -> Iterator[tuple[int, Any]]:
    """The rows of JSON text, each with its line, or its number in a list.

    **Arguments:**

    - `file`: at its start.
    - `max_characters`: the longest row.
    - `one_per_line`: where the first line is no JSON, its lines are at fault, not the whole text.

    **Raises:**

    - `FormatError`: it is not JSON, or a name stands twice in an object.
    - `DataError`: a row is longer than `max_characters`.
    """
    window = _Window(file, path, max_characters)
    if window.peek() == "[":
        yield from enumerate(window.items(), start=1)
        return
    file.seek(0)
    lines = _numbered(file, path, max_characters)
    number, line = next(lines, (0, ""))
    if not number:
        return
    try:
        first = decode(line)
    except (ValueError, RecursionError):
        yield from _over_lines(file, path, max_characters, one_per_line)
        return
    second = next(lines, None)
    if second is None:
        yield from _unfolded([(number, first)])
        return
    yield number, first
    yield from _lines(_chained(second, lines), path)


def _over_lines(file: TextIO, path: Path, max_characters: int, one_per_line: bool) -> Iterator[tuple[int, Any]]:
    """The rows of text whose first line is no JSON: objects over several lines."""
    file.seek(0)
    try:
        found = list(_Window(file, path, max_characters).objects())
    except FormatError:
        if not one_per_line:
            raise
        file.seek(0)
        yield from _lines(_numbered(file, path, max_characters), path)
    else:
        yield from _unfolded(found)


def decode(text: str) -> Any:
    """The value of JSON text.

    **Raises:**

    - `ValueError`: it is not JSON, a name stands twice in an object, or a number has too many digits.
    - `RecursionError`: it is nested too deeply.
    """
    return _DECODER.decode(text)


def bounded_lines(file: TextIO, path: Path, max_characters: int) -> Iterator[str]:
    """The lines of a file, none longer than `max_characters`.

    **Raises:**

    - `DataError`: one is longer.
    """
    number = 0
    while line := file.readline(max_characters + 1):
        number += 1
        if len(line) > max_characters:
            raise _too_long(path, number, max_characters)
        yield line


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = twice_in(name for name, _ in pairs) or ""
        raise FormatError(f"the name {cut(twice)!r} stands twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def _numbered(file: TextIO, path: Path, max_characters: int) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(bounded_lines(file, path, max_characters), start=1):
        text = line.strip(SPACE)
        if text and not text.isspace():
            yield number, text


def _chained(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


def _lines(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[tuple[int, Any]]:
    """The value of each line; all malformed ones are named together."""
    problems: list[str] = []
    for number, line in lines:
        try:
            value = decode(line)
        except (ValueError, RecursionError) as error:
            problems.append(_problem(error, path, number))
            continue
        if not problems:
            yield number, value
    if problems:
        raise _not_json(problems)


def _unfolded(found: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The items of a single object's only list of objects; otherwise the objects themselves."""
    if len(found) == 1 and isinstance(found[0][1], dict) and not found[0][1].keys() & ROW_KEYS:
        lists = [item for item in found[0][1].values() if isinstance(item, list) and item]
        objects = [items for items in lists if all(isinstance(item, dict) for item in items)]
        if len(objects) == 1:
            yield from enumerate(objects[0], start=1)
            return
    yield from found


class _Window:
    """The part of a text that is being decoded."""

    def __init__(self, file: TextIO, path: Path, max_characters: int):
        self._file, self._path, self._max = file, path, max_characters
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column, self._counted = 1, 1, 0  # where the character at `_counted` stands

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def items(self) -> Iterator[Any]:
        """The items of the list that begins here, which is all that the file holds."""
        self._at += 1
        if self.peek() != "]":
            yield self._value()
            while self.peek() == ",":
                self._at += 1
                yield self._value()
        if self.peek() != "]":
            raise self._fault("Expecting ',' delimiter")
        self._at += 1
        if self.peek():
            raise self._fault("Extra data")

    def objects(self) -> Iterator[tuple[int, Any]]:
        """Values one behind the other, each with the line that it begins in."""
        while self.peek():
            self._count()
            yield self._line, self._value()

    def _value(self) -> Any:
        self.peek()
        while True:
            try:
                value, stop = _DECODER.raw_decode(self._text, self._at)
                if (stop < len(self._text) or self._ended) and stop - self._at <= self._max:
                    self._at = stop
                    return value  # at the end of what was read a number may go on
            except (ValueError, RecursionError) as error:
                if self._ended or not isinstance(error, json.JSONDecodeError):
                    if isinstance(error, json.JSONDecodeError):
                        self._at = error.pos
                    raise self._fault(_said(error)) from None
            if len(self._text) - self._at > self._max:
                self._count()
                raise _too_long(self._path, self._line, self._max)
            self._more()

    def _more(self) -> bool:
        """Forget what was decoded and read on, as much again as is left; False at the end of the file."""
        self._count()
        self._text, self._at, self._counted = self._text[self._at :], 0, 0
        read = self._file.read(max(_CHUNK, len(self._text)))
        self._ended = not read
        self._text += read
        return not self._ended

    def _count(self) -> None:
        """Bring the line and the column up to the present character."""
        lines = self._text.count("\n", self._counted, self._at)
        start = self._text.rfind("\n", self._counted, self._at)
        self._column = self._at - start if lines else self._column + self._at - self._counted
        self._line, self._counted = self._line + lines, self._at

    def _fault(self, what: str) -> FormatError:
        self._count()
        return _not_json([f"{self._path}:{self._line}, column {self._column}: {what}"])


def _said(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return str(error).split(";")[0]  # a number of too many digits, too many brackets, a name twice


def _problem(error: Exception, path: Path, line: int) -> str:
    column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    return f"{path}:{line}{column}: {_said(error)}"


def _not_json(problems: list[str]) -> FormatError:
    do = "mend the line; python -m json.tool shows it"
    return FormatError(explain("this is not JSON", found=few(problems), do=do))


def _too_long(path: Path, line: int, max_characters: int) -> DataError:
    found = f"{path}:{line} has more than {max_characters:,} characters"
    return DataError(explain("a row is too long to be read", found=found, do="cut it into several rows"))
