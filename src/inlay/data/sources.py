"""Where rows come from: a file, a folder of files, a data set on the hub; from Python a list, a data set or a data frame."""

import dataclasses
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from inlay import extras, licenses
from inlay.data import arrow, files, folders
from inlay.data.files import Numbered
from inlay.data.keys import cut
from inlay.errors import ConfigError, DataError, FormatError, UnknownNameError, explain, few, nearest
from inlay.names import in_utf8

Source = Any  # a path or name, a sequence of rows, a datasets.Dataset or a pandas.DataFrame: those are not imported for a hint

TRAIN = ("train", folders.NO_SPLIT)
VALIDATION = ("validation", "test", folders.NO_SPLIT, "train")
TEST = ("test", "validation", folders.NO_SPLIT, "train")
"""Splits in the order in which they are wanted, for training, for choosing the best adapter, and for measuring it."""

_TABLES = {
    ("datasets", "Dataset"): "data set",
    ("datasets", "DatasetDict"): "data set",
    ("pandas", "DataFrame"): "data frame",
}
"""Module and class of what holds rows -> what it is, in words."""

Found = TypeVar("Found")
RowsOf = Callable[[Iterable[Numbered], str, Counter[str]], list[Found]]
"""What makes rows of values, each with its number, of the name of their file, and counts the columns that it did not use."""


@dataclasses.dataclass(frozen=True)
class Data(Generic[Found]):
    """The rows of a source."""

    name: str
    """What the source is called; see `name_of`."""
    rows: Sequence[Found]
    held_out: Sequence[Found]
    """The rows of its own validation split, where its training split was read."""
    held_out_name: str
    """The files of those."""
    notes: tuple[str, ...]
    """What a reader has to be told: columns that are not used, files that are left alone."""
    is_whole: bool
    """The source has no other split than the one that was read: whatever it is read for, it has these rows."""
    license: str | None
    """The licence that its card names: README.md in the folder, or beside the file; on the hub that of the data set."""
    unused: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Columns that are not used -> the rows that have them."""
    mixed: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    """Of a mixture: the name of each file -> (the number of its part, the weight of that)."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A file's worth of values."""

    name: str
    values: Iterable[Numbered]


@dataclasses.dataclass(frozen=True)
class _Opened:
    """The parts of a source by their split."""

    splits: dict[str, list[_Part]]
    left: list[str] = dataclasses.field(default_factory=list)
    """Files that are not read."""

    def names(self, *splits: str) -> list[str]:
        """The files of these splits."""
        return [part.name for split, parts in self.splits.items() if split in splits for part in parts]


def read(source: "Source | Data[Found]", rows_of: RowsOf[Found], splits: Sequence[str] = TRAIN) -> Data[Found]:
    """What `rows_of` makes of the values of a source, file by file.

    **Arguments:**

    - `source`: a file, a folder, either with `:SPLIT` behind it, the name of a data set on the hub, `owner/name` or
      `owner/name:split`; several of these with their weights, see `mixture`; a list of rows, a `datasets.Dataset` or
      `DatasetDict`, or a `pandas.DataFrame`. What was read before is not read again.
    - `splits`: the first of these that it has is read; for training the validation split is read beside it.

    **Raises:**

    - `UnknownNameError`: there is no such file, folder or data set.
    - `FormatError`, `DataError`, `CapacityError`: see `inlay.data.files.values`; it has no rows of these splits.
    """
    if isinstance(source, Data):
        return source
    if parts := mixture(source):
        return _mixed(parts, rows_of, splits)
    opened = _open(source)
    wanted = next((split for split in splits if split in opened.splits), None)
    if wanted is None:
        found = ", ".join(opened.names(*opened.splits))
        do = "name the split behind it, as in DATA:SPLIT, or the file itself, if it is what to train on"
        raise DataError(explain("this data has no rows to train on", found=f"{name_of(source)}: {found}", do=do))
    beside = ("validation",) if tuple(splits) == TRAIN else ()
    unused: Counter[str] = Counter()
    rows = _rows(opened, (wanted,), rows_of, unused)
    if not rows:
        raise DataError(explain("this data is empty", found=name_of(source), do="rows such as {'prompt': ...}"))
    held = _rows(opened, beside, rows_of, unused)
    notes = [unused_in_words(unused, len(rows) + len(held))] if unused else []
    notes += _read_of(opened, wanted, beside)
    held_name, is_whole = ", ".join(few(opened.names(*beside))), len(opened.splits) == 1
    return Data(name_of(source), rows, held, held_name, tuple(notes), is_whole, license_of(source), dict(unused))


def _rows(opened: _Opened, splits: Sequence[str], rows_of: RowsOf[Found], unused: Counter[str]) -> list[Found]:
    """The rows of these splits, file by file."""
    parts = [part for split in splits for part in opened.splits.get(split, ())]
    return [row for part in parts for row in rows_of(part.values, part.name, unused)]


def _read_of(opened: _Opened, wanted: str, beside: Sequence[str]) -> Iterator[str]:
    """What there is to say of a source with several splits: which files were read, and which were left alone."""
    if not beside and len(opened.splits) > 1:
        yield f"of these files: {', '.join(few(opened.names(wanted)))}"
    left = [*opened.names(*(opened.splits.keys() - {wanted, *beside})), *opened.left]
    if left:
        yield f"left alone: {', '.join(few(left))}"


def absolute(name: str) -> str:
    """The name of a source that means the same from any folder, as far as it names files that there are."""
    if parts := mixture(name):
        return ",".join(f"{absolute(part)}:{weight:g}" for part, weight in parts)
    return os.path.abspath(name) if os.path.exists(name) else name


def has(source: Source, split: str) -> bool:
    """A source, or a part of a mixture, has rows of a split."""
    return any(split in _open(part).splits for part, _ in mixture(source) or [(source, 1.0)])


def mixture(source: Source) -> list[tuple[str, float]]:
    """The parts of a mixture, such as `a.jsonl:3,b.jsonl:1`, each with its weight; none of what is no mixture.

    A part without a number weighs 1. What exists under the whole name is no mixture.

    **Raises:**

    - `ConfigError`: a weight is 0.
    """
    text = str(source) if isinstance(source, str | os.PathLike) else ""
    found = [_PART.fullmatch(part.strip()) for part in text.split(",")]
    matches = [match for match in found if match]
    if len(matches) < 2 or len(matches) < len(found) or not any(match[2] for match in matches) or os.path.exists(text):
        return []
    parts = [(match[1], float(match[2] or 1)) for match in matches]
    if not all(weight for _, weight in parts):
        do = "leave the part out, or give it a weight above 0"
        raise ConfigError(explain("a part of a mixture has no weight", found=text, do=do))
    return parts


_PART = re.compile(r"([^,]+?)(?::(\d+(?:\.\d+)?))?")
"""A part of a mixture: a source, a weight."""


def _mixed(parts: Sequence[tuple[str, float]], rows_of: RowsOf[Found], splits: Sequence[str]) -> Data[Found]:
    """The rows of all parts, one after the other. Files of one name get the number of their part before it."""
    mixed: dict[str, tuple[int, float]] = {}
    read_parts: list[Data[Found]] = []
    for number, (part, weight) in enumerate(parts):

        def named(values: Iterable[Numbered], name: str, unused: Counter[str]) -> list[Found]:
            own = name if mixed.get(name, (number,))[0] == number else f"{number + 1}/{name}"  # noqa: B023
            mixed[own] = number, weight  # noqa: B023
            return rows_of(values, own, unused)

        read_parts.append(read(part, named, splits))
    licenses_found = {part.license for part in read_parts}
    unused = sum((Counter(part.unused) for part in read_parts), Counter[str]())
    return Data(
        ",".join(f"{each.name}:{weight:g}" for each, (_, weight) in zip(read_parts, parts, strict=True)),
        [row for each in read_parts for row in each.rows],
        [row for each in read_parts for row in each.held_out],
        ", ".join(each.held_out_name for each in read_parts if each.held_out_name),
        tuple(f"{each.name}: {note}" for each in read_parts for note in each.notes),
        all(each.is_whole for each in read_parts),
        licenses_found.pop() if len(licenses_found) == 1 else None,
        unused,
        mixed,
    )


def name_of(source: Source) -> str:
    """What a source is called, without the folders that it lies in: what may be told to others."""
    if isinstance(source, Data):
        return source.name
    if parts := mixture(source):
        return ",".join(f"{name_of(part)}:{weight:g}" for part, weight in parts)
    if isinstance(source, str | os.PathLike):
        text = str(source)
        path, split = _path_of(text)
        is_local = os.path.exists(path) or path.suffix in files.READERS or text.count("/") != 1
        return in_utf8(path.resolve().name + (f":{split}" if split else "") if is_local else text)
    size = f"{len(source):,} rows" if isinstance(source, Sequence) or _kind_of(source) else "rows"
    return f"{_kind_of(source) or 'list'} of {size}"


def license_of(source: Source) -> str | None:
    """The licence that the card of a source names, where it has one."""
    if isinstance(source, Data):
        return source.license
    if parts := mixture(source):
        found = {license_of(part) for part, _ in parts}
        return found.pop() if len(found) == 1 else None
    if not isinstance(source, str | os.PathLike):
        return None
    path, _ = _path_of(str(source))
    if os.path.exists(path):
        return licenses.of_card(path if os.path.isdir(path) else path.parent)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        card = hf_hub_download(str(source).partition(":")[0], licenses.CARDS[0], repo_type="dataset")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):  # it has none, or nobody can be asked now
        return None
    return licenses.of_card(Path(card).parent)


def _path_of(text: str) -> tuple[Path, str]:
    """(The path that a name says, the split behind it)."""
    path = Path(os.path.expanduser(text))  # os.path takes names as they come: too long, or of no user
    before, colon, split = text.rpartition(":")
    if colon and not os.path.exists(path) and os.path.isdir(os.path.expanduser(before)):
        return Path(os.path.expanduser(before)), split
    return path, ""


def unused_in_words(unused: Counter[str], num_rows: int) -> str:
    """Columns that are not used, with the rows that they stand in where not all have them."""
    shown = [
        cut(name) if count >= num_rows else f"{cut(name)} (in {count:,} rows)" for name, count in unused.most_common()
    ]
    return f"{len(unused):,} {'column' if len(unused) == 1 else 'columns'} not used: {', '.join(few(shown))}"


def _open(source: Source) -> _Opened:
    if isinstance(source, str | os.PathLike):
        return _open_name(str(source))
    if kind := _kind_of(source):
        return _open_table(source, kind)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return _Opened({folders.NO_SPLIT: [_Part("row", enumerate(source, start=1))]})
    do = "a list of rows, one of them such as {'prompt': ..., 'completion': ...}"
    if isinstance(source, Mapping):
        do += "; a list of columns is datasets.Dataset.from_dict(...)"
    raise DataError(explain("this is no data to read rows from", found=f"a {type(source).__name__}", do=do))


def _kind_of(source: Source) -> str:
    """What a value of `datasets` or `pandas` is, in words; empty for other values, and where those were never imported."""
    for (module, name), kind in _TABLES.items():
        cls = getattr(sys.modules.get(module), name, None)
        if cls is not None and isinstance(source, cls):
            return kind
    return ""


def _open_table(source: Any, kind: str) -> _Opened:  # of a class that is not imported here
    if isinstance(source, Mapping):  # a DatasetDict
        return _open_tables(source)
    return _Opened(
        {folders.NO_SPLIT: [_Part("row", _frame_rows(source) if kind == "data frame" else _table_rows(source))]}
    )


def _open_tables(tables: Mapping[Any, Any], before: str = "") -> _Opened:
    """The splits of a data set; `before` stands before the names of its parts."""
    splits: dict[str, list[_Part]] = {}
    for name, table in tables.items():
        split = folders.SPLITS.get(str(name).lower(), str(name))
        splits.setdefault(split, []).append(_Part(f"{before}{name}", _table_rows(table)))
    return _Opened(splits)


def _table_rows(table: Any) -> Iterator[Numbered]:  # a datasets.Dataset
    yield from arrow.rows_of(table.with_format("arrow").iter(arrow.BATCH_ROWS), "a data set")


def _frame_rows(frame: Any) -> Iterator[Numbered]:  # a pandas.DataFrame
    extras.need("pyarrow", "a data frame")
    import pyarrow.lib

    try:
        table = pyarrow.lib.Table.from_pandas(frame, preserve_index=False)
    except (pyarrow.lib.ArrowException, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        do = "one type for the values of each column"
        raise FormatError(explain("this data frame can't be read", found=reason, do=do)) from None
    yield from arrow.rows_of(table.to_batches(arrow.BATCH_ROWS), "a data frame")


def _open_name(name: str) -> _Opened:
    path, split = _path_of(name)
    if os.path.isdir(path):
        found = folders.look(path)
        whole = {
            said: [_Part(str(file.relative_to(path)), files.values(file)) for file in paths]
            for said, paths in found.splits.items()
        }
        return _only(whole, split, path) if split else _Opened(whole, found.left)
    if os.path.isfile(path):
        return _Opened({folders.NO_SPLIT: [_Part(path.name, files.values(path))]})
    return _from_hub(name)


def _only(splits: dict[str, list[_Part]], split: str, path: Path) -> _Opened:
    parts = splits.get(folders.SPLITS.get(split.lower(), split)) or splits.get(split)
    if not parts:  # a split whose name says another: train_sft, where that is the one to train on
        parts = [part for found in splits.values() for part in found if Path(part.name).parts[0] == split]
    if not parts:
        known = [name for name in splits if name]
        found = f"{path} has {', '.join(known) or 'files without a split'}, not {split}"
        do = f"{path}:{known[0]}" if known else str(path)
        raise UnknownNameError(explain("there is no such split", found=found, do=do))
    return _Opened({folders.NO_SPLIT: parts})


def _from_hub(name: str) -> _Opened:
    path = Path(name)
    known = [child.name for child in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    near = nearest(path.name, known)
    repository, _, split = name.partition(":")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or path.suffix in files.READERS:
        raise UnknownNameError(
            explain(
                "there is no such data",
                found=f"{name} {'is neither a file nor a folder' if os.path.exists(name) else 'does not exist'}",
                do=str(path.parent / near) if near else "a file, a folder, or a name on the hub such as owner/name",
            )
        )
    extras.need("datasets", "data from the hub")
    import datasets

    try:
        found: Any = datasets.load_dataset(repository, split=split or None)
    except (OSError, ValueError, KeyError) as error:  # datasets' own errors derive from these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownNameError(
            explain(
                "there is no such data",
                found=[f"{name} is not a file or folder here", f"as a data set on the hub: {reason}"],
                do="check the path or the name (owner/name:split), and the connection",
            )
        ) from None
    if not split:
        return _open_tables(found, f"{repository}:")
    return _Opened({folders.NO_SPLIT: [_Part(name, _table_rows(found))]})
