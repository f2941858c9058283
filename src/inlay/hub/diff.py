"""Where two directories of files differ, in words: values of JSON by their names, tensors by how far they are apart."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inlay import fields
from inlay.hub import files
from inlay.io import json_files, safetensors


def differences(one: Path, other: Path) -> dict[str, list[str]]:
    """file -> what differs in it; only those that do.

    **Raises:**

    - `FormatError`: a file is not what the end of its name says.
    """
    digests = [files.digests(place, files.listed(place)) for place in (one, other)]
    found: dict[str, list[str]] = {}
    for name in sorted({*digests[0], *digests[1]}):
        if name not in digests[1]:
            found[name] = ["only in the first"]
        elif name not in digests[0]:
            found[name] = ["only in the second"]
        elif digests[0][name] != digests[1][name]:
            found[name] = list(_within(one / name, other / name))
    return found


def _within(one: Path, other: Path) -> Iterator[str]:
    if one.suffix == ".json":
        values = [dict(_leaves(json_files.read_json(path), "")) for path in (one, other)]
        differ = [key for key in dict.fromkeys([*values[0], *values[1]]) if values[0].get(key) != values[1].get(key)]
        yield from (" → ".join([f"{key}: {_shown(values[0], key)}", _shown(values[1], key)]) for key in differ)
        if not differ:
            yield "written otherwise, with the same values"
    elif one.suffix == ".safetensors":
        yield from _tensors(one, other)
    else:
        yield f"{one.stat().st_size:,} bytes → {other.stat().st_size:,} bytes"


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The values of an object within objects, by the names that lead to them, with dots between."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _shown(values: dict[str, Any], key: str) -> str:
    return fields.shown(values[key]) if key in values else "none"


def _tensors(one: Path, other: Path) -> Iterator[str]:
    """How many tensors differ, and the norm of the difference over the norm of the first."""
    left, right = safetensors.read_header(one).tensors, safetensors.read_header(other).tensors
    same = [name for name in left if name in right and left[name].shape == right[name].shape]
    if len(same) < max(len(left), len(right)):
        yield f"{len(left):,} tensors → {len(right):,}, of which {len(same):,} have the same names and shapes"
    apart, norm, changed = 0.0, 0.0, 0
    for name in same:
        a, b = (safetensors.read_tensor(entries[name]).double() for entries in (left, right))
        step = float((b - a).square().sum())
        same_values = bool(a.isclose(b, rtol=0, atol=0, equal_nan=True).all())
        apart, norm, changed = apart + step, norm + float(a.square().sum()), changed + (not same_values)
    if changed:
        is_finite = norm and math.isfinite(apart / norm)
        share = f"; the difference has {(apart / norm) ** 0.5:.2g} of the first's norm" if is_finite else ""
        yield f"{changed:,} of {len(same):,} tensors differ{share}"
    elif len(same) == len(left) == len(right):
        yield "written otherwise, with the same tensors"
