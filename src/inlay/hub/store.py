"""A store of adapters: each under the digest of its files, and names for them.

    objects/DIGEST/            the files of an adapter, read-only; see `inlay.hub.files`
    tags/NAME@VERSION.json     what a name pointed to and points to; see `inlay.hub.tags`

An object comes into being by one rename, when all of it is on the disk, and goes by one: under its digest there is never half
of it, whoever is killed when. The same files are the same object, so that two who add them at a time add it once. A name is a
file that is replaced whole. Who adds shares the lock of `objects`, so that what is not named yet is not pruned; who prunes has
it alone; names change one at a time, and not while objects are pruned. The locks end with the processes that hold them.

Files are copied in: a hard link would change with the file that somebody goes on writing to.
"""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from inlay.errors import (
    CompatibilityError,
    ConfigError,
    FormatError,
    OutputError,
    UnknownNameError,
    explain,
    few,
    nearest,
)
from inlay.hub import files
from inlay.hub.tags import DIGEST, Tag, read, write
from inlay.io import output

_PART = r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
_NAME = re.compile(f"{_PART}@{_PART}")

DIGEST_PREFIX = "sha256:"
"""What a digest begins with where a name could stand; eight digits of it are enough where they are one object's alone."""

KEPT = 3
"""As many of what a name pointed to last are kept by `prune`."""

_HIDDEN = "object"
"""What hidden names in `objects` begin with, after the dot: that of an object that is being made or removed."""


def directory() -> Path:
    """Where the store lies: $INLAY_STORE, or inlay/store under the user's data directory."""
    root = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(os.environ.get("INLAY_STORE") or Path(root) / "inlay" / "store").expanduser().absolute()


def find(source: str | Path) -> Path | None:
    """The directory in the store that `source` names, as `name@version` or `sha256:DIGEST`; None where it is a path, or a name
    on the hub.

    **Raises:**

    - `UnknownNameError`: the store has none of that name.
    - `ConfigError`: it can't be a name.
    """
    text = str(source)
    is_name = "@" in text or text.startswith(DIGEST_PREFIX)
    if not is_name or "/" in text or os.sep in text or os.path.exists(source):
        return None
    return Store(directory()).path(text)


def object_of(path: str | Path) -> Path | None:
    """The object that a path leads to or into; None where it leads elsewhere."""
    objects, path = (directory() / "objects").resolve(), Path(os.path.expanduser(path)).resolve()
    inside = path.parts[len(objects.parts) :] if path.is_relative_to(objects) else ()
    return objects / inside[0] if inside else None


def is_here(source: str | Path) -> bool:
    """`source` names a directory, or what the store has: nothing that would be fetched from the hub.

    **Raises:** as `find`.
    """
    return os.path.isdir(os.path.expanduser(source)) or find(source) is not None


def check_name(name: str) -> None:
    """Refuse what can't be a name in the store.

    **Raises:**

    - `ConfigError`: it is not two parts of small letters, digits, dots and dashes with an @ between.
    """
    if not _NAME.fullmatch(name):
        wrong = "this can't be the name of an adapter in the store"
        do = "name@version, each of a-z, 0-9 and . _ - within: support@1"
        raise ConfigError(explain(wrong, found=repr(name), do=do))


@dataclasses.dataclass(frozen=True)
class Store:
    """A store in a directory, which need not exist yet."""

    root: Path

    def add(self, source: Path, name: str | None = None) -> tuple[str, Tag | None]:
        """Keep the files of a directory: (their digest, the name with what it points to now). A kept copy that is damaged is
        replaced.

        **Raises:**

        - `FormatError`: the directory is none of files alone.
        - `ConfigError`: `name` can't be one, or is pinned to other files.
        - `OutputError`: the store can't be written.
        """
        if name is not None:
            check_name(name)
        names = files.listed(source)
        with self._adding():
            digest = self._put(source, names)
            return digest, None if name is None else self._point(name, digest)

    def tag(self, name: str, digest: str) -> Tag:
        """Let a name point to an object.

        **Raises:**

        - `ConfigError`: it can't be a name, or is pinned to another one.
        """
        check_name(name)
        with self._adding():
            self.object(digest)
            return self._point(name, digest)

    def rollback(self, name: str) -> Tag:
        """Let a name point to what it pointed to before.

        **Raises:**

        - `ConfigError`: it is pinned, or there is nothing before.
        - `UnknownNameError`: there is no such name, or what was before has been pruned.
        """
        with self._naming():
            tag = self.named(name).undone()
            self.object(tag.digest)
            return self._write(tag)

    def pin(self, name: str, pinned: bool = True) -> Tag:
        """Keep a name from pointing elsewhere and from being removed; or no more."""
        with self._naming():
            return self._write(dataclasses.replace(self.named(name), pinned=pinned))

    def remove(self, name: str) -> Tag:
        """Forget a name; its object stays until the store is pruned.

        **Raises:**

        - `ConfigError`: it is pinned.
        """
        with self._naming():
            tag = self.named(name)
            tag.check_free()
            self._tag_file(name).unlink()
            output.sync_one(self.root / "tags")
            return tag

    def prune(self, keep: int = KEPT, dry_run: bool = False) -> list[str]:
        """Remove the objects that no name points to or pointed to in its last `keep` changes: their digests.

        **Raises:**

        - `FormatError`, `CompatibilityError`: a name can't be read; nothing is removed.
        """
        waiting = "waiting for those who add to the store"
        with self._written(), output.locked(self._objects, waiting=waiting), self._naming():
            kept = {digest for path in self._tag_files() for digest in read(path).last(keep)}
            doomed = [digest for digest in self.digests() if digest not in kept]
            for digest in [] if dry_run else doomed:
                self._discard(digest)
            return doomed

    def get(self, reference: str, target: Path) -> str:
        """Copy an object into a new directory, and see that it is what its digest says: the digest.

        **Raises:**

        - `OutputError`: `target` exists, or can't be written.
        - `FormatError`: the object is damaged.
        """
        digest = self.digest(reference)
        source, names = self.object(digest), files.listed(self.object(digest))
        with output.new_directory(target) as partial:
            self._compare(digest, files.copy(source, partial, names))
        return digest

    def check(self, digest: str) -> None:
        """Refuse an object whose files are not those of its digest.

        **Raises:**

        - `FormatError`: they are others.
        """
        self._compare(digest, files.digest_of(self.object(digest)))

    def _compare(self, digest: str, found: str) -> None:
        if found != digest:
            do = f"inlay store add DIR, where it came from, puts a fresh copy in the place of {self._objects / digest}"
            raise FormatError(
                explain("an adapter in the store is damaged", found=f"sha256 {found}, {digest} was kept", do=do)
            )

    def path(self, reference: str) -> Path:
        """The directory of an object, by its name or digest; its files never change.

        **Raises:**

        - `UnknownNameError`, `ConfigError`: see `digest`.
        """
        return self.object(self.digest(reference))

    def digest(self, reference: str) -> str:
        """The digest of the object that has a name, or a digest of which the beginning is given.

        **Raises:**

        - `UnknownNameError`: there is none, or there are several.
        - `ConfigError`: it can't be a name.
        """
        if not reference.startswith(DIGEST_PREFIX):
            return self.named(reference).digest
        start = reference.removeprefix(DIGEST_PREFIX)
        found = [digest for digest in self.digests() if len(start) >= 8 and digest.startswith(start)]
        if len(found) != 1:
            wrong = "this digest names no adapter, or several"
            raise UnknownNameError(
                explain(wrong, found=few(found) or f"{start}; in {self.root}", do="inlay store list; 8 digits or more")
            )
        return found[0]

    def object(self, digest: str) -> Path:
        """The directory of an object.

        **Raises:**

        - `UnknownNameError`: it is not here any more.
        """
        path = self._objects / digest
        if not path.is_dir():
            do = "inlay store list shows what there is; add it again"
            raise UnknownNameError(explain("the store has no such adapter", found=f"{path} is not there", do=do))
        return path

    def digests(self) -> list[str]:
        """The objects that there are."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in self._objects.iterdir() if DIGEST.fullmatch(path.name))
        return []

    def named(self, name: str) -> Tag:
        """A name with what it points to.

        **Raises:**

        - `UnknownNameError`: there is no such name.
        - `ConfigError`: it can't be one.
        """
        if (tag := self.known(name)).history:
            return tag
        known = [tag.name for tag in self.tags()]
        found = f"{name}; there are {', '.join(few(known)) or 'none'}, in {self.root}"
        do = nearest(name, known) or "inlay store add DIR --tag name@version"
        raise UnknownNameError(explain("the store has no adapter of that name", found=found, do=do))

    def known(self, name: str) -> Tag:
        """A name with what it points to, without a history where there is none of it.

        **Raises:**

        - `ConfigError`: it can't be one.
        - `FormatError`: it can't be read.
        """
        check_name(name)
        path = self._tag_file(name)
        return read(path) if path.is_file() else Tag(name)

    def tags(self) -> list[Tag]:
        """The names that there are.

        **Raises:**

        - `FormatError`: one can't be read.
        """
        found = []
        for path in self._tag_files():
            try:
                found.append(read(path))
            except FormatError:
                if os.path.lexists(path):  # it was not removed meanwhile
                    raise
        return found

    def names_of(self, digest: str) -> list[str]:
        """The names that point to an object; one that can't be read may."""
        found = []
        for path in self._tag_files():
            try:
                points = read(path).digest == digest
            except (FormatError, CompatibilityError):
                points = True
            if points and os.path.lexists(path):  # it was not removed meanwhile
                found.append(path.stem)
        return found

    @property
    def _objects(self) -> Path:
        return self.root / "objects"

    def _tag_file(self, name: str) -> Path:
        return self.root / "tags" / f"{name}.json"

    def _tag_files(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):
            found = [path for path in (self.root / "tags").iterdir() if _NAME.fullmatch(path.stem)]
            return sorted(path for path in found if path.suffix == ".json")
        return []

    def _put(self, source: Path, names: list[str]) -> str:
        """An object with these files, unless there is one that is whole: its digest."""
        digests: list[str] = []
        with output.new_directory(self._objects / _HIDDEN, lambda: self._free(digests[0])) as partial:
            digests.append(files.copy(source, partial, names, 0o444))
        _set_writable(self._objects / digests[0], False)
        return digests[0]

    def _free(self, digest: str) -> str:
        """Hide the object of a digest if it is damaged, and leave a whole one where it is: the digest."""
        if self._is_damaged(digest):
            with self._naming():
                if self._is_damaged(digest):  # nobody else has replaced it meanwhile
                    self._hide(digest)
        return digest

    def _is_damaged(self, digest: str) -> bool:
        try:
            self.check(digest)
        except UnknownNameError:
            return False
        except (FormatError, OSError):
            return True
        return False

    def _discard(self, digest: str) -> None:
        shutil.rmtree(self._hide(digest))

    def _hide(self, digest: str) -> Path:
        """Take an object away: what is left of it has a hidden name, and goes with the next one that is added."""
        path, hidden = self._objects / digest, self._objects / f".{_HIDDEN}{output.PARTIAL}{digest}"
        _set_writable(path, True)
        path.rename(hidden)
        return hidden

    def _point(self, name: str, digest: str) -> Tag:
        with self._naming():
            return self._write(self.known(name).moved(digest))

    def _write(self, tag: Tag) -> Tag:
        write(self._tag_file(tag.name), tag)
        return tag

    @contextlib.contextmanager
    def _adding(self) -> Iterator[None]:
        with (
            self._written(),
            output.locked(self._objects, shared=True, waiting="waiting for the store, which is being pruned"),
        ):
            yield

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        with self._written(), output.locked(self.root / "tags", waiting=""):
            yield

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Within the block the folders of the store are there, and what the system refuses names it."""
        try:
            with output.refusals(self.root):
                for folder in (self._objects, self.root / "tags"):
                    if not folder.is_dir():
                        folder.mkdir(parents=True, exist_ok=True)
                        output.sync_one(self.root)
                yield
        except OutputError as error:
            do = "INLAY_STORE=DIR is where the store lies"
            raise OutputError(explain(error.wrong, found=error.found, do=do)) from None


def _set_writable(path: Path, writable: bool) -> None:
    """Whether files may come into the folders of an object, or go."""
    for folder, _, _ in os.walk(path):
        Path(folder).chmod(0o755 if writable else 0o555)
