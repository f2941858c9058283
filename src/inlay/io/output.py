"""Results that appear whole or not at all, and stay.

A directory is filled under a hidden name beside its place, written through to the disk and renamed at the end, so that Ctrl-C,
an error, a full disk or a power cut leaves nothing half-written, and nothing that was there is touched. A process that was
killed leaves its hidden directory behind: who writes the same result next removes it, when that is done or when its room is
needed. A lock, which ends with the process that holds it, tells a directory that was left from one that is being filled.
"""

import contextlib
import errno
import functools
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inlay.errors import InlayError, OutputError, explain

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask for an end: Ctrl-C, what a system sends before it stops a process, and the end of its terminal."""

PARTIAL = ".partial-"
"""What the hidden names of unfinished results have after the name of the result."""

_NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)
"""What systems answer that can't sync this kind of file: network and FUSE file systems, directories on Windows."""


def place(path: str | Path) -> Path:
    """Where an output lies that somebody named: `~` is the home directory."""
    return Path(os.path.expanduser(path))


def check_free(path: Path) -> None:
    """Refuse an output directory that exists: what is in it may be somebody's work. An empty one is as good as none.

    **Raises:**

    - `OutputError`: there is a file, or a directory with something in it, or no place to make one.
    """
    with refusals(path):
        empty = path.is_dir() and not path.is_symlink() and not path.is_mount() and not any(path.iterdir())
        taken = (path.exists() or path.is_symlink()) and not empty
    if taken:
        wrong = "the output directory exists already, and nothing is overwritten"
        raise OutputError(explain(wrong, found=str(path), do="another --output, or remove it first"))
    parent = _existing_parent(path)
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise _no_place(path, f"{parent} cannot be written to")


def check_space(path: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    **Raises:**

    - `OutputError`: less than `num_bytes` is free where `path` will lie.
    """
    parent = _existing_parent(path)
    if shutil.disk_usage(parent).free < num_bytes:
        _sweep(parent, _prefix(path))
    free = shutil.disk_usage(parent).free
    if free < num_bytes:
        raise _full(path, f"{free / 1e6:,.0f} MB are free, {num_bytes / 1e6:,.0f} MB are needed")


@contextlib.contextmanager
def new_directory(path: Path, name: Callable[[], str] | None = None, *, replacing: bool = False) -> Iterator[Path]:
    """A temporary directory that becomes `path` when the block ends, synced, and vanishes when it fails.

    A request to end is answered within the block alone: not while the directory is made, renamed or removed.

    **Arguments:**

    - `name`: asked at the end for what it is called in place of the last part of `path`, where its content decides that; one
      that is there by that name stays.
    - `replacing`: what is at `path` goes, once this is whole.

    **Raises:**

    - `OutputError`: `path` exists, or the disk is full.
    """
    if not replacing:
        check_free(path)
    with refusals(path), _Shielded() as shield:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, lock = _held(lambda: tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        try:
            with shield.lifted():
                yield partial
                partial.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would hide a shared result
                sync(partial)
            final = path if name is None else path.with_name(name())
            if replacing and final.exists():
                final.rename(partial.with_name(f"{partial.name}-before"))  # which is swept
            try:
                put(partial, final)
            except OSError:
                if name is None or not final.is_dir():
                    raise
            _sweep(path.parent, _prefix(path))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            lock()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within the block Ctrl-C and a request to end do nothing: for the short work of writing what long work has found."""
    with handled(lambda number, frame: None):
        yield


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[dict[signal.Signals, Any]]:
    """Within the block `handler` answers what asks for an end; what it gives are the handlers before.

    Signals that the process was told to ignore, as `nohup` does, stay ignored; outside the main thread nothing changes.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.getsignal(number)
                    signal.signal(number, handler)
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and sync it; its folder is made where it is missing. What `new_file` raises."""
    with new_file(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """An empty file that takes the place of `path` when the block ends, synced, and vanishes when it fails.

    A request to end waits for that. The folder is made where it is missing.

    **Raises:**

    - `OutputError`: it can't be written there, or the disk is full.
    """
    prefix = _prefix(path)
    with refusals(path), _Shielded():
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent, prefix)

        def made() -> str:
            handle, name = tempfile.mkstemp(prefix=prefix, dir=path.parent)
            os.close(handle)
            return name

        partial, lock = _held(made)
        try:
            yield partial
            partial.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide a shared result
            sync_one(partial)
            partial.replace(path)
            sync_one(path.parent)
        finally:
            partial.unlink(missing_ok=True)
            lock()


def sync(directory: Path) -> None:
    """Write a directory and all that is in it through to the disk: what is renamed before that may be empty after a power
    cut."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync_one(Path(folder) / name)
        sync_one(Path(folder))


def put(partial: Path, path: Path) -> None:
    """Give a directory that has been synced its name, for good; an empty one may stand there."""
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()
    partial.rename(path)
    sync_one(path.parent)


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written, as an `OutputError`."""
    try:
        yield
    except InlayError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise _full(path, str(error)) from None
        raise _no_place(path, error.strerror or str(error)) from None


@contextlib.contextmanager
def locked(directory: Path, shared: bool = False, waiting: str | None = None) -> Iterator[int | None]:
    """Within the block no other process works in `directory`, or with the file of that name: what is open of it, if anything.

    **Arguments:**

    - `shared`: others may, that share it too.
    - `waiting`: where one does, say this, unless it is empty, and wait for it.

    **Raises:**

    - `OutputError`: one does, and nobody waits.
    """
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield None
        return
    handle, kind = os.open(directory, os.O_RDONLY), fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                found, hint = str(directory), "wait for it, or another --output"
                raise OutputError(explain("another process is writing this", found=found, do=hint)) from None
            if waiting:
                warnings.warn(waiting, stacklevel=4)
            fcntl.flock(handle, kind)
        yield handle
    finally:
        os.close(handle)


class _Shielded:
    """Within the block requests to end wait, but for the part where the shield is lifted.

    The first one that comes there is answered by the handler before; a default that would end the process at once ends it
    after the block instead. Whatever comes later waits no more: an end is under way.
    """

    def __init__(self) -> None:
        self._lifted, self._answered = False, False
        self._waiting: list[int] = []
        self._fatal: int | None = None

    def __enter__(self) -> "_Shielded":
        self._handling = handled(self._take)
        self._before = self._handling.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._handling.__exit__(None, None, None)
        if self._fatal is not None:
            signal.raise_signal(self._fatal)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Within the block a request to end is answered."""
        self._lifted = True
        try:
            if self._waiting:
                self._take(self._waiting[0], None)
            yield
        finally:
            self._lifted = False

    def _take(self, number: int, frame: Any) -> None:
        if not self._lifted or self._answered:
            self._waiting.append(number)
            return
        self._answered = True
        handler = self._before[signal.Signals(number)]
        if not callable(handler):
            self._fatal, handler = number, signal.default_int_handler
        handler(number, frame)


def _held(make: Callable[[], str]) -> tuple[Path, Callable[[], None]]:
    """A file or directory that `make` makes, locked for as long as this process lives, and what unlocks it.

    Another process may sweep it before it is locked: then another one is made.
    """
    while True:
        path = Path(make())
        handle = _lock(path, wait=True)
        if handle is None:
            if path.exists():
                return path, lambda: None
            continue
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return path, functools.partial(os.close, handle)
        os.close(handle)


def _lock(path: Path, wait: bool = False) -> int | None:
    """An open handle that locks a path; None where the system has no such locks, it is gone, or, but for `wait`, locked."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _prefix(path: Path) -> str:
    """How the hidden names of what becomes `path` begin."""
    return f".{path.name[:100]}{PARTIAL}"


def _sweep(folder: Path, prefix: str) -> None:
    """Remove what killed processes have left: our own files and directories of this prefix that nobody has locked."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in [entry for entry in entries if entry.name.startswith(prefix)]:
            handle = _lock(Path(entry.path))
            if handle is None:
                continue
            try:
                if hasattr(os, "getuid") and os.fstat(handle).st_uid == os.getuid():
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink(missing_ok=True)
            finally:
                os.close(handle)


def sync_one(path: Path) -> None:
    """Write one file, or the names in one directory, through to the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    except PermissionError:  # a directory on Windows
        return
    try:
        os.fsync(handle)
        if sys.platform == "darwin":  # there fsync stops at the disk's own cache
            import fcntl

            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise
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
