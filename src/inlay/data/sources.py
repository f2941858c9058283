"""Where rows come from: a file, a folder of files, or a data set on the hub."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from inlay.data import files
from inlay.errors import DataError, UnknownNameError, explain, nearest

Found = TypeVar("Found")


def read(source: str | Path, rows_of: Callable[[Sequence[tuple[int, Any]], str], list[Found]]) -> list[Found]:
    """What `rows_of` makes of the values of a file, each with its number, and of the file's name."""
    path = Path(os.path.expanduser(source))  # os.path takes names as they come: too long, or of no user
    if os.path.isdir(path):
        found = sorted(file for file in path.iterdir() if file.suffix in files.READERS and file.is_file())
        if not found:
            raise DataError(explain("this folder has no data files", found=str(path), do=f"files of {files.kinds()}"))
        return [row for file in found for row in rows_of(files.values(file), file.name)]
    if os.path.isfile(path):
        return rows_of(files.values(path), path.name)
    values, repository = _from_hub(str(source))
    return rows_of(values, repository)


def _from_hub(name: str) -> tuple[list[tuple[int, Any]], str]:
    path = Path(name)
    known = [child.name for child in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    near = nearest(path.name, known)
    repository, _, split = name.partition(":")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or path.suffix in files.READERS:
        raise UnknownNameError(
            explain(
                "there is no such data",
                found=f"{name} does not exist",
                do=str(path.parent / near) if near else "a file, a folder, or a name on the hub such as owner/name",
            )
        )
    import datasets

    try:
        table = datasets.load_dataset(repository, split=split or "train")
    except (OSError, ValueError, KeyError) as error:  # datasets' own errors derive from these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownNameError(
            explain(
                "there is no such data",
                found=[f"{name} is not a file or folder here", f"as a data set on the hub: {reason}"],
                do="check the path or the name (owner/name:split), and the connection",
            )
        ) from None
    return list(enumerate(table, start=1)), repository
