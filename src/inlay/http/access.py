"""Who may ask: keys, each with the adapters that it may see.

    [{"name": "shop", "key": "...", "adapters": ["support", "tone"]},
     {"name": "me", "key": "...", "adapters": "all", "manage": true}]

`adapters` are names; "all" sees the plain base and every adapter, and the base is seen by whoever has "base" among the names.
`manage`: it may load and unload adapters. Without a file of keys everybody who can connect is allowed everything.
"""

import dataclasses
import hashlib
import hmac
from pathlib import Path
from typing import Any

from inlay.errors import FormatError, UnknownNameError, explain, few
from inlay.io import json_files

BASE, ALL = "base", "all"
MIN_CHARACTERS = 16
"""Shorter keys can be guessed."""


@dataclasses.dataclass(frozen=True)
class Caller:
    """Whose request it is, and what they may do."""

    name: str
    adapters: frozenset[str] | None = None
    """None: all, and the base."""
    manages: bool = False

    def sees(self, name: str | None) -> bool:
        """They may ask this adapter; None: the plain base."""
        return self.adapters is None or (BASE if name is None else name) in self.adapters


ANYBODY = Caller("anybody", None, True)


class Access:
    """The keys of a server; none: everybody is allowed everything."""

    def __init__(self, callers: dict[str, Caller] | None = None):
        self._callers = None if callers is None else [(_digest(key), caller) for key, caller in callers.items()]

    @property
    def is_open(self) -> bool:
        """There are no keys."""
        return self._callers is None

    def caller(self, authorization: str | None) -> Caller | None:
        """Whose key stands in an `Authorization` header; None: nobody's. Takes the same time whatever the key."""
        if self._callers is None:
            return ANYBODY
        kind, _, key = (authorization or "").partition(" ")
        given, found = _digest(key.strip()), None
        for digest, caller in self._callers:
            if hmac.compare_digest(digest, given):
                found = caller
        return found if kind.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read(path: Path) -> Access:
    """The keys in a file.

    **Raises:**

    - `UnknownNameError`: there is no such file.
    - `FormatError`: it holds no list of keys; everything that is wrong is named.
    """
    try:
        listed = json_files.parse(json_files.read_bytes(path))
    except OSError as error:
        found = f"{path}: {error.strerror}"
        raise UnknownNameError(explain("the file of keys can't be read", found=found, do="--api-keys FILE")) from None
    except (ValueError, RecursionError) as error:
        raise FormatError(explain("the file of keys is not JSON", found=f"{path}: {error}")) from None
    entries = listed if isinstance(listed, list) else []
    problems = [] if entries else ["no list of keys"]
    callers: dict[str, Caller] = {}
    for number, entry in enumerate(entries):
        wrong = _problem(entry)
        wrong = wrong or ("a key that stands there twice" if entry["key"] in callers else "")
        if wrong:
            problems.append(f"entry {number}: {wrong}")  # not the entry: keys are secret
            continue
        adapters = None if entry["adapters"] == ALL else frozenset(entry["adapters"])
        callers[entry["key"]] = Caller(entry["name"], adapters, entry.get("manage", False))
    if problems:
        do = '[{"name": "shop", "key": "...", "adapters": ["support"]}]'
        raise FormatError(explain(f"{path} holds no keys as they have to be", found=few(problems), do=do))
    return Access(callers)


def _problem(entry: Any) -> str:
    if not isinstance(entry, dict) or not {"name", "key", "adapters"} <= entry.keys() <= {
        "name",
        "key",
        "adapters",
        "manage",
    }:
        return "not an object with name, key, adapters and perhaps manage"
    names = entry["adapters"]
    if (
        not isinstance(entry["name"], str)
        or not isinstance(entry["key"], str)
        or not isinstance(entry.get("manage", False), bool)
    ):
        return "name and key are texts, manage is true or false"
    if names != ALL and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return 'adapters is "all", or a list of names'
    if len(entry["key"]) < MIN_CHARACTERS or not entry["key"].isascii() or entry["key"].split() != [entry["key"]]:
        return f"a key has at least {MIN_CHARACTERS} characters of ASCII, no blanks"
    return ""
