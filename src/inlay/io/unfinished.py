"""Long work on a directory that outlives its end at any moment, a kill or a power failure among them.

    .NAME.unfinished/       beside the output NAME; locked by the process that works in it
        plan                what is being made
        made/               becomes NAME by one rename

A file that has its name is whole: it was written under another one, brought to the disk, and renamed. Whoever comes with the
same plan goes on from the files that are there; with another plan everything begins anew.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from inlay.errors import OutputError, explain
from inlay.io import output

_PLAN, _MADE = "plan", "made"


class Unfinished(NamedTuple):
    """Where unfinished work lies."""

    notes: Path
    """What only the work itself needs; gone in the end."""
    made: Path
    """What becomes the output."""


@contextlib.contextmanager
def unfinished(target: Path, plan: dict[str, Any]) -> Iterator[Unfinished]:
    """Directories that become `target` when the block ends, and stay for the next run with the same `plan` when it fails.

    **Raises:**

    - `OutputError`: `target` exists, another process is working on it, or the disk is full.
    """
    output.check_free(target)
    folder = target.parent / f".{target.name[:100]}.unfinished"
    made = folder / _MADE
    with output.refusals(target):
        folder.mkdir(parents=True, exist_ok=True)
        with output.locked(folder):
            output.check_free(target)  # whoever had the lock may have finished meanwhile
            _begin(folder, json.dumps(plan).encode())
            try:
                yield Unfinished(folder, made)
                to_disk(*made.iterdir(), made)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _full(folder, error) from None
                raise
            with output.uninterrupted():
                with contextlib.suppress(FileNotFoundError):
                    target.rmdir()  # an empty directory of that name may stand there
                made.rename(target)
                shutil.rmtree(folder, ignore_errors=True)


def to_disk(*paths: Path) -> None:
    """Have files, and the names in directories, outlive a power failure."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _begin(folder: Path, plan: bytes) -> None:
    """Leave what an earlier run with the same plan has made, and nothing of any other."""
    with contextlib.suppress(FileNotFoundError):
        if (folder / _PLAN).read_bytes() == plan:
            (folder / _MADE).mkdir(exist_ok=True)
            return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / _MADE).mkdir()
    output.write_file(folder / _PLAN, plan)


def _full(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        explain(
            "the disk is full; what is finished is kept",
            found=f"{folder}: {error.strerror or error}",
            do="free some space; then the same command goes on from there",
        )
    )
