"""The files of an adapter and the digest that they are known by, wherever they lie.

    listing  a line for each file, sorted by name: its SHA-256, two spaces, its name; what `sha256sum` prints
    digest   the SHA-256 of the listing

Without Inlay, the digest of a directory is what this says in it:
`find . -type f | cut -c3- | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum | sha256sum`
"""

import concurrent.futures
import hashlib
import os
import shutil
import warnings
from pathlib import Path

from inlay.errors import FormatError, explain, few
from inlay.io.checkpoint import hub_name

MAX_FILES = 1_000
"""As many files has an adapter; a directory with more is something else."""

_CHUNK_BYTES = 1 << 20


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
            elif path.is_symlink() and (path.is_dir() or not any(path.resolve().is_relative_to(at) for at in own)):
                wrong.append(f"{name}, a link to {os.readlink(path)}")
            elif path.is_file() and (not name.isprintable() or "\\" in name):
                wrong.append(f"{name!r}, a name that can't be listed")
            elif path.is_file() and not os.access(path, os.R_OK):
                wrong.append(f"{name}, which may not be read")
            elif path.is_file():
                names.append(name)
            elif not path.is_dir():
                wrong.append(f"{name}, no file")
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


def digests(directory: Path, names: list[str]) -> dict[str, str]:
    """The SHA-256 of each file, in hexadecimal; several files at a time."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(directory / name), names), strict=True))


def digest_of(directory: Path, names: list[str] | None = None) -> str:
    """The digest of a directory, in hexadecimal; of all its files unless their names are given."""
    found = digests(directory, listed(directory) if names is None else names)
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(found.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def copy(source: Path, target: Path, names: list[str]) -> None:
    """Copy files, and follow the links among them, into a directory that exists."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile((source / name).resolve(), target / name)


def num_bytes(directory: Path) -> int:
    """What the files of a directory take."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
