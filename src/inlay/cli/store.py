"""Keep adapters under names and versions.

`inlay store add DIR --tag name@version` keeps an adapter, every command takes it by that name, and `inlay store list` shows
what there is. Each verb has its own --help, and --json prints one object.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from inlay import formats
from inlay.errors import ConfigError, explain
from inlay.hub import diff, files, remotes, store, transfer
from inlay.hub.tags import Tag
from inlay.io import records
from inlay.io.fingerprint import short
from inlay.options.flags import Common
from inlay.options.types import Mark
from inlay.screen import emit, fact, say, size

Name = Annotated[str, Mark(is_positional=True, metavar="NAME@VERSION")]
Reference = Annotated[str, Mark(is_positional=True, metavar="ADAPTER")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Verb(Common):
    def _store(self) -> store.Store:
        return store.Store(store.directory())

    def _told(self, text: str, values: dict[str, Any]) -> int:
        say("store", text)
        if self.json:
            emit(values)
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Add(_Verb):
    """Keep a copy of an adapter, under the digest of its files; the copy never changes."""

    adapter: Reference
    """The adapter: a directory, name@version in the store, or a name on the hub."""

    tag: str | None = None
    """Its name, as name@version; without one it goes with the next `inlay store prune`."""

    def run(self) -> int:
        formats.outline(self.adapter)
        held = self._store()
        known = held.known(self.tag) if self.tag is not None else Tag("")
        digest, tag = held.add(formats.fetched(self.adapter), self.tag)
        text = f"{self.tag or 'without a name'} · sha256 {short(digest)} · {size(files.num_bytes(held.object(digest)))}"
        if known.history and known.digest != digest:
            text += f"\nit was {short(known.digest)}: inlay store rollback {self.tag} goes back"
        return self._told(text, {"digest": digest, "name": tag and tag.name, "path": str(held.object(digest))})


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(_Verb):
    """The names, what they point to, and what has none."""

    def run(self) -> int:
        held = self._store()
        tags, digests = held.tags(), held.digests()
        width = max((len(tag.name) for tag in tags), default=0)
        for tag in tags:
            there = size(files.num_bytes(held.object(tag.digest))) if tag.digest in digests else "not here any more"
            base = records.read(held.object(tag.digest)).get("base", {}).get("name") if tag.digest in digests else None
            parts = [there, tag.current.date[:10], base, tag.pinned and "pinned"]
            fact("", " · ".join([f"{tag.name:<{width}}  {short(tag.digest)}", *filter(None, parts)]))
        loose = [digest for digest in digests if digest not in {tag.digest for tag in tags}]
        for digest in loose:
            fact("", f"{store.DIGEST_PREFIX}{digest} · {size(files.num_bytes(held.object(digest)))} · no name")
        if not tags and not loose:
            say("store", f"nothing in {held.root}: inlay store add DIR --tag name@version")
        if self.json:
            names = {tag.name: dataclasses.asdict(tag) for tag in tags}
            emit({"store": str(held.root), "names": names, "loose": loose})
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(_Verb):
    """The files and the history of a name, and whether the files are those that were kept."""

    adapter: Reference
    """name@version, or sha256:DIGEST."""

    def run(self) -> int:
        held = self._store()
        digest = held.digest(self.adapter)
        path = held.object(digest)
        found = files.digests(path, files.listed(path))
        held.check(digest)
        fact("digest", digest)
        fact("path", str(path))
        for name, own in found.items():
            fact("file", f"{own[:16]}  {name} · {size((path / name).stat().st_size)}")
        tag = Tag(self.adapter) if self.adapter.startswith(store.DIGEST_PREFIX) else held.named(self.adapter)
        for entry in tag.history:
            now = " · undone" * entry.undone + " · now" * (entry is tag.current)
            fact("history", f"{entry.date} · {short(entry.digest)}{now}")
        if self.json:
            history = [dataclasses.asdict(entry) for entry in tag.history]
            emit({"digest": digest, "path": str(path), "files": found, "history": history})
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Locate(_Verb):
    """Print the directory of an adapter, for other programs; its files never change."""

    adapter: Reference
    """name@version, or sha256:DIGEST."""

    def run(self) -> int:
        path = self._store().path(self.adapter)
        print(path)
        if self.json:
            emit({"path": str(path)})
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Get(_Verb):
    """Copy an adapter into a directory of yours, and see that it is what was kept."""

    adapter: Reference
    """name@version, or sha256:DIGEST."""

    output: Path
    """The directory for it; it must not exist."""

    def run(self) -> int:
        digest = self._store().get(self.adapter, self.output)
        return self._told(f"{self.output}/  sha256 {short(digest)}", {"digest": digest, "output": str(self.output)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point(_Verb):
    """Give an adapter of the store another name, or a name another adapter."""

    adapter: Reference
    """name@version, or sha256:DIGEST."""

    name: Name
    """What it is called from now on."""

    def run(self) -> int:
        held = self._store()
        return self._told(*_moved(held.tag(self.name, held.digest(self.adapter))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollback(_Verb):
    """Let a name point to what it pointed to before."""

    name: Name
    """The name."""

    def run(self) -> int:
        return self._told(*_moved(self._store().rollback(self.name)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pin(_Verb):
    """Keep a name where it is: it is not given to others, rolled back or removed."""

    name: Name
    """The name."""

    off: bool = False
    """Let it move again."""

    def run(self) -> int:
        tag = self._store().pin(self.name, not self.off)
        text = f"{tag.name} is {'pinned' if tag.pinned else 'free'} · sha256 {short(tag.digest)}"
        return self._told(text, _kept(tag))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remove(_Verb):
    """Forget a name; the files stay until `inlay store prune`."""

    name: Name
    """The name."""

    def run(self) -> int:
        tag = self._store().remove(self.name)
        return self._told(f"{tag.name} is gone; {store.DIGEST_PREFIX}{tag.digest} stays until it is pruned", _kept(tag))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prune(_Verb):
    """Remove the files that no name points to, and what broken transfers have left."""

    keep: int = store.KEPT
    """What a name pointed to in its last changes is kept: in so many of them."""

    dry_run: bool = False
    """Say what would be removed, and remove nothing."""

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ConfigError(explain("--keep must be at least 0", found=f"--keep {self.keep}", do="--keep 0"))

    def run(self) -> int:
        held = self._store()
        gone = held.prune(self.keep, self.dry_run)
        if not self.dry_run:
            transfer.sweep(remotes.incoming(held))
        for digest in gone:
            fact("", store.DIGEST_PREFIX + digest)
        verb = "would be removed" if self.dry_run else "removed"
        return self._told(f"{len(gone):,} {verb}", {"removed": gone, "dry_run": self.dry_run})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diff(_Verb):
    """Where two adapters differ: settings, record, tensors."""

    adapter: Reference
    """The adapter: a directory, or name@version in the store."""

    other: Reference
    """Another one."""

    def run(self) -> int:
        found = diff.differences(formats.fetched(self.adapter), formats.fetched(self.other))
        for name, lines in found.items():
            for line in lines:
                fact("", f"{name}: {line}")
        if not found:
            say("store", "the same files")
        if self.json:
            emit({"differences": found})
        return 0


VERBS = {
    "add": Add, "list": List, "show": Show, "path": Locate, "get": Get, "tag": Point, "diff": Diff, "rollback": Rollback,
    "pin": Pin, "remove": Remove, "prune": Prune,
}  # fmt: skip
"""What can be done to the store, in the order of the help."""


def _moved(tag: Tag) -> tuple[str, dict[str, Any]]:
    return f"{tag.name} is sha256 {short(tag.digest)}", _kept(tag)


def _kept(tag: Tag) -> dict[str, Any]:
    return {"name": tag.name, "digest": tag.digest, "pinned": tag.pinned}
