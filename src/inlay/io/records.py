"""`inlay.json`: what the formats of adapters and bases have no place for, such as the fingerprint of a base.

format      the version of this file
base        by what the base is known, see `inlay.io.fingerprint`; its licence, where its card says it
computes    what the base computes; see `inlay.io.meaning`
data        the data's name, digest and licence
training    steps, losses, settings
task        the task and its labels
needs       the packages outside ours that bring its method or task, as pip writes them
text        what was trained on, templates or texts, and the tokens that end an answer
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from inlay import fields
from inlay.errors import CompatibilityError, explain
from inlay.io import json_files, meaning, output

RECORD = "inlay.json"
FORMAT = 1
"""The version of `inlay.json` that is written, and the newest that is read."""


class _Record(TypedDict, total=False):
    """The parts of `inlay.json` that are read again, none of which has to be there."""

    base: Mapping[str, str | None]
    computes: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    task: Mapping[str, Any]
    text: Mapping[str, Any]
    needs: Mapping[str, str]


class _Data(TypedDict, total=False):
    source: str
    license: str | None


class _Text(TypedDict, total=False):
    form: str
    stop_tokens: tuple[str, ...]


class _Task(TypedDict, total=False):
    name: str
    labels: tuple[str, ...]


class _Training(TypedDict, total=False):
    steps: int
    eval_loss_before: float | None
    eval_loss: float | None


def read(directory: Path) -> dict[str, Any]:
    """The content of `inlay.json`, or nothing where there is none."""
    path = directory / RECORD
    if not path.is_file():
        return {}
    record = json_files.read_json(path)
    if not isinstance(record.get("format"), int) or record["format"] > FORMAT:
        wrong, do = "this adapter was written by a newer Inlay", "pip install --upgrade inlay"
        found = f"{path}: format {record.get('format')!r}, known here up to {FORMAT}"
        raise CompatibilityError(explain(wrong, found=found, do=do))
    with json_files.about(path):
        parts = fields.fitted(_Record, record)
        fields.fitted(meaning.Kept, parts.get(meaning.KEY, {}))
        fields.fitted(_Data, parts.get("data", {}))
        fields.fitted(_Training, parts.get("training", {}))
        fields.fitted(_Task, parts.get("task", {}))
        fields.fitted(_Text, parts.get("text", {}))
    return record


def write(directory: Path, record: Mapping[str, Any]) -> None:
    """Write `inlay.json`."""
    text = json.dumps({"format": FORMAT, **record}, indent=2, ensure_ascii=False)
    output.write_file(directory / RECORD, f"{text}\n".encode())
