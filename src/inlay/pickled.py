"""The tensors of a file that `torch.save` wrote, read without running anything of it.

A pickle is a program: it names functions of any module and has them called. This is an interpreter of the few instructions that
a dict of tensors takes, over values that are texts, numbers, tuples and dicts. A name is looked up in `_NAMES` and nowhere
else; what is called makes a dict, or notes where a tensor lies. Every other instruction and name refuses the file.

    FILE.bin              a zip file, nothing in it compressed
    NAME/data.pkl         the program
    NAME/data/KEY         the numbers of a storage

The forms before PyTorch 1.6 are refused.
"""

import math
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inlay.errors import FormatError, explain
from inlay.fields import shown

MAX_PROGRAM_BYTES = 10_000_000
"""Longest program that is read: some hundred thousand tensors."""

MAX_STEPS = 2_000_000
"""Most instructions of one."""

MAX_IN_TUPLE = 16
"""Longest tuple, whose tuples hold none: what makes a tensor takes seven values, two of them tuples. Tuples of tuples of tuples
are what a short program makes without end."""

MAX_SHARED = 2
"""So many times their storages, tensors that share some may hold together; each gets numbers of its own."""

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}
_DICT, _TENSOR, _PARAMETER = "a dict", "a tensor", "a parameter"
_NAMES: dict[str, Any] = {
    "collections OrderedDict": _DICT,
    "torch._utils _rebuild_tensor_v2": _TENSOR,
    "torch._utils _rebuild_parameter": _PARAMETER,
    **{f"torch {name}": dtype for name, dtype in _STORAGES.items()},
}
"""What a program may name, and what that stands for."""

_MARK = object()


class _Stored(NamedTuple):
    """Where the numbers of tensors lie."""

    dtype: torch.dtype
    key: str
    length: int


class _Laid(NamedTuple):
    """A tensor, by where it lies in its storage."""

    storage: _Stored
    offset: int
    shape: tuple[int, ...]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the file at `path`, by name.

    **Raises:**

    - `FormatError`: it is no such file, is broken, or does anything else than name tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _tensors(archive)
    except FormatError as error:
        found = f"{path}: {error}"
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        found = f"{path}: {' '.join(str(error).split())[:200]}"
    wrong, do = "this file is not plain tensors as torch.save writes them", "ask its author for safetensors"
    raise FormatError(explain(wrong, found=found, do=do)) from None


def _tensors(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) < len(archive.infolist()):
        raise FormatError("a name stands twice in it")
    folder, found = _made(archive, entries)
    stored: dict[str, Tensor] = {}
    for tensor in found.values():
        if tensor.storage.key not in stored:
            stored[tensor.storage.key] = _numbers(
                archive, entries.get(f"{folder}/data/{tensor.storage.key}"), tensor.storage
            )
    wanted = sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in found.values())
    if wanted > MAX_SHARED * sum(numbers.nbytes for numbers in stored.values()):
        raise FormatError(f"its tensors hold {wanted:,} bytes, more than {MAX_SHARED} times their storages")
    return {name: _laid(stored[tensor.storage.key], tensor) for name, tensor in found.items()}


def _made(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> tuple[str, dict[str, _Laid]]:
    """(the folder of the program, the tensors that it makes, by name)."""
    programs = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1 or entries[programs[0]].file_size > MAX_PROGRAM_BYTES:
        raise FormatError(f"it has no data.pkl of at most {MAX_PROGRAM_BYTES:,} bytes")
    folder = programs[0].partition("/")[0]
    if order := entries.get(f"{folder}/byteorder"):
        _check(order)
        if archive.read(order) != b"little":
            raise FormatError("its numbers are in the order of another processor")
    _check(entries[programs[0]])
    found = _run(archive.read(entries[programs[0]]))
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise FormatError("it holds no dict of tensors by name")
    strange = [name for name, value in found.items() if not isinstance(value, _Laid)]
    if strange:
        raise FormatError(f"{shown(strange[0])} is no tensor")
    return folder, found


def _check(entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
        raise FormatError(f"{shown(entry.filename)} is compressed or encrypted, which torch.save never does")


def _numbers(archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, storage: _Stored) -> Tensor:
    """The numbers of a storage."""
    size = storage.length * storage.dtype.itemsize
    if entry is None or entry.file_size != size:
        raise FormatError(f"the storage {shown(storage.key)} is not there with its {size:,} bytes")
    _check(entry)
    return torch.frombuffer(bytearray(archive.read(entry)), dtype=storage.dtype) if size else torch.empty(0)


def _laid(numbers: Tensor, tensor: _Laid) -> Tensor:
    count = math.prod(tensor.shape)
    if tensor.storage.dtype != numbers.dtype or tensor.offset + count > len(numbers):
        raise FormatError("a tensor lies beyond the end of its storage")
    return numbers[tensor.offset : tensor.offset + count].view(tensor.shape).clone()


def _run(program: bytes) -> Any:
    """What a program makes."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for step, (opcode, value, _) in enumerate(pickletools.genops(program)):
            if step > MAX_STEPS:
                raise FormatError(f"it has more than {MAX_STEPS:,} instructions")
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, value, stack, memo)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"its program is broken: {' '.join(str(error).split())[:100]}") from None
    raise FormatError("its program does not end")


_VALUES = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _step(name: str, value: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """Do one instruction."""
    if name in ("PROTO", "FRAME"):
        return
    if name in _VALUES:
        stack.append(value)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[value] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[value])
    elif name == "MARK":
        stack.append(_MARK)
    elif name in _TUPLES:
        stack.append(_tuple(_popped(stack, _TUPLES[name])))
    elif name == "TUPLE":
        stack.append(_tuple(_marked(stack)))
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name in ("SETITEM", "SETITEMS"):
        items = _popped(stack, 2) if name == "SETITEM" else _marked(stack)
        _dict(stack[-1]).update(zip(map(_text, items[::2]), items[1::2], strict=True))
    elif name == "GLOBAL":
        stack.append(_named(value))
    elif name == "STACK_GLOBAL":
        stack.append(_named(" ".join(map(_text, _popped(stack, 2)))))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        called, given = _popped(stack, 2)
        stack.append(_called(called, given))
    elif name == "BUILD":  # what a state dict says of the versions of its modules
        _dict(stack[-2])
        stack.pop()
    else:
        raise FormatError(f"its program has the instruction {name}, which a dict of tensors does not need")


def _popped(stack: list[Any], count: int) -> list[Any]:
    """The last `count` values."""
    if count > len(stack):
        raise FormatError("its program is broken: a value is missing")
    found = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return found


def _marked(stack: list[Any]) -> list[Any]:
    """The values since the last mark."""
    at = next((i for i in reversed(range(len(stack))) if stack[i] is _MARK), None)
    if at is None:
        raise FormatError("its program is broken: a mark is missing")
    found = stack[at + 1 :]
    del stack[at:]
    return found


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    if len(values) > MAX_IN_TUPLE or any(
        type(part) is tuple for value in values if type(value) is tuple for part in value
    ):
        raise FormatError("its program makes tuples that no tensor needs")
    return tuple(values)


def _text(value: Any) -> str:
    """A key, or a part of a name: nothing that takes long to hash or to write."""
    if not isinstance(value, str):
        raise FormatError("its program has a key or a name that is no text")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise FormatError("its program fills what is no dict")
    return value


def _named(name: str) -> Any:
    if name not in _NAMES:
        raise FormatError(f"its program names {shown(name.replace(' ', '.'))}, which is no part of a tensor")
    return _NAMES[name]


def _storage(said: Any) -> _Stored:
    """('storage', type, key, device, count)"""
    if not isinstance(said, tuple) or len(said) != 5 or said[0] != "storage":
        raise FormatError("its program asks for something else than a storage")
    _, dtype, key, _, count = said
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(count) is not int or count < 0:
        raise FormatError("a storage of it has no type, name and length")
    return _Stored(dtype, key, count)


def _called(called: Any, given: Any) -> Any:
    """What one of `_NAMES` makes."""
    if called == _DICT and given == ():
        return {}
    if called == _PARAMETER and isinstance(given, tuple) and given and isinstance(given[0], _Laid):
        return given[0]
    if called == _TENSOR and isinstance(given, tuple) and len(given) >= 4 and isinstance(given[0], _Stored):
        storage, offset, shape, stride = given[:4]
        whole = [isinstance(part, tuple) and all(type(n) is int and n >= 0 for n in part) for part in (shape, stride)]
        if type(offset) is int and offset >= 0 and all(whole) and stride == torch.empty(shape, device="meta").stride():
            return _Laid(storage, offset, shape)
        raise FormatError("a tensor of it does not lie in one piece")
    raise FormatError("its program calls something in a way that makes no tensor")
