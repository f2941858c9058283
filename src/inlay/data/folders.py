"""Folders of data files: which of them are to be trained on, which are held out, which are left alone.

    train.jsonl valid.jsonl test.jsonl            a file of each split
    train/a.jsonl test/b.jsonl                    a folder of each
    data/train-00000-of-00002.parquet             as a snapshot of the hub has it
    dataset_dict.json train/ test/                as `datasets` saves it; also state.json and data-00000-of-00001.arrow

A file belongs to the split that its name says, or else the nearest folder's; without one it is trained on where no other file
is named for training. Files of the test split are never trained on, and nothing is left alone without a word. Two splits of
one kind that `datasets` saved, such as train_sft and train_gen, keep their names: which of them is meant is not guessed.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from inlay.data import files, json_text
from inlay.errors import DataError, FormatError, explain, few

SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "heldout": "validation",
    "test": "test",
    "testing": "test",
}
"""Words in the name of a file or folder -> the split that it belongs to."""

NO_SPLIT = ""
"""The split of files whose names say nothing."""

_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of `datasets` that describe the data and hold no rows."""

_LEFT = {
    *(".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".7z", ".rar", ".tar", ".tgz", ".txt"),
    *(".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".feather", ".orc", ".avro", ".tfrecord", ".npy", ".npz", ".h5"),
    *(".db", ".sqlite"),
}
"""Endings of files that may hold rows and are not read: they are named."""

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\b")
_MAX_DEPTH = 4
_MAX_RECORD_BYTES = 10_000_000


@dataclasses.dataclass(frozen=True)
class Folder:
    """The data files of a folder."""

    splits: dict[str, list[Path]]
    """train, validation, test or `NO_SPLIT` -> its files, sorted."""
    left: list[str]
    """Names of files that are not read."""


def look(folder: Path) -> Folder:
    """What a folder holds.

    **Raises:**

    - `DataError`: no data files, several data sets, or a part of one is missing.
    - `FormatError`: a file is named for two splits.
    """
    if os.path.isfile(folder / "dataset_dict.json"):
        parts = [child for child in sorted(folder.iterdir()) if os.path.isfile(child / "state.json")]
        kinds = {part: _split_of(part.name) or NO_SPLIT for part in parts}
        alike = Counter(kinds.values())
        return Folder({kind if alike[kind] == 1 else part.name: _saved(part) for part, kind in kinds.items()}, [])
    if os.path.isfile(folder / "state.json"):
        return Folder({NO_SPLIT: _saved(folder)}, [])
    inside, left = _inside(folder)
    found = [path for path in inside if path.suffix.lower() in files.READERS and path.name not in _ABOUT]
    left += [path for path in inside if path.suffix.lower() in _LEFT]
    chosen = _one_set(folder, found, left)
    _check_shards(chosen)
    splits: dict[str, list[Path]] = {}
    for path in chosen:
        splits.setdefault(_split_of_path(path.relative_to(folder)), []).append(path)
    others = [path for path in found if path not in set(chosen)]
    if "train" in splits:
        others += splits.pop(NO_SPLIT, [])
    return Folder(splits, [str(path.relative_to(folder)) for path in [*left, *others]])


def _one_set(folder: Path, found: list[Path], left: list[Path]) -> list[Path]:
    """The files of the data set of a folder, where it has one: that of no name, or the only one; `left` are not read."""
    if not found:
        listed = ", ".join(few([path.name for path in left])) or str(folder)
        raise DataError(explain("this folder has no data files", found=listed, do=f"files of {files.kinds()}"))
    sets: dict[str, list[Path]] = {}
    for path in found:
        sets.setdefault(_set_of(path.relative_to(folder)), []).append(path)
    if len(sets) > 1 and "" not in sets:
        listed = [f"{name}: {len(paths)} files" for name, paths in sorted(sets.items())]
        do = str(folder / min(sets))
        raise DataError(explain("this folder holds several data sets", found=few(listed), do=do))
    return sets.get("") or next(iter(sets.values()))


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """(The files of a folder and of those in it, sorted, what is not gone into or leads nowhere), without hidden ones."""
    found: list[Path] = []
    left: list[Path] = []
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        inner = [Path(place) / name for name in sorted(folders) if not name.startswith(".")]
        beyond = [path for path in inner if depth >= _MAX_DEPTH or path.is_symlink()]
        folders[:] = [path.name for path in inner if path not in beyond]
        files_here = [Path(place) / name for name in names if not name.startswith(".")]
        found += [path for path in files_here if path.is_file()]
        left += [*beyond, *(path for path in files_here if not path.is_file())]
    return sorted(found), left


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a data set that `datasets` saved, in order: those that its record names, since a folder that was saved
    into before may hold the files of then.

    **Raises:**

    - `DataError`: it has none, or one is missing.
    - `FormatError`: its record is none.
    """
    names = _named(folder / "state.json")
    if not names:
        raise DataError(explain("a saved data set has no data files", found=str(folder), do="save it again"))
    missing = [str(folder / name) for name in names if not os.path.isfile(folder / name)]
    if missing:
        raise DataError(explain("a part of this data set is missing", found=few(missing), do="fetch it whole"))
    return [folder / name for name in names]


def _named(record: Path) -> list[str]:
    """The files that the record of a saved data set names, all of them beside it."""
    try:
        with record.open("rb") as file:
            found = json_text.decode(file.read(_MAX_RECORD_BYTES).decode())
        names = [str(each["filename"]) for each in found["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        names = [""]
    if not all(name and Path(name).name == name for name in names):
        do = "save it again"
        raise FormatError(explain("a saved data set does not say which files it has", found=str(record), do=do))
    return names


def _split_of(name: str) -> str | None:
    """The split that a name says, if it says one.

    **Raises:**

    - `FormatError`: it says two.
    """
    words = re.findall(r"[a-z]+", re.sub(r"held[-_ ]out", "heldout", name.lower()))
    said = {SPLITS[word] for word in words if word in SPLITS}
    if len(said) > 1:
        do = "rename it, or name one file instead of the folder"
        raise FormatError(explain("a file is named for two splits", found=f"{name}: {', '.join(sorted(said))}", do=do))
    return next(iter(said), None)


def _split_of_path(path: Path) -> str:
    """The split of a file by its name, or else by the nearest folder's."""
    for name in (path.stem, *reversed(path.parts[:-1])):
        if split := _split_of(name):
            return split
    return NO_SPLIT


def _set_of(path: Path) -> str:
    """The data set that a file belongs to: the folders that it is in, but for those of splits and the hub's own."""
    return "/".join(name for name in path.parts[:-1] if name != "data" and _split_of(name) is None)


def _check_shards(paths: Iterable[Path]) -> None:
    """Refuse a data set of which a part is missing."""
    parts: dict[tuple[str, int], set[int]] = {}
    for path in paths:
        if match := _SHARD.match(path.name):
            parts.setdefault((str(path.parent / match[1]), int(match[3])), set()).add(int(match[2]))
    missing = [
        f"{name}-{number:05}-of-{total:05}"
        for (name, total), numbers in parts.items()
        for number in range(min(total, 1 << 12))
        if number not in numbers
    ]
    if missing:
        raise DataError(explain("a part of this data set is missing", found=few(missing), do="fetch it whole"))
