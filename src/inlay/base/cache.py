"""Bases that were quantised for a run, kept for the next one: found by what they were made of.

    $INLAY_CACHE/quantized/KEY      KEY: digest of the source's fingerprint and configuration, the scheme and its version

Together they take at most `limit_bytes`: those that were used longest ago make room. One that a process computes with is
locked, and stays.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from inlay.base.quantize import quantize
from inlay.errors import ConfigError, InlayError, explain
from inlay.io import bitsandbytes, output
from inlay.io.checkpoint import Checkpoint, open_checkpoint
from inlay.io.fingerprint import cache_directory, check_written, fingerprint

LIMIT, DEFAULT_LIMIT_GB = "INLAY_CACHE_GB", 50.0
"""The variable of the environment that says how many gigabytes may be kept, and what is taken where it is not set."""

_in_use: dict[Path, contextlib.ExitStack] = {}
"""The locks of those that this process computes with, to its end."""

_LAYOUT = 2
"""Version of what an entry holds: since 2 the digest of its weights, which tells damage."""


def cached(source: Checkpoint, scheme: str, progress: Callable[[int, int], None]) -> Path:
    """The directory of `source` quantised by `scheme`: found, or made. It is not removed while this process lives.

    **Raises:** those of `inlay.base.quantize.quantize`.
    """
    if source.packed:
        wrong, do = "the weights of a GGUF file can't be quantised once more", "the same without --quantize"
        raise ConfigError(explain(wrong, found=f"{source.reference} and {scheme}", do=do))
    if source.config.get("quantization_config"):  # it is what was asked for, or can't become it: loading says which
        return source.directory
    folder = cache_directory() / "quantized"
    entry, limit = folder / _key(source, scheme), limit_bytes()
    if entry in _in_use and not _is_whole(entry):  # damaged since it was taken
        _in_use.pop(entry).close()
    if entry not in _in_use:
        _take(source, entry, scheme, progress)
    os.utime(entry)
    _make_room(folder, entry, limit)
    return entry


def _take(source: Checkpoint, entry: Path, scheme: str, progress: Callable[[int, int], None]) -> None:
    """Have the entry there, whole, and locked against removal; one process makes it, others wait for that."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = entry.parent / f".{entry.name}.lock"
    lock.touch()
    with output.locked(lock, waiting="another process is quantising this base: waiting for it"):
        while entry not in _in_use:
            if entry.exists() and not _is_whole(entry):
                shutil.rmtree(entry)
            if not entry.exists():
                quantize(source, entry, scheme, progress=progress)
            stack = contextlib.ExitStack()
            with contextlib.suppress(FileNotFoundError):  # another process has just made room
                stack.enter_context(
                    output.locked(entry, shared=True, waiting="waiting for the cache of quantised bases")
                )
                if entry.exists():
                    _in_use[entry] = stack


def limit_bytes() -> int:
    """How much may be kept.

    **Raises:**

    - `ConfigError`: the variable is no number.
    """
    text = os.environ.get(LIMIT, str(DEFAULT_LIMIT_GB))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise ConfigError(
            explain("the size of the cache is no number of gigabytes", found=f"{LIMIT}={text}", do=f"{LIMIT}=50")
        )
    return int(limit * 1e9)


def _key(source: Checkpoint, scheme: str) -> str:
    parts = [fingerprint(source).as_dict(), source.config, scheme, bitsandbytes.VERSION, _LAYOUT]
    return f"{scheme}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]}"


def _is_whole(entry: Path) -> bool:
    """All files of an entry are there, and hold what was written."""
    try:
        made = open_checkpoint(entry)
        check_written(made)
        return bool(bitsandbytes.quantized_weights(made))
    except (InlayError, OSError):
        return False


def _make_room(folder: Path, entry: Path, limit: int) -> None:
    """Remove what was used longest ago until what is left fits; neither `entry` nor what another process uses."""
    others = sorted((path for path in folder.iterdir() if path.is_dir() and path != entry), key=_last_use)
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in (*others, entry)}
    for path in others:
        if sum(sizes.values()) <= limit:
            return
        with contextlib.suppress(InlayError, OSError), output.locked(path):
            shutil.rmtree(path)
            del sizes[path]


def _last_use(path: Path) -> float:
    return path.stat().st_mtime
