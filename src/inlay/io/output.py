"""Results that appear whole or not at all.

A directory is filled under a hidden name beside its place and renamed at the end, so that Ctrl-C, an error or a full disk
leaves nothing half-written, and nothing that was there is touched.
"""

import contextlib
import errno
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from inlay.errors import OutputError, explain

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask for an end: Ctrl-C, and what a system sends before it stops a process."""


def check_free(path: Path) -> None:
    """Refuse an output directory that exists: what is in it may be somebody's work. An empty one is as good as none.

    **Raises:**

    - `OutputError`: there is a file, or a directory with something in it, or no place to make one.
    """
    with refusals(path):
        empty = path.is_dir() and not path.is_symlink() and not path.is_mount() and not any(path.iterdir())
        taken = (path.exists() or path.is_symlink()) and not empty
    if taken:
        raise OutputError(
            explain(
                "the output directory exists already, and nothing is overwritten",
                found=str(path),
                do="another --output, or remove it first",
            )
        )
    parent = _existing_parent(path)
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise _no_place(path, f"{parent} cannot be written to")


def check_space(path: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    **Raises:**

    - `OutputError`: less than `num_bytes` is free where `path` will lie.
    """
    free = shutil.disk_usage(_existing_parent(path)).free
    if free < num_bytes:
        raise _full(path, f"{free / 1e6:,.0f} MB are free, {num_bytes / 1e6:,.0f} MB are needed")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends, and vanishes when it fails.

    **Raises:**

    - `OutputError`: `path` exists, or the disk is full.
    """
    check_free(path)
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.partial-", dir=path.parent))
        try:
            yield partial
            partial.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would hide a shared result
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()  # an empty directory of that name may stand there
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within the block Ctrl-C and a request to end do nothing: for the short work of writing what long work has found."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda n, frame: None) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide a shared result
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written, as an `OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise _full(path, str(error)) from None
        raise _no_place(path, error.strerror or str(error)) from None


@contextlib.contextmanager
def locked(directory: Path, shared: bool = False) -> Iterator[None]:
    """Within the block no other process works in `directory`; `shared`: others may, that share it too.

    **Raises:**

    - `OutputError`: one does.
    """
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise OutputError(
            explain("another process is writing this", found=str(directory), do="wait for it, or another --output")
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def _no_place(path: Path, found: str) -> OutputError:
    return OutputError(
        explain("there is no place for the output", found=f"{path}: {found}", do="--output in a folder of yours")
    )


def _full(path: Path, found: str) -> OutputError:
    return OutputError(
        explain(
            "the disk is full; nothing was left half-written",
            found=f"{path}: {found}",
            do="free some space, or --output elsewhere",
        )
    )


def _existing_parent(path: Path) -> Path:
    path = path.absolute().parent
    while not path.exists():
        path = path.parent
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
