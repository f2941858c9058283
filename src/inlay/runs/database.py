"""All runs in one SQLite file: a row for each, and a row for each step of its curve.

    runs(id, command, started, ended, outcome, error, and a column of JSON for each other part of `inlay.runs.record.Run`)
    curve(run, step, loss, held_out, seconds, tokens)

`PRAGMA user_version` is the version of the layout; `MIGRATIONS` leads from each to the next, is only ever added to, and is
done by whoever writes first. Every write is one short transaction under SQLite's rollback journal, which a kill or a power
cut at any moment leaves sound, and which works on the network file systems that homes lie on, where its write-ahead log does
not. Processes wait for each other.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from inlay.errors import CompatibilityError, FormatError, OutputError, UnknownNameError, explain
from inlay.hub import store
from inlay.runs.record import Point, Run, cleaned

FILE, NOWHERE = "runs.sqlite", "none"

PLAIN = ("command", "started", "ended", "outcome", "error")
PARTS = ("arguments", "process", "versions", "machine", "base", "adapter", "data", "settings", "scores", "forecast")
PARTS += ("findings", "samples", "notes")
"""The columns of `runs`, as they are and as JSON."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT, command TEXT NOT NULL, started REAL NOT NULL, ended REAL,"
        " outcome TEXT NOT NULL, error TEXT NOT NULL, arguments TEXT, process TEXT, versions TEXT, machine TEXT, base TEXT,"
        " adapter TEXT, data TEXT, settings TEXT, scores TEXT, forecast TEXT, findings TEXT, samples TEXT, notes TEXT)",
        "CREATE TABLE curve (run INTEGER NOT NULL REFERENCES runs, step INTEGER NOT NULL, loss REAL, held_out REAL,"
        " seconds REAL, tokens INTEGER, PRIMARY KEY (run, step)) WITHOUT ROWID",
    ),
)
"""The statements that lead to version 1, 2, ...: what was released is never changed."""


def place() -> Path | None:
    """Where the file lies: $INLAY_RUNS, or `FILE` beside the store of adapters; None where nothing is to be recorded."""
    said = os.environ.get("INLAY_RUNS")
    if said == NOWHERE:
        return None
    return Path(said).expanduser().absolute() if said else store.directory().with_name(FILE)


class Database:
    """The runs in one file, which need not exist yet.

    **Arguments:**

    - `timeout`: seconds to wait for other processes.
    """

    def __init__(self, path: Path, timeout: float = 5.0):
        self.path, self.timeout = path, timeout

    @classmethod
    def found(cls, timeout: float = 5.0) -> "Database | None":
        """That of `place`."""
        path = place()
        return None if path is None else cls(path, timeout)

    def put(self, run: Run) -> None:
        """Write a run: its row, made where it has none, and what is new of its curve.

        **Raises:**

        - `OutputError`: there is no place for it, it is locked, or the disk is full.
        - `FormatError`, `CompatibilityError`: the file is damaged, or a newer version's.
        """
        values = [_plain(getattr(run, name)) for name in PLAIN] + [_json(getattr(run, name)) for name in PARTS]
        points = run.curve[run.num_saved :]
        with self._said(), self._opened() as connection, _transaction(connection):
            number = run.id
            if number is None:
                names, marks = ", ".join(PLAIN + PARTS), ", ".join("?" * len(values))
                number = connection.execute(f"INSERT INTO runs ({names}) VALUES ({marks})", values).lastrowid
            else:
                changes = ", ".join(f"{name} = ?" for name in PLAIN + PARTS)
                connection.execute(f"UPDATE runs SET {changes} WHERE id = ?", [*values, number])
            rows = [(number, *point) for point in points]
            connection.executemany("INSERT OR REPLACE INTO curve VALUES (?, ?, ?, ?, ?, ?)", rows)
        run.id, run.num_saved = number, run.num_saved + len(points)

    def runs(self, last: int | None = None) -> list[Run]:
        """The runs, or the last of them, from the oldest on; without their curves."""
        rows = self._asked("SELECT * FROM runs ORDER BY id DESC LIMIT ?", (-1 if last is None else last,))
        return [_run(row) for row in reversed(rows)]

    def run(self, number: int) -> Run:
        """A run with its curve.

        **Raises:**

        - `UnknownNameError`: there is none of that number.
        """
        rows = self._asked("SELECT * FROM runs WHERE id = ?", (number,))
        if not rows:
            raise UnknownNameError(explain("there is no such run", found=str(number), do="inlay runs lists them"))
        points = self._asked(
            "SELECT step, loss, held_out, seconds, tokens FROM curve WHERE run = ? ORDER BY step", (number,)
        )
        run = _run(rows[0])
        run.curve = [Point(*point) for point in points]
        return run

    def _asked(self, question: str, given: Sequence[object]) -> list[sqlite3.Row]:
        if not self.path.exists():
            return []
        with self._said(), self._opened() as connection:
            return connection.execute(question, given).fetchall()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The file, brought to the version of today; only for reading where it may not be written."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        how = "ro" if self.path.exists() and not os.access(self.path, os.W_OK) else "rwc"
        connection = sqlite3.connect(f"{self.path.as_uri()}?mode={how}", self.timeout, isolation_level=None, uri=True)
        with contextlib.closing(connection):
            connection.row_factory = sqlite3.Row
            self._migrate(connection)
            yield connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        newest = len(MIGRATIONS)
        if _version(connection) < newest:
            with _transaction(connection):  # another process may have done it meanwhile
                for number in range(_version(connection), newest):
                    for statement in MIGRATIONS[number]:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {number + 1}")
        if (found := _version(connection)) > newest:
            wrong, do = "the record of runs was written by a newer Inlay", "pip install --upgrade inlay"
            raise CompatibilityError(explain(wrong, found=f"{self.path}: version {found}, known {newest}", do=do))

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """What the system or SQLite refuse, in words."""
        do = "INLAY_RUNS=FILE is where it lies"
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutputError(
                explain("the record of runs can't be used", found=f"{self.path}: {error}", do=do)
            ) from None
        except sqlite3.DatabaseError as error:
            wrong, found = "the record of runs is damaged", f"{self.path}: {error}"
            do = f"mv {self.path.name} {self.path.name}.damaged, and a new one begins"
            raise FormatError(explain(wrong, found=found, do=do)) from None
        except OSError as error:
            raise OutputError(
                explain("the record of runs has no place", found=f"{self.path}: {error}", do=do)
            ) from None


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Within the block this process alone writes; all of it is done, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _plain(value: object) -> object:
    """A value as a column holds it; a path that is not UTF-8 has characters that no text holds."""
    return cleaned(value.encode("utf-8", "backslashreplace").decode()) if isinstance(value, str) else value


def _json(value: object) -> str:
    return cleaned(json.dumps(value, default=str))


def _run(row: sqlite3.Row) -> Run:
    parts = {name: json.loads(row[name]) for name in PARTS if row[name] is not None}
    return Run(id=row["id"], **{name: row[name] for name in PLAIN}, **parts)
