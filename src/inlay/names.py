"""Modules by name: what settings such as `target_modules` and `modules_to_save` mean."""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from inlay.errors import ConfigError, explain

Names = str | tuple[str, ...]
"""Which modules: 'all-linear', names separated by commas, or a regular expression; or a tuple of names.

A string with one of the characters * + ? ( ) [ ] | \\ ^ $ is a regular expression for the whole module path; one
that takes longer than `MATCH_SECONDS` over a path is refused. A name is a module's whole path or its end: `q_proj` and
`self_attn.q_proj` both name every query projection.
"""

MATCH_SECONDS = 0.2
"""A regular expression that is longer than this over one module's path is refused."""

MAX_PATTERN = 100_000
"""The longest regular expression."""

_KEPT_PATTERNS = 2048
"""So many stay compiled: a file may have some for every module."""

_REGEX_CHARACTERS = frozenset("*+?()[]|\\^$")
_PLAIN = re.compile(r"[\w.-]+").fullmatch


def matches(pattern: str, path: str) -> bool:
    """The regular expression `pattern` is the whole of `path`.

    Found with `regex`, which can stop: adapters from elsewhere bring their patterns with them, and `re` tries (.*)*(.*)*x
    for longer than anyone waits.

    **Raises:**

    - `ConfigError`: it is none, has more than `MAX_PATTERN` characters, or takes longer than `MATCH_SECONDS`.
    """
    compiled = _compiled(pattern)
    try:
        if not isinstance(compiled, str):
            return compiled.fullmatch(path, timeout=MATCH_SECONDS) is not None
        reason = compiled
    except (TimeoutError, MemoryError) as error:
        reason = str(error) or f"no answer on {path}"
    raise ConfigError(
        explain(
            "this regular expression takes too long to say which modules it means",
            found=f"{pattern[:80]!r}: {reason}",
            do="names with commas between, or an expression without a repeat within a repeat",
        )
    )


def fault(pattern: str) -> str | None:
    """Why `pattern` is no regular expression; None where it is one."""
    compiled = _compiled(pattern)
    return compiled if isinstance(compiled, str) else None


@functools.lru_cache(_KEPT_PATTERNS)
def _compiled(pattern: str) -> Any:
    """The compiled expression, or what is wrong with it."""
    import regex

    if len(pattern) > MAX_PATTERN:
        return f"{len(pattern):,} characters"
    try:
        return regex.compile(pattern)
    except RecursionError:
        return "too many brackets within brackets"
    except Exception as error:  # errors of its own, and others on what its parser does not expect
        return str(error) or type(error).__name__


def selects(names: Names, path: str) -> bool:
    """`names` means the module at `path`: by a regular expression for the whole path, or by a name at its end."""
    if is_regex(names):
        return matches(names, path)
    return any(is_named(name, path) for name in split(names))


def is_regex(names: Names) -> TypeGuard[str]:
    return isinstance(names, str) and not _REGEX_CHARACTERS.isdisjoint(names)


def split(names: Names) -> list[str]:
    """Names with commas between them, or a tuple of names, as a list."""
    return [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]


def is_named(name: str, path: str) -> bool:
    """`name` is the whole path of a module, or its end."""
    return path == name or path.endswith(f".{name}")


def matches_end(key: str, path: str) -> bool:
    """`key` is the end of `path` from a dot on: how the exchange format looks up `rank_pattern` and the like.

    It is a regular expression there; one of names and dots alone, as most are, needs no engine to be told.
    """
    if not _PLAIN(key):
        return matches(rf"(.*\.)?({key})", path)
    start = len(path) - len(key)
    if start < 0 or (start and path[start - 1] != "."):
        return False
    end = path[start:]
    return end == key or ("." in key and all(a in (b, ".") for a, b in zip(key, end, strict=True)))


def joined(names: Names, paths: Sequence[str]) -> Names:
    """`names` and these paths, in the form that `names` has."""
    if is_regex(names):
        return "|".join([f"({names})", *(path.replace(".", r"\.") for path in paths)])
    own = split(names) if names else []
    return (*own, *(path for path in paths if path not in own))


def is_inside(path: str, modules: Iterable[str]) -> bool:
    """The module at `path` is one of these, or a part of one."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def in_utf8(name: str) -> str:
    """A name that any file can hold: bytes of a path that are no UTF-8, as Python keeps them, are written out (`r\\xe9`)."""
    return "".join(f"\\x{ord(c) & 0xFF:02x}" if "\ud800" <= c <= "\udfff" else c for c in name)


def parents(path: str) -> list[str]:
    """`path` and the paths of the modules that hold it."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
