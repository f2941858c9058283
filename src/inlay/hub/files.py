"""The files of an adapter and the digest that they are known by, wherever they lie.

    listing  a line for each file, sorted by name: its SHA-256, two spaces, its name; what `sha256sum` prints
    digest   the SHA-256 of the listing

Without Inlay, the digest of a directory is what this says in it:
`find . -type f | cut -c3- | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum | sha256sum`
"""

import concurrent.futures
import contextlib
import hashlib
import io
import mmap
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from inlay.errors import FormatError, explain, few
from inlay.io import output
from inlay.io.checkpoint import hub_name

MAX_FILES = 1_000
"""As many files has an adapter; a directory with more is something else."""

_CHUNK_BYTES, _PIECE_BYTES = 1 << 18, 1 << 23


def listed(directory: Path) -> list[str]:
    """The names of the files of an adapter, in folders as well, sorted; what is hidden is left out, and that is said.

    **Raises:**

    - `FormatError`: a link leads out of it, something is no file, a name has a character that ends lines, or there is no file
      or more than `MAX_FILES`.
    """
    own = [directory.resolve()]
    if hub_name(str(own[0])):  # a snapshot in the hub's cache: links to where that keeps the contents
        own.append((own[0].parents[1] / "blobs").resolve())
    names, hidden, wrong = [], [], []
    for folder, folders, files in os.walk(directory):
        for path in sorted(Path(folder) / name for name in [*folders, *files]):
            name = path.relative_to(directory).as_posix()
            if path.name.startswith("."):
                hidden.append(name)
            elif problem := _problem(path, name, own):
                wrong.append(problem)
            elif path.is_file():
                names.append(name)
        folders[:] = [name for name in folders if not name.startswith(".")]
    if wrong:
        do = f"cp -rL {directory} COPY follows links; take out what is not the adapter's"
        raise FormatError(explain("this directory holds more than files", found=[*few(wrong)], do=do))
    if not 0 < len(names) <= MAX_FILES:
        found = f"{directory}: {len(names):,} files; an adapter has 1 to {MAX_FILES:,}"
        raise FormatError(explain("this directory is no adapter", found=found, do="the directory of one adapter"))
    if hidden:
        warnings.warn(f"hidden files are left out: {', '.join(few(hidden))}", stacklevel=2)
    return sorted(names)


def _problem(path: Path, name: str, own: list[Path]) -> str:
    """Why this is no file and no folder of an adapter, whose contents lie in `own`; empty where it is one."""
    if path.is_symlink() and (path.is_dir() or not any(path.resolve().is_relative_to(at) for at in own)):
        return f"{name}, a link to {os.readlink(path)}"
    if path.is_dir():
        return ""
    if not path.is_file():
        return f"{name}, no file"
    if not name.isprintable() or "\\" in name:
        return f"{name!r}, a name that can't be listed"
    return "" if os.access(path, os.R_OK) else f"{name}, which may not be read"


def files_like(directory: Path, pattern: str) -> list[Path]:
    """The files of a directory whose names fit a pattern, sorted; no hidden ones, of which is no digest and no signature."""
    return sorted(path for path in directory.glob(pattern) if path.is_file() and not path.name.startswith("."))


def digests(directory: Path, names: list[str]) -> dict[str, str]:
    """The SHA-256 of each file, in hexadecimal; several files at a time."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(directory / name), names), strict=True))


def digest_of(directory: Path, names: list[str] | None = None) -> str:
    """The digest of a directory, or of these of its files, in hexadecimal."""
    return _total(digests(directory, listed(directory) if names is None else names))


def copy(source: Path, target: Path, names: list[str], mode: int = 0o666) -> str:
    """Copy files, and follow the links among them, into a directory that exists, through to the disk: the digest of what was
    written.

    One thread digests meanwhile what is in the copy, and another one has the disk begin: there is less to wait for at the end.

    **Arguments:**

    - `mode`: who may read and write the copies, less what the process keeps from others.
    """
    found = {name: hashlib.sha256() for name in names}
    behind = list[concurrent.futures.Future[None]]()
    with concurrent.futures.ThreadPoolExecutor(1) as digesting, concurrent.futures.ThreadPoolExecutor(1) as syncing:
        for name in names:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for start, stop in _copied(source / name, path, mode):
                behind.append(digesting.submit(_digest_piece, path, found[name], start, stop))
                behind.append(syncing.submit(output.sync_one, path))
        output.sync(target)
    for future in behind:
        future.result()
    return _total({name: digest.hexdigest() for name, digest in found.items()})


def _copied(source: Path, target: Path, mode: int) -> Iterator[tuple[int, int]]:
    """The pieces of a file, from byte to byte, each once it is in its copy."""
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    with source.open("rb", buffering=0) as read, open(handle, "wb", buffering=0) as written:
        while count := _copy_piece(read, written):
            yield written.tell() - count, written.tell()


def _copy_piece(read: io.FileIO, written: io.FileIO) -> int:
    """Copy the next bytes; how many, and none at the end."""
    if sys.platform == "linux":  # whose kernel copies by itself on most file systems; what else is wrong, writing says
        with contextlib.suppress(OSError):
            return os.sendfile(written.fileno(), read.fileno(), None, _PIECE_BYTES)
    piece = left = memoryview(read.read(_CHUNK_BYTES) or b"")
    while left:
        left = left[written.write(left) :]
    return len(piece)


def num_bytes(directory: Path) -> int:
    """What the files of a directory take."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _total(found: Mapping[str, str]) -> str:
    """The digest of a listing."""
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def _digest(path: Path) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _digest_piece(path: Path, digest: "hashlib._Hash", start: int, stop: int) -> None:
    """Go on with a digest by what a file has from byte to byte; mapped, since to read it takes a fifth of the time."""
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), stop - first, access=mmap.ACCESS_READ, offset=first)
    digest.update(memoryview(pages)[start - first :])
