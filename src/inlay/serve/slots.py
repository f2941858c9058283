"""Adapters that come and go on a base that answers meanwhile.

    registered   a name and a directory: its files' headers were read, and fit the base
    loaded       its tensors are in memory and attached, as one `Version`; read when a request first asks for it
    taken        a request is being answered under it, and goes on under it whatever becomes of the name

Loaded versions have a budget of bytes. For another, the one asked for least recently goes, unless it is taken or pinned;
its name stays, and it is read again when asked for. A name registered anew gets another version: who begins now takes that one.
"""

import dataclasses
import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from inlay import formats
from inlay.base.base import Base
from inlay.errors import CapacityError, ConfigError, FormatError, UnknownNameError, explain, nearest
from inlay.formats.contract import AdapterFile
from inlay.hub import sign, store, trust
from inlay.hub.files import digest_of
from inlay.layout.fitting import fitted
from inlay.model.adapter import Adapter, Sum
from inlay.serve.files import Files, files_of
from inlay.text import stops

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}(/[\w.-]{1,100})?", re.ASCII)
"""What an adapter may be called."""

_NUMBERS = itertools.count()
"""Tell versions of one name apart, also those of two servers on one base."""

SEVERAL = "+"
"""What sums are called in logs and figures; no adapter can be called so."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What is not loaded, however it is asked for."""

    budget_bytes: int = 2_000_000_000
    """Bytes of all tensors that are loaded at a time."""

    max_bytes: int = 1_000_000_000
    """Bytes of one adapter's tensors."""

    max_r: int = 512
    """The largest rank of an adapter's updates."""

    max_registered: int = 100_000

    signed_by: tuple[Path, ...] = ()
    """Public keys of which one must have signed an adapter; anybody may where there are none."""

    patience_seconds: float = 30.0
    """How long an adapter waits for room while all that are loaded are taken."""


@dataclasses.dataclass(eq=False)
class Version:
    """An adapter as it is in memory; or a sum of several, for as long as these are taken."""

    name: str
    adapter: Adapter | Sum
    digest: str
    num_bytes: int
    stop_ids: tuple[int, ...]
    """The tokens that end its answers."""
    users: int = 1
    """How many requests have taken it."""
    is_current: bool = False
    """New requests for its name take it."""


def added_up(parts: Sequence[tuple[Version, float]]) -> Version:
    """What several versions add, each times its weight.

    **Raises:**

    - `ConfigError`: see `inlay.model.adapter.Sum`.
    """
    adapters = tuple((version.adapter, weight) for version, weight in parts if isinstance(version.adapter, Adapter))
    digest = "+".join(f"{weight!r}*{version.digest}" for version, weight in parts)
    ends = tuple(dict.fromkeys(token for version, _ in parts for token in version.stop_ids))
    return Version(SEVERAL, Sum(adapters), digest, 0, ends)


@dataclasses.dataclass(eq=False)
class _Slot:
    """A name that is registered."""

    directory: Path
    files: Files
    pinned: bool
    num_bytes: int = 0
    """Bytes of its tensors, once its header was read."""
    digest: str | None = None
    version: Version | None = None


class Slots:
    """The adapters of a server, by name.

    **Arguments:**

    - `base`: what they are attached to.
    - `between`: runs a function where no pass of the model is under way, now or soon, one after the other.
    - `directories`: adapters may be loaded while it runs from these, and from what is in them.
    """

    def __init__(
        self,
        base: Base,
        between: Callable[[Callable[[], Any]], Future[Any]],
        limits: Limits | None = None,
        directories: Sequence[Path] = (),
    ):
        self.base, self._between, self.limits = base, between, limits or Limits()
        self.directories = tuple(directory.resolve() for directory in directories)
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        """By name, that which was asked for the longest ago first."""
        self._versions: list[Version] = []
        """All that are loaded, also those whose name is another's or nobody's by now."""
        self._freed = threading.Condition()
        """Its lock is held for moments; who holds `_loading` may take it, not the other way round."""
        self._loading = threading.Lock()
        self._digests = ThreadPoolExecutor(1, "inlay-digests")

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def names(self) -> list[str]:
        """The names that are registered, in order of the alphabet."""
        with self._freed:
            return sorted(self._slots)

    def digest(self, name: str) -> str | None:
        """The digest of an adapter that is or was loaded; None where its files were never read."""
        slot = self._slots.get(name)
        return slot and slot.digest

    def loaded(self) -> list[Version]:
        """All versions in memory."""
        with self._freed:
            return list(self._versions)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors that are loaded."""
        return sum(version.num_bytes for version in self.loaded())

    def allowed(self, path: str) -> Path:
        """The directory that `path` leads to, links followed; what it names in the store, where that may be loaded from.

        **Raises:**

        - `ConfigError`: it lies in none of the directories from which adapters may be loaded.
        - `UnknownNameError`: the store has none of that name. `TrustError`: see `inlay.hub.trust`.
        """
        resolved = Path(path).resolve() if "\0" not in path else None
        if resolved is not None and self._is_allowed(store.directory().resolve()):
            resolved = (store.find(path) or resolved).resolve()
        if resolved is None or not self._is_allowed(resolved):
            found = f"{path}; " + (
                "allowed directories: none" if not self.directories else "it is in no allowed directory"
            )
            raise ConfigError(
                explain("adapters can't be loaded from there", found=found, do="inlay serve --adapter-dir DIR")
            )
        if kept := store.object_of(resolved):
            trust.check_stored(kept)
        return resolved

    def _is_allowed(self, path: Path) -> bool:
        return any(path.is_relative_to(directory) for directory in self.directories)

    def register(self, name: str, directory: Path, *, pinned: bool = False) -> None:
        """Make an adapter known, by the headers of its files.

        **Arguments:**

        - `pinned`: it is never put out of memory once it is loaded.

        **Raises:**

        - `ConfigError`: the name is taken or can't be one, or the adapter is beyond the limits.
        - `UnknownNameError`, `FormatError`, `CompatibilityError`: see `inlay.formats.read` and `Base.check`.
        - `TrustError`: see `Limits.signed_by`.
        """
        self._check_name(name, replace=False)
        slot = _Slot(directory, self._looked_at(directory), pinned)
        outline, held = formats.outline(directory), self.base.adapters
        self._check(name, slot, outline)
        fitted(name, outline, held.layout, held.facts, heads=held.heads, title=held.title)
        with self._freed:
            self._check_name(name, replace=False)
            self._slots[name] = slot

    def load(self, name: str, directory: Path, *, replace: bool = False, pinned: bool = False) -> None:
        """The same, with its tensors; nothing changes where they can't be read.

        **Arguments:**

        - `replace`: it may take the name of another.

        **Raises:** what `register` and `acquire` do.
        """
        self._check_name(name, replace)
        slot = _Slot(directory, self._looked_at(directory), pinned)
        with self._loading:
            version = self._read(name, slot)
            try:
                with self._freed:
                    self._check_name(name, replace)
                    before = self._slots.pop(name, None)
                    self._slots[name], slot.version, version.is_current = slot, version, True
                    self._retire(before)
            finally:
                self.release(version)

    def unregister(self, name: str) -> None:
        """Forget an adapter; requests that have taken it go on.

        **Raises:**

        - `UnknownNameError`: there is none of that name.
        """
        with self._freed:
            self._slot(name)
            self._retire(self._slots.pop(name))

    def close(self) -> None:
        """Take every adapter off the base, once nothing steps any more."""
        self._digests.shutdown()
        while self._versions:
            self.base.detach(self._versions.pop().adapter.name)

    def taken(self, name: str) -> Version | None:
        """The version that a new request takes, where it is loaded; returns at once. `release` it afterwards.

        **Raises:**

        - `UnknownNameError`: there is none of that name.
        """
        with self._freed:
            slot = self._slot(name)
            if slot.version is None:
                return None
            self._slots.move_to_end(name)
            slot.version.users += 1
            return slot.version

    def acquire(self, name: str) -> Version:
        """The same, loaded first where it is not.

        **Raises:**

        - `UnknownNameError`: there is none of that name, or its files are gone.
        - `FormatError`: its files were changed since it was registered, or are broken.
        - `CompatibilityError`: see `Base.read`.
        - `CapacityError`: there is no room for it, since all that are loaded are taken.
        """
        with self._loading:
            if (version := self.taken(name)) is not None:
                return version
            with self._freed:
                slot = self._slot(name)
            version = self._read(name, slot)
            with self._freed:
                if self._slots.get(name) is slot:  # it may have been forgotten meanwhile
                    slot.version, version.is_current = version, True
                    self._slots.move_to_end(name)
            return version

    def release(self, version: Version) -> None:
        """Give a version back that was taken."""
        with self._freed:
            version.users -= 1
            if not version.users and not version.is_current:
                self._drop(version)
            self._freed.notify_all()

    def _read(self, name: str, slot: _Slot) -> Version:
        """An adapter from its files, taken once."""
        if files_of(slot.directory) != slot.files:
            wrong = f"the files of {name} were changed since they were looked at"
            raise FormatError(explain(wrong, found=str(slot.directory), do="load it again, in the place of this one"))
        digest = self._digests.submit(digest_of, slot.directory, [*slot.files])

        def check(_: str, outline: AdapterFile) -> None:
            self._check(name, slot, outline)
            self._make_room(name, slot.num_bytes)

        adapter = self.base.adapters.read(slot.directory, name, check)
        adapter.name = f"{name}#{next(_NUMBERS)}"
        slot.digest = digest.result()
        if files_of(slot.directory) != slot.files:
            wrong = f"the files of {name} were changed while they were read"
            raise FormatError(explain(wrong, found=str(slot.directory), do="load it again"))
        ends = tuple(dict.fromkeys([*self.base.end_tokens, *stops.stop_ids(self.base.tokenizer, adapter.record)]))
        version = Version(name, adapter, slot.digest, _num_bytes(adapter.tensors()), ends)
        attach = self.base.adapters.prepared(adapter)
        attached = self._between(lambda: self._attach(attach))
        if adapter.prompt:  # it is tried on the model, which may refuse
            attached.result()
        with self._freed:
            self._versions.append(version)
        return version

    def _looked_at(self, directory: Path) -> Files:
        """The files of an adapter, signed where that is asked for: others are refused when it is read."""
        files = files_of(directory)
        if self.limits.signed_by:
            sign.required(directory, self.limits.signed_by, directory.name)
        return files

    def _attach(self, attach: Callable[[], Adapter]) -> None:
        attach()
        self.base.active = None

    def _make_room(self, name: str, num_bytes: int) -> None:
        """Put versions out of memory until so many bytes more are within the budget."""

        def has_room() -> bool:
            left = self.limits.budget_bytes - sum(version.num_bytes for version in self._versions) - num_bytes
            for slot in list(self._slots.values()):
                if left >= 0:
                    break
                version = slot.version
                if version is not None and not version.users and not slot.pinned:
                    self._retire(slot)
                    left += version.num_bytes
            return left >= 0

        with self._freed:
            if self._freed.wait_for(has_room, self.limits.patience_seconds):
                return
            found = f"{name}: {num_bytes:,} bytes; {len(self._versions)} adapters are in use, of {self.limits.budget_bytes:,}"
        raise CapacityError(explain("there is no room for another adapter now", found=found, do="ask again later"))

    def _retire(self, slot: _Slot | None) -> None:
        """New requests take this version no more; out of memory with it, as soon as nobody does."""
        if slot is not None and slot.version is not None:
            version, slot.version = slot.version, None
            version.is_current = False
            if not version.users:
                self._drop(version)

    def _drop(self, version: Version) -> None:
        self._versions.remove(version)
        self._between(lambda: self.base.detach(version.adapter.name))

    def _slot(self, name: str) -> _Slot:
        if name not in self._slots:
            near = nearest(name[:100], self._slots)
            found = f"{name[:100]!r}" + (f"; there is {near}" if near else "")
            raise UnknownNameError(explain("there is no adapter of that name", found=found))
        return self._slots[name]

    def _check_name(self, name: str, replace: bool) -> None:
        if not _NAME.fullmatch(name) or name == self.base.checkpoint.name:
            do = "letters, digits, dots, dashes and underscores, and not the name of the base"
            raise ConfigError(explain("an adapter can't be called so", found=f"{name[:100]!r}", do=do))
        if name in self._slots and not replace:
            found = f"{name}: {self._slots[name].directory}"
            raise ConfigError(
                explain("an adapter of that name is loaded already", found=found, do="load_inplace, or unload it first")
            )
        if name not in self._slots and len(self._slots) >= self.limits.max_registered:
            raise ConfigError(
                explain("there are too many adapters", found=f"{len(self._slots):,}", do="unload some first")
            )

    def _check(self, name: str, slot: _Slot, outline: AdapterFile) -> None:
        """Refuse an adapter, by its outline, that is for another base or beyond the limits."""
        self.base.check(name, outline)
        slot.num_bytes = _num_bytes(tensor for tensors in outline.params.values() for tensor in tensors.values())
        limits = self.limits
        most = min(limits.max_bytes, limits.budget_bytes)
        found = [f"r={outline.rank}, at most {limits.max_r}"] * (outline.rank > limits.max_r)
        found += [f"{slot.num_bytes:,} bytes, at most {most:,}"] * (slot.num_bytes > most)
        if found:
            wrong = f"{name} is larger than adapters may be here"
            raise ConfigError(explain(wrong, found=found, do="inlay serve --max-r, --adapter-memory"))


def _num_bytes(tensors: Iterator[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
