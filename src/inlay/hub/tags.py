"""A name in the store: what it points to, and all that it pointed to before, as a file that is replaced whole.

    {"format": 1, "name": "support@1", "pinned": false,
     "history": [{"digest": ..., "date": ...}, {"digest": ..., "date": ..., "undone": true}]}

It points to the last of its history that is not undone. Rolling back undoes that one, and nothing is taken out.
"""

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from inlay import fields
from inlay.errors import CompatibilityError, ConfigError, FormatError, explain
from inlay.io import json_files, output

FORMAT = 1
"""The version of the file that is written, and the newest that is read."""

DIGEST = re.compile("[0-9a-f]{64}")
"""What an object is known by."""


class _File(TypedDict):
    name: str
    pinned: bool
    history: tuple[Mapping[str, Any], ...]


class _Entry(TypedDict):
    digest: str
    date: str
    undone: bool


@dataclasses.dataclass(frozen=True)
class Entry:
    """An object that a name was given to."""

    digest: str
    date: str
    """When, in UTC, as 2026-01-31T12:00:00Z."""
    undone: bool = False


@dataclasses.dataclass(frozen=True)
class Tag:
    """A name, and what it points to."""

    name: str
    history: tuple[Entry, ...] = ()
    pinned: bool = False

    @property
    def digest(self) -> str:
        """The object that it points to."""
        return self.current.digest

    @property
    def current(self) -> Entry:
        """The entry of its history by which it points there: the last that is not undone."""
        return self._standing[-1]

    @property
    def _standing(self) -> list[Entry]:
        return [entry for entry in self.history if not entry.undone]

    def last(self, number: int) -> set[str]:
        """What it points to, and what it was given to in its last changes."""
        return {self.digest, *(entry.digest for entry in self.history[-number:] if number)}

    def check_free(self) -> None:
        """Refuse to change a name that is pinned.

        **Raises:**

        - `ConfigError`: it is.
        """
        if self.pinned:
            found = f"{self.name}: sha256 {self.digest}"
            do = f"another version, or inlay store pin {self.name} --off"
            raise ConfigError(explain("this name is pinned", found=found, do=do))

    def moved(self, digest: str) -> "Tag":
        """The same name for another object, or for the same one.

        **Raises:**

        - `ConfigError`: it is pinned to another one.
        """
        if self.history and self.digest == digest:
            return self
        self.check_free()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return dataclasses.replace(self, history=(*self.history, Entry(digest, now)))

    def undone(self) -> "Tag":
        """The same name for what it pointed to before.

        **Raises:**

        - `ConfigError`: it is pinned, or has pointed to one alone.
        """
        self.check_free()
        standing = self._standing
        if len(standing) < 2:
            wrong, do = "there is nothing to roll back to", f"inlay store show {self.name}"
            raise ConfigError(explain(wrong, found=f"{self.name} has pointed to {self.digest} alone", do=do))
        entries = (dataclasses.replace(e, undone=True) if e is standing[-1] else e for e in self.history)
        return dataclasses.replace(self, history=tuple(entries))


def read(path: Path) -> Tag:
    """The name that a file of the store keeps.

    **Raises:**

    - `FormatError`: it can't be read, or is damaged.
    - `CompatibilityError`: a newer Inlay wrote it.
    """
    try:
        kept = json_files.read_json(path)
    except OSError as error:
        wrong, do = "a name in the store can't be read", f"ls -l {path}; remove it if the name is not needed"
        raise FormatError(explain(wrong, found=f"{path}: {error.strerror}", do=do)) from None
    if not isinstance(kept.get("format"), int) or kept["format"] > FORMAT:
        wrong, do = "this name was written by a newer Inlay", "pip install --upgrade inlay"
        raise CompatibilityError(explain(wrong, found=f"{path}: format {kept.get('format')!r}", do=do))
    try:
        found = fields.fitted(_File, kept)
        entries = [fields.fitted(_Entry, {"undone": False, **entry}) for entry in found["history"]]
        tag = Tag(found["name"], tuple(Entry(e["digest"], e["date"], e["undone"]) for e in entries), found["pinned"])
        whole = tag.digest and tag.name == path.stem and all(DIGEST.fullmatch(e.digest) for e in tag.history)
    except (ConfigError, KeyError, IndexError, TypeError):
        whole, tag = False, None
    if not whole or tag is None:
        do = "remove the file, and tag the adapter again by its digest: inlay store list"
        raise FormatError(explain("a name in the store is damaged", found=str(path), do=do))
    return tag


def write(path: Path, tag: Tag) -> None:
    """Keep a name, whole or not at all."""
    kept = {"format": FORMAT, **dataclasses.asdict(tag)}
    output.write_file(path, f"{json.dumps(kept, indent=2)}\n".encode())
