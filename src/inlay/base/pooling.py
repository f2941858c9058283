"""How the states of a text's tokens become its vector: as the base's own files have it, or their mean where these are silent.

A base of sentence-transformers lists its parts in `modules.json`; the folder of the one called Pooling holds a `config.json`
with `pooling_mode` and its name, or a `pooling_mode_...` of true or false for each. Every vector is scaled to length 1, so
that a part called Normalize says nothing new.
"""

from pathlib import Path
from typing import Any

from inlay.core.pooling import MEAN, MODES
from inlay.errors import CompatibilityError, explain
from inlay.io import json_files
from inlay.io.checkpoint import Checkpoint

_FLAGS = {"mean_tokens": MEAN, "cls_token": "cls", "max_tokens": "max", "lasttoken": "lasttoken"}
"""The ends of the names of flags -> the mode."""


def mode_of(checkpoint: Checkpoint) -> str:
    """The pooling of a base, one of `MODES`.

    **Raises:**

    - `FormatError`: its files are broken.
    - `CompatibilityError`: it does something else with the states than these.
    """
    listed = checkpoint.directory / "modules.json"
    if not listed.is_file():
        return MEAN
    parts = json_files.parse(json_files.read_bytes(listed))
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    kinds = {str(part.get("type", "")).rpartition(".")[2]: str(part.get("path", "")) for part in parts}
    others = sorted(kinds.keys() - {"Transformer", "Pooling", "Normalize"})
    if others:
        raise _refused(f"{listed}: {', '.join(others)}")
    if "Pooling" not in kinds:
        return MEAN
    config = checkpoint.directory / Path(kinds["Pooling"]).name / "config.json"
    wanted = _wanted(json_files.read_json(config))
    if len(wanted) != 1 or wanted[0] not in MODES:
        raise _refused(f"{config}: {' and '.join(wanted) or 'no pooling mode'}")
    return wanted[0]


def _wanted(config: dict[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if named is not None:
        return [str(mode) for mode in (named if isinstance(named, list) else [named])]
    prefix = "pooling_mode_"
    ends = [name.removeprefix(prefix) for name, on in config.items() if name.startswith(prefix) and on is True]
    return [_FLAGS.get(end, end) for end in ends]


def _refused(found: str) -> CompatibilityError:
    return CompatibilityError(
        explain(
            "this base makes vectors in a way that is not known here",
            found=found,
            do=f"a base whose pooling is one of {', '.join(MODES)}; without modules.json the mean is taken",
        )
    )
