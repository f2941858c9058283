"""Adapters on disk, one file for each format: the file's name is the format's name, and nothing else lists them."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inlay import methods, plugins
from inlay.errors import CompatibilityError, FormatError, explain
from inlay.formats.contract import AdapterFile, Format, ModelFacts
from inlay.hub import files, sign, store, trust
from inlay.io import records
from inlay.io.checkpoint import fetch


def _format(module: Any) -> Format:
    made: Any = plugins.class_of(Format)(module)  # not abstract, as typed
    return made()


TABLE = plugins.Table(
    room=__name__,
    folder=tuple(__path__),
    group="inlay.formats",
    what="adapter format",
    choice="--for inlay",
    take=_format,
)
"""The formats that exist."""

names, find = TABLE.names, TABLE.find

SMALL_BYTES = 64_000_000
"""An adapter of no more is read at once: to look at its outline first takes a third of the time of reading it."""


def written() -> list[str]:
    """The formats among them that an adapter can be written in; the others are only recognised."""
    return sorted(name for name, form in TABLE.known() if form.tensors)


def fetched(source: str | Path, require: Sequence[Path] = (), *, whole: bool = False) -> Path:
    """The directory of an adapter: `source` itself, or where the file `source` lies that is one; what the store has as
    `name@version`, or the hub's copy of that name.

    **Arguments:**

    - `require`: public keys of which one must have signed it, see `inlay.hub.sign`.
    - `whole`: of a name on the hub, all files, and not only those that are read.

    **Raises:**

    - `UnknownNameError`: there is none.
    - `TrustError`: it is not signed by who is trusted, or the trust policy wants it signed, see `inlay.hub.trust`.
    """
    if stored := store.find(source):
        trust.check_stored(stored)
        if require:
            sign.required(stored, require, str(source))
        return stored
    path = Path(os.path.expanduser(source))
    if os.path.isfile(path) and any(path.match(form.tensors) for _, form in TABLE.known() if form.tensors):
        path = _directory_of(path.resolve())
    if os.path.isdir(path):
        if kept := store.object_of(path):
            trust.check_stored(kept)
        if require:
            sign.required(path, require, str(source))
        return path.resolve()
    name = f"hf://{source}"
    whole = whole or bool(require) or trust.rule_of(name).signed != "off"  # a signature is of every file
    few = (file for _, form in TABLE.known() for file in form.files if "*" not in file)  # what else may fit is large
    directory = fetch(source, "adapter", ["*"] if whole else itertools.chain([records.RECORD], few))
    trust.check(name, directory, require)
    return directory


def _directory_of(file: Path) -> Path:
    """The directory that a file lies in, which has to be read by that file.

    **Raises:**

    - `FormatError`: another file there holds what is read.
    """
    form = detect(file.parent)
    tensors = find(form).tensors
    if not tensors or file not in files.files_like(file.parent, tensors):
        found, do = f"{file}; its directory is an adapter of {form}", "a directory for each adapter"
        raise FormatError(explain("another file than the one that is named would be read", found=found, do=do))
    return file.parent


def detect(directory: Path) -> str:
    """The name of the format of an adapter.

    **Raises:**

    - `FormatError`: no format has such files.
    """
    found = next((name for name, form in TABLE.known() if form.detect(directory)), None)
    if found is None:
        first = dict.fromkeys(form.files[0] for _, form in TABLE.known() if form.files)
        raise FormatError(
            explain(
                f"this directory is not an adapter: it has no {' or '.join(first)}",
                found=str(directory),
                do="an adapter directory is what `inlay train` or peft's save_pretrained wrote",
            )
        )
    return found


def outline(source: str | Path) -> AdapterFile:
    """The adapter at `source` with the shapes and dtypes of its tensors alone, on the meta device; see `read`."""
    return _opened(source)[0](True)


def read(source: str | Path, check: Callable[[AdapterFile], AdapterFile] = lambda file: file) -> AdapterFile:
    """The adapter in a directory, or of a name on the hub.

    **Arguments:**

    - `check`: what is returned is what it returns; it raises where the adapter can't be used. Of a file that is not small it
      sees the outline first, before a tensor is read.

    **Raises:**

    - `UnknownNameError`: there is no such directory or name.
    - `FormatError`: it is no adapter, a pickle, broken, or holds numbers that are not finite.
    - `CompatibilityError`: it uses something that Inlay does not do; every such thing is named.
    """
    opened, num_bytes = _opened(source)
    if num_bytes > SMALL_BYTES:
        check(opened(True))
    return check(opened(False))


def placed(file: AdapterFile, model: ModelFacts) -> AdapterFile:
    """An adapter that was read, with its tensors at the paths and in the shapes of a model's layers.

    **Raises:**

    - `CompatibilityError`: the model is of another kind.
    """
    return find(file.form).placed(file, model)


def write(directory: Path, file: AdapterFile, form: str = "peft") -> None:
    """Write an adapter into `directory`, which exists, in the format called `form`, and its record.

    **Raises:**

    - `UnknownNameError`: there is no such format.
    - `CompatibilityError`: the format can not hold it as it is; every reason is named.
    """
    chosen = find(form)
    problems = chosen.problems(file)
    if problems:
        raise CompatibilityError(
            explain(f"this adapter would be another one in the form of {form}", found=problems, do="--for inlay")
        )
    chosen.write(directory, file)
    origin = methods.TABLE.origin(methods.name_of(file.method))
    needs = {**file.record.get("needs", {}), **({"method": str(origin)} if origin else {})}
    records.write(directory, file.record | ({"needs": needs} if needs else {}))


def readers(source: str | Path) -> dict[str, list[str]]:
    """The programs beside Inlay that know the format of an adapter -> what keeps each from loading this one."""
    directory = fetched(source)
    return {name: list(reasons) for name, reasons in find(detect(directory)).readers(directory).items()}


def _opened(source: str | Path) -> tuple[Callable[[bool], AdapterFile], int]:
    """What reads the adapter at `source`, its outline or all of it; and how many bytes its files have."""
    directory = fetched(source)
    name, record = detect(directory), records.read(directory)
    said, needs = record.get("method"), record.get("needs", {})
    if isinstance(said, dict):
        methods.TABLE.check_installed(str(said.get("name")), needs.get("method"), directory / records.RECORD)
    form = find(name)
    found = [file for pattern in form.files for file in files.files_like(directory, pattern)]
    return (
        lambda outline: dataclasses.replace(form.read(directory, outline=outline), record=record, form=name),
        sum(file.stat().st_size for file in found),
    )
