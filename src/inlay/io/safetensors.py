"""Safetensors files: the header, checked before anything is mapped, and the tensors of small files.

A safetensors file is 8 bytes (the header's length N, little-endian), N bytes of JSON (name -> dtype, shape, data_offsets)
and the tensors' bytes. A reader that trusts it reads past its end, or takes the rest of a truncated download for weights.
Checked here: the length fits the file and a limit; the JSON is an object; every dtype is known; every tensor's bytes are as
many as its shape says; together they cover the data exactly. Nothing is ever unpickled.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from inlay.errors import CapacityError, FormatError, UnknownNameError, explain, few
from inlay.fields import shown
from inlay.io import json_files

MAX_HEADER_BYTES = 25_000_000
"""Longest header that is read: 200,000 tensors. Parsed, it takes up to twenty times as much memory."""

MAX_DIMENSIONS, MAX_LENGTH = 8, 2**40
"""A tensor has at most so many dimensions, each at most so long."""

BYTES_PER_ELEMENT = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Size of the elements of each dtype of the format."""

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "F32": torch.float32,
    "I64": torch.int64, "F64": torch.float64,
}  # fmt: skip
"""The dtypes of the format that tensors are read in."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
"""Names that hold pickled weights, which run code when they are read."""


class TensorEntry(NamedTuple):
    """Where a tensor lies in its file: `start` <= byte < `stop`, counted from the beginning of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a safetensors file holds."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The checked header of the safetensors file at `path`.

    **Raises:**

    - `FormatError`: the file is not safetensors, is truncated, or contradicts itself; the message lists every problem.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _broken(path, f"its header claims {length:,} bytes, the file has {size:,}")
        if length > MAX_HEADER_BYTES:
            raise _broken(path, f"its header has {length:,} bytes, more than the {MAX_HEADER_BYTES:,} that are read")
        try:
            header = json_files.parse(file.read(length))
        except FormatError as error:
            raise _broken(path, f"in its header, {error}") from None
        except (ValueError, RecursionError) as error:  # too many brackets within each other
            raise _broken(path, f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _broken(path, f"its header is a {type(header).__name__}, not an object")
    metadata = header.pop("__metadata__", {})
    problems: list[str] = []
    tensors = {name: entry for name, raw in header.items() if (entry := _entry(path, name, raw, 8 + length, problems))}
    if not problems:
        _check_cover(tensors, 8 + length, size, problems)
    if problems:
        raise _broken(path, *few(problems))
    return Header(tensors, metadata if isinstance(metadata, dict) else {})


class Writer:
    """A safetensors file that is filled tensor by tensor, in any order, without holding any of them.

    Tensors of wide elements lie in front, so that each is aligned for its dtype.
    """

    def __init__(
        self,
        path: Path,
        layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ):
        names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
        ordered = sorted(layout.items(), key=lambda item: -item[1][0].itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        self._starts, end = {}, 0
        for name, (dtype, shape) in ordered:
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
            self._starts[name] = start
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.num_bytes = 8 + len(text) + end
        self._file = path.open("wb")
        self._data_start = 8 + len(text)
        try:
            self._file.write(len(text).to_bytes(8, "little") + text)
            self._file.truncate(self.num_bytes)
        except OSError:
            self.close()
            raise

    def put(self, name: str, tensor: Tensor) -> None:
        """Write the tensor called `name`."""
        self.put_bytes(name, 0, tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)

    def put_bytes(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Write some bytes of the tensor called `name`, from its byte `offset` on."""
        self._file.seek(self._data_start + self._starts[name] + offset)
        self._file.write(data)

    def close(self) -> None:
        """Have everything on the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            with contextlib.suppress(OSError):  # said already, where the disk is full
                self._file.close()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of these tensors, which is on the disk then.

    It is written where it lies: `safetensors.torch.save_file` writes another one beside it, with a name that nobody knows, and
    leaves it there when the process is killed.
    """
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with contextlib.closing(Writer(path, layout, metadata)) as writer:
        for name, tensor in tensors.items():
            writer.put(name, tensor)


def outlines(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their numbers: shapes and dtypes, on the meta device.

    **Raises:**

    - `FormatError`: the file is not safetensors, is truncated, contradicts itself, or has a dtype that torch does not.
    """
    return {
        name: torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype], device="meta")
        for name, entry in _readable(path).items()
    }


def _readable(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file by name, all of dtypes that torch has."""
    entries = read_header(path).tensors
    strange = [f"{name}: {entry.dtype}" for name, entry in entries.items() if entry.dtype not in TORCH_DTYPES]
    if strange:
        raise FormatError(explain("tensors of dtypes that can't be read", found=few(strange)))
    return entries


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file in memory, in one block: for adapters, which are small and come and go.

    The file is mapped and copied whole: faster than reading it, and what becomes of the file later changes nothing.

    **Raises:**

    - `FormatError`: as `outlines`.
    - `CapacityError`: there is less memory free than the file has bytes.
    """
    entries = _readable(path)
    data_start = min((entry.start for entry in entries.values()), default=0)
    size, free = path.stat().st_size, psutil.virtual_memory().available
    if size > free:
        found, do = f"{path}: {size:,} bytes, with {free:,} free", "a machine with more memory"
        raise CapacityError(explain("this file is larger than the memory", found=found, do=do))
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[data_start:].clone()
    return {name: view(data[e.start - data_start : e.stop - data_start], e) for name, e in entries.items()}


def read_tensor(entry: TensorEntry) -> Tensor:
    """One tensor, in memory of its own."""
    data = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
    whole = data.numpy()
    for start, chunk in chunks(entry, 64 << 20):
        whole[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
    return view(data, entry)


def chunks(entry: TensorEntry, size: int) -> Iterator[tuple[int, bytes]]:
    """The bytes of a tensor in order, `size` at a time, each with its place among them.

    **Raises:**

    - `FormatError`: the file has become shorter.
    """
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        for start in range(0, entry.stop - entry.start, size):
            wanted = min(size, entry.stop - entry.start - start)
            chunk = file.read(wanted)
            if len(chunk) < wanted:
                raise FormatError(explain("a weight file became shorter while it was read", found=str(entry.file)))
            yield start, chunk


def refuse_pickles(directory: Path, wanted: str) -> FormatError | UnknownNameError:
    """The error for a directory without safetensors: its pickles are named where it has some."""
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        return FormatError(
            explain(
                "these weights are pickled, and a pickle runs whatever code its author put into it",
                found=f"{directory} has {', '.join(pickles[:3])} and no {wanted}",
                do="ask its author for safetensors, or convert it with a tool and a sandbox that you trust",
            )
        )
    return UnknownNameError(
        explain(
            f"there is no {wanted} in this directory", found=str(directory), do="check the path for a missing level"
        )
    )


def is_finite(tensor: Tensor) -> bool:
    """Neither NaN nor infinite: either would be the least or the greatest value."""
    return not tensor.numel() or all(math.isfinite(value) for value in tensor.float().aminmax())


def view(data: Tensor, entry: TensorEntry) -> Tensor:
    """The bytes `data` as the tensor that `entry` says; a copy where they are not aligned for its dtype."""
    dtype = TORCH_DTYPES[entry.dtype]
    aligned = data if data.storage_offset() % dtype.itemsize == 0 else data.clone()
    return aligned.view(dtype).view(entry.shape)


def _entry(path: Path, name: str, raw: Any, data_start: int, problems: list[str]) -> TensorEntry | None:
    try:
        dtype, shape = raw["dtype"], tuple(raw["shape"])
        start, stop = raw["data_offsets"]
        valid = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, start, stop))
        valid = valid and len(shape) <= MAX_DIMENSIONS and all(n <= MAX_LENGTH for n in shape)
    except (TypeError, KeyError, ValueError):
        valid, dtype, shape, start, stop = False, None, (), 0, 0
    if not valid:
        problems.append(f"{name}: its entry is not dtype, shape and data_offsets")
    elif dtype not in BYTES_PER_ELEMENT:
        problems.append(f"{name}: unknown dtype {shown(dtype)}")
    elif stop - start != math.prod(shape) * BYTES_PER_ELEMENT[dtype]:
        problems.append(f"{name}: {stop - start:,} bytes for shape {shape} of {dtype}")
    else:
        return TensorEntry(path, dtype, shape, data_start + start, data_start + stop)
    return None


def _check_cover(tensors: dict[str, TensorEntry], data_start: int, size: int, problems: list[str]) -> None:
    end = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: item[1].start):
        if entry.start != end:
            problems.append(f"{name}: its bytes start at {entry.start:,}, not at {end:,} where the last tensor's end")
            return
        end = entry.stop
    if end != size:
        problems.append(
            f"the tensors end at byte {end:,}, the file has {size:,}: it is {'truncated' if size < end else 'longer'}"
        )


def _broken(path: Path, *problems: str) -> FormatError:
    return FormatError(
        explain("this is not a whole safetensors file", found=[f"{path}: {p}" for p in problems], do="fetch it again")
    )
