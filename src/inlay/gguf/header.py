"""The header of a GGUF file, checked before anything of it is believed.

    "GGUF"  version  number of tensors  number of values       4 + 4 + 8 + 8 bytes, little-endian
    values                                                     a key, a type, a value: each
    tensors                                                    a name, the lengths of its dimensions, a type, an offset: each
    padding to `general.alignment`
    the tensors' bytes, each padded to the alignment, offsets counted from here

Strings are 8 bytes of length and then UTF-8. Dimensions stand with the fastest first, so that a shape is turned round here.

A file comes from a stranger, and a length is only a number that it claims. So nothing is made for a length before the bytes are
known to be there; a header is at most `MAX_HEADER_BYTES` long; arrays hold no arrays; names have no characters that a terminal
obeys; tensors follow each other in the order of the list, as llama.cpp demands, so that none covers another or lies beyond the
end. What is raised inside names the fault alone; the path is added once.

Source: docs/gguf.md of the ggml repository; versions 2 and 3, which differ in nothing else.
"""

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from inlay.errors import FormatError, explain
from inlay.fields import shown
from inlay.gguf.types import KINDS
from inlay.io.safetensors import BYTES_PER_ELEMENT, TensorEntry

MAX_HEADER_BYTES = 128 << 20
"""Longest header that is read: a tokenizer of a million tokens and its merges."""

MAX_TENSORS, MAX_VALUES = 100_000, 10_000
"""A file has at most so many."""

MAX_NAME_BYTES, MAX_KEY_BYTES = 64, 256
"""Longest name of a tensor, as the format has it, and of a value."""

MAX_DIMENSIONS, MAX_LENGTH = 4, 2**40
"""A tensor has at most so many dimensions, each at most so long."""

DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 32, 1 << 16
"""What offsets are multiples of where the file does not say, and what it may say at most."""

_MAGIC, _VERSIONS = b"GGUF", (2, 3)

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of values that are numbers, as `struct` and numpy call them."""

_STRING, _ARRAY, _BOOL = 8, 9, 7

_SMALLEST_TENSOR, _SMALLEST_VALUE = 8 + 1 + 4 + 8 + 4 + 8, 8 + 1 + 4 + 1
"""Bytes that the entry of a tensor, and of a value, takes at least."""


class GgufTensor(NamedTuple):
    """A tensor of a file.

    **Attributes:**

    - `kind`: its type, by a name of `inlay.gguf.types`.
    - `shape`: the slowest dimension first: (out, in) of a weight.
    - `entry`: where its bytes lie; of a quantised one as bytes, (..., bytes of a row). `inlay.io.mapped` maps it.
    """

    kind: str
    shape: tuple[int, ...]
    entry: TensorEntry


class GgufHeader(NamedTuple):
    """What a file says of itself, and where its tensors lie, by name, in its order."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_start: int


def read_header(path: Path) -> GgufHeader:
    """The checked header of the GGUF file at `path`; nothing of its tensors is read.

    **Raises:**

    - `FormatError`: it is no GGUF file, of another version, truncated, or contradicts itself.
    """
    try:
        with path.open("rb") as file:
            return _header(path, _Reader(file, path.stat().st_size))
    except FormatError as broken:
        wrong, do = "this is not a whole GGUF file", "fetch it again"
        raise FormatError(explain(wrong, found=f"{path}: {broken}", do=do)) from None


class _Reader:
    """The bytes of a header in order; none is read, or made room for, that is not there."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self.size = size
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes that may still be read."""
        return min(self.size, MAX_HEADER_BYTES) - self.at

    def take(self, length: int, what: str) -> bytes:
        """The next `length` bytes."""
        if length > self.left:
            if self.at + length > self.size:
                raise FormatError(
                    f"{what} has {length:,} bytes at byte {self.at:,}, and the file ends at {self.size:,}"
                )
            raise FormatError(f"{what} ends beyond the {MAX_HEADER_BYTES:,} bytes that are read of a header")
        data = self._file.read(length)
        if len(data) < length:
            raise FormatError("it became shorter while it was read")
        self.at += length
        return data

    def number(self, code: str, what: str) -> Any:
        """The next number of a type of `struct`."""
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))
        return value

    def string(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        """The next string, of at most `most` bytes."""
        length = self.number("Q", what)
        if length > most:
            raise FormatError(f"{what} has {length:,} bytes, at most {most:,} are read")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8") from None

    def strings(self, count: int, what: str) -> list[str]:
        """The next strings, of which there may be a million: `string` in a loop that looks up nothing."""
        read, left, found = self._file.read, self.left, []
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0:
                raise FormatError(f"a string of {what} has {length:,} bytes, and the file has {self.size:,}")
            found.append(read(length))
        self.at += sum(map(len, found)) + 8 * count
        try:
            return [data.decode("utf-8") for data in found]
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8") from None

    def name(self, what: str, most: int) -> str:
        """A string that names something: one that can be shown."""
        name = self.string(what, most)
        if not name or not name.isprintable():
            raise FormatError(f"{what} is {shown(name)}, which is no name")
        return name


def _header(path: Path, reader: _Reader) -> GgufHeader:
    num_tensors, num_values = _counts(reader)
    metadata: dict[str, Any] = {}
    for i in range(num_values):
        key = reader.name(f"the key of value {i}", MAX_KEY_BYTES)
        if key in metadata:
            raise FormatError(f"{key} is there twice")
        metadata[key] = _value(reader, reader.number("I", key), key)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    power = type(alignment) is int and 8 <= alignment <= MAX_ALIGNMENT and not alignment & (alignment - 1)
    if not power:
        raise FormatError(
            f"general.alignment is {shown(alignment)}, which is no power of two from 8 to {MAX_ALIGNMENT:,}"
        )
    listed: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for i in range(num_tensors):
        name = reader.name(f"the name of tensor {i}", MAX_NAME_BYTES)
        if name in listed:
            raise FormatError(f"tensor {name} is there twice")
        listed[name] = _listed(reader, name)
    start = _aligned(reader.at, alignment)
    tensors = _placed(path, listed, start, alignment, reader.size)
    return GgufHeader(path, metadata, tensors, start)


def _counts(reader: _Reader) -> tuple[int, int]:
    """How many tensors and values a file says it has; what can't be is refused."""
    if reader.size < 24 or reader.take(4, "its mark") != _MAGIC:
        raise FormatError("it does not begin with GGUF" if reader.size >= 24 else f"it has {reader.size} bytes")
    version = reader.number("I", "its version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        order = " with its bytes in the order of another processor" if swapped in _VERSIONS else ""
        raise FormatError(f"it is of version {swapped if order else version}{order}; {_VERSIONS} are read")
    num_tensors, num_values = reader.number("Q", "its counts"), reader.number("Q", "its counts")
    for count, most, smallest, what in (
        (num_tensors, MAX_TENSORS, _SMALLEST_TENSOR, "tensors"),
        (num_values, MAX_VALUES, _SMALLEST_VALUE, "values"),
    ):
        if count > most or count * smallest > reader.left:
            raise FormatError(
                f"it claims {count:,} {what}; at most {most:,} are read, and the file has {reader.size:,} bytes"
            )
    return num_tensors, num_values


def _value(reader: _Reader, kind: int, key: str) -> Any:
    """The value of `key`, of the type of this number."""
    if kind == _STRING:
        return reader.string(key)
    if kind == _ARRAY:
        return _array(reader, key)
    if kind not in _NUMBERS:
        raise FormatError(f"{key} is of type {kind}, which there is not")
    value = reader.number("B" if kind == _BOOL else _NUMBERS[kind], key)
    if kind == _BOOL and value > 1:
        raise FormatError(f"{key} is {value}, which is neither true nor false")
    return bool(value) if kind == _BOOL else value


def _array(reader: _Reader, key: str) -> list[Any]:
    kind, count = reader.number("I", key), reader.number("Q", key)
    if kind == _ARRAY:
        raise FormatError(f"{key} is an array of arrays, which are not read")
    if kind != _STRING and kind not in _NUMBERS:
        raise FormatError(f"{key} is an array of type {kind}, which there is not")
    smallest = 8 if kind == _STRING else struct.calcsize(f"<{_NUMBERS[kind]}")
    if count * smallest > reader.left:
        raise FormatError(
            f"{key} claims {count:,} elements at byte {reader.at:,}, and the file has {reader.size:,} bytes"
        )
    if kind == _STRING:
        return reader.strings(count, key)
    data = reader.take(count * smallest, key)
    return np.frombuffer(data, "?" if kind == _BOOL else f"<{_NUMBERS[kind]}").tolist()


def _listed(reader: _Reader, name: str) -> tuple[str, tuple[int, ...], int, int]:
    """The type, shape, number of bytes and offset that the list has for the tensor called `name`."""
    dimensions = reader.number("I", name)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise FormatError(f"tensor {name} has {dimensions:,} dimensions, not 1 to {MAX_DIMENSIONS}")
    lengths = [reader.number("Q", name) for _ in range(dimensions)]
    if not all(1 <= length <= MAX_LENGTH for length in lengths):
        raise FormatError(f"tensor {name} has dimensions of {', '.join(f'{length:,}' for length in lengths)}")
    number, offset = reader.number("I", name), reader.number("Q", name)
    if number not in KINDS:
        raise FormatError(f"tensor {name} is of type {number}, which is not known")
    kind = KINDS[number]
    if lengths[0] % kind.weights:
        raise FormatError(
            f"tensor {name}: rows of {lengths[0]:,} are no whole blocks of {kind.weights}, as {kind.name} has"
        )
    num_bytes = math.prod(lengths) // kind.weights * kind.num_bytes
    return kind.name, tuple(reversed(lengths)), num_bytes, offset


def _placed(
    path: Path, listed: dict[str, tuple[str, tuple[int, ...], int, int]], start: int, alignment: int, size: int
) -> dict[str, GgufTensor]:
    """The tensors with their places: one after the other, and none beyond the end of the file."""
    tensors, end = {}, start
    for name, (kind, shape, num_bytes, offset) in listed.items():
        if start + offset != end:
            raise FormatError(f"tensor {name} begins at {start + offset:,}, not at {end:,} where the last one ends")
        if end + num_bytes > size:
            raise FormatError(f"tensor {name} ends at byte {end + num_bytes:,}, the file has {size:,}: it is truncated")
        tensors[name] = GgufTensor(kind, shape, _entry(path, kind, shape, end, end + num_bytes))
        end = _aligned(end + num_bytes, alignment)
    if size > end:
        raise FormatError(f"its tensors end at byte {end:,}, the file has {size:,}: it is longer")
    return tensors


def _entry(path: Path, kind: str, shape: tuple[int, ...], start: int, stop: int) -> TensorEntry:
    if kind in BYTES_PER_ELEMENT:
        return TensorEntry(path, kind, shape, start, stop)
    return TensorEntry(path, "U8", (*shape[:-1], (stop - start) // math.prod(shape[:-1])), start, stop)


def _aligned(offset: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-offset // alignment) * alignment
