"""What somebody else says the files of an adapter are, checked before one of them is fetched.

A name becomes a path on this machine, a size room on its disk. So a name is of plain characters, its parts are neither hidden
nor `..`, no two are one file where capitals do not count, none is a folder of another; sizes are whole numbers within bounds.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from inlay.errors import FormatError, explain, few
from inlay.fields import shown
from inlay.hub.files import MAX_FILES

MAX_BYTES = 50_000_000_000
"""Largest adapter that is fetched: whole weights of a model may be adapters too."""

MAX_DEPTH, MAX_NAME_BYTES = 8, 255
"""Folders within each other, and bytes of a part of a name, as most file systems have it."""

_DIGEST = re.compile("sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows."""


class Entry(NamedTuple):
    """A file that somebody else has."""

    name: str
    """Its path within the adapter, with slashes."""
    size: int
    digest: str
    """`sha256:` and its SHA-256, or `git:` and what git calls it: the SHA-1 of `blob SIZE`, a zero byte and the content."""
    url: str


def checked(entries: Sequence[Entry], source: str) -> list[Entry]:
    """The files that are fetched: all but hidden ones in the directory itself, which are the hub's own, as .gitattributes is.

    **Raises:**

    - `FormatError`: a name, a size or a digest can't be one, or there are more, or larger ones, than an adapter has; the
      message lists all of it.
    """
    entries = [entry for entry in entries if not re.fullmatch(r"\.[\w-]+", str(entry.name))]
    problems = [f"{shown(entry.name)}: {fault}" for entry in entries for fault in _faults(entry)]
    names = [str(entry.name) for entry in entries]
    folders = {str(parent).lower() for name in names for parent in PurePosixPath(name).parents}
    problems += [f"{shown(name)}: {times} files" for name, times in Counter(map(str.lower, names)).items() if times > 1]
    problems += [f"{shown(name)}: a file and a folder" for name in names if name.lower() in folders]
    if not 0 < len(entries) <= MAX_FILES:
        problems.append(f"{len(entries):,} files; an adapter has 1 to {MAX_FILES:,}")
    if not problems and (total := sum(entry.size for entry in entries)) > MAX_BYTES:
        problems.append(f"{total:,} bytes, at most {MAX_BYTES:,}")
    if problems:
        do = "ask its author; nothing was fetched"
        raise FormatError(explain(f"{source} can't be the files of an adapter", found=few(problems), do=do))
    return entries


def _faults(entry: Entry) -> list[str]:
    faults = []
    if not isinstance(entry.name, str) or not is_name(entry.name):
        faults.append("no name of a file")
    if type(entry.size) is not int or entry.size < 0:
        faults.append(f"size {shown(entry.size)}")
    if not isinstance(entry.digest, str) or not _DIGEST.fullmatch(entry.digest):
        faults.append(f"digest {shown(entry.digest)}")
    return faults


def is_name(name: str) -> bool:
    """It is a path within a directory, which means the same on every system."""
    parts = name.split("/")
    return (
        name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and len(parts) <= MAX_DEPTH
        and all(_is_part(part) for part in parts)
    )


def _is_part(part: str) -> bool:
    is_plain = bool(part) and not part.startswith(".") and part == part.strip(" .")
    return is_plain and len(part.encode()) <= MAX_NAME_BYTES and not _RESERVED.fullmatch(part)
