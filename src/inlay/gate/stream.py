"""The rows of a source, one by one through the gate, with what refuses some of them; and a copy of the source without those.

    found = examine(source, eval_data, task, prepare, tokenizer)
    write(source, found, path)

Nothing is raised for a row that can't be read or trained on: it is a finding, and the next one is looked at. No more than
`AT_ONCE` rows are held at a time, with 90 bytes of each that went by.
"""

import dataclasses
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from inlay.data import sources
from inlay.data.arrow import Unread
from inlay.data.files import Numbered
from inlay.data.sources import Source
from inlay.errors import DataError
from inlay.gate.findings import NUM_PLACES, Findings
from inlay.gate.gate import Gate
from inlay.io import output
from inlay.tasks.contract import Prepared, TaskSpec

AT_ONCE = 200
"""Rows that are read, rendered and turned into tokens together."""

_TRAINED = (*sources.TRAIN, "train")
"""The splits of `inlay.data.sources.TRAIN`; for others than these the validation split is read too."""


@dataclasses.dataclass(frozen=True)
class Examined:
    """What was found in a source, and what a copy without its worst faults leaves out."""

    findings: Findings
    problems: tuple[str, ...]
    """Why the first of the rows are refused that can't be read or trained on; they may quote such a row."""
    dropped: dict[str, set[int]]
    """Kind of fault -> numbers of rows of the source, in the order of its rows, from 0."""


def examine(
    source: Source,
    eval_data: Source | None,
    task: TaskSpec,
    prepare: Callable[[Sequence[Any]], Prepared],
    tokenizer: Any,
    progress: Callable[[int], None] = lambda done: None,
) -> Examined:
    """What the gate finds in a source, and in what is held out: `eval_data`, or the source's own validation split.

    **Arguments:**

    - `prepare`: makes rows into samples; none need be left.
    - `progress`: hears how many rows were looked at.

    **Raises:**

    - `FormatError`, `DataError`, `UnknownNameError`: there is no such source, or a file of it is no data at all.
    """
    passing = _Passing(task, prepare, tokenizer, progress)
    sources.read(source, passing.take, _TRAINED)
    passing.is_held_out = True
    if eval_data is not None:
        sources.read(eval_data, passing.take, sources.VALIDATION)
    elif sources.has(source, "validation"):
        sources.read(source, passing.take, ("validation",))
    return passing.examined()


def write(source: Source, examined: Examined, path: Path) -> int:
    """Write the rows of a source but for those that are dropped, a JSON object to a line; how many there are.

    **Raises:**

    - `OutputError`: the disk is full, or the file can't be written there.
    """
    without = set[int]().union(*examined.dropped.values())
    number = num_kept = 0
    with output.new_file(path) as partial, partial.open("w", encoding="utf-8") as file:

        def copy(values: Iterable[Numbered], name: str, unused: Counter[str]) -> list[int]:
            nonlocal number, num_kept
            for _, value in values:
                if number not in without:
                    file.write(json.dumps(_readable(value), ensure_ascii=False) + "\n")
                    num_kept += 1
                number += 1
            return [number]

        sources.read(source, copy, _TRAINED)
    return num_kept


def _readable(value: Any) -> Any:
    """A row without columns that no text is made of."""
    return (
        {key: item for key, item in value.items() if not isinstance(item, Unread)} if isinstance(value, dict) else value
    )


class _Passing:
    """Rows of files on their way through the gate."""

    def __init__(
        self,
        task: TaskSpec,
        prepare: Callable[[Sequence[Any]], Prepared],
        tokenizer: Any,
        progress: Callable[[int], None],
    ):
        self.is_held_out = False
        self._task, self._prepare, self._progress = task, prepare, progress
        self._gate = Gate(tokenizer, has_answers=not task.pools)
        self._numbers = array("q")  # of the rows that the gate saw, among all of the source
        self._num_rows = 0
        self._refused: dict[str, set[int]] = {"unreadable": set(), "untrainable": set()}
        self._problems: list[str] = []
        self._unused: Counter[str] = Counter()
        self._num_unused = 0
        self._form: str | None = None

    def take(self, values: Iterable[Numbered], name: str, unused: Counter[str]) -> list[int]:
        """Look at the values of a file called `name`."""
        first, waiting = self._num_rows, list[tuple[int, Any]]()
        for number, value in values:
            row = self._read(value, f"{name}:{number}")
            if row is not None:
                waiting.append((self._num_rows, row))
            self._num_rows += 1
            if len(waiting) == AT_ONCE:
                self._see(waiting)
                waiting = []
        self._see(waiting)
        return [self._num_rows - first]

    def examined(self) -> Examined:
        """What was found."""
        self._gate.see_unused(self._unused, self._num_unused)
        findings = self._gate.findings()
        dropped = {kind: {self._numbers[row] for row in rows} for kind, rows in self._gate.dropped.items() if rows}
        refused = {kind: rows for kind, rows in self._refused.items() if rows}
        findings = dataclasses.replace(findings, num_rows=self._num_rows)
        return Examined(findings, tuple(self._problems), refused | dropped)

    def _read(self, value: Any, place: str) -> Any:
        """A value as a row of the task; None where it is none."""
        try:
            found = self._task.read([value])
        except DataError as error:
            self._refuse("unreadable", place, ": ".join(error.found) or error.wrong)
            return None
        (row,) = found.rows
        self._form = self._form or row.form
        if row.form != self._form:
            self._refuse("unreadable", place, f"of the form {row.form}, and the first row is {self._form}")
            return None
        self._unused.update(found.unused)
        self._num_unused += bool(found.unused)
        return dataclasses.replace(row, source=place)

    def _see(self, rows: Sequence[tuple[int, Any]]) -> None:
        """Some rows that were read, as tokens and as text."""
        kept, prepared = self._prepared(rows)
        if kept:
            self._gate.see([row for _, row in kept], held_out=self.is_held_out)
            self._numbers.extend(number for number, _ in kept)
        for made, part in prepared:
            self._gate.see_samples(made, [row for _, row in part])
        self._progress(self._num_rows)

    def _prepared(
        self, rows: Sequence[tuple[int, Any]]
    ) -> tuple[Sequence[tuple[int, Any]], list[tuple[Prepared, Sequence[tuple[int, Any]]]]]:
        """(The rows that can be trained on, what became of them, together or one by one where some are refused)."""
        if not rows:
            return [], []
        try:
            return rows, [(self._prepare([row for _, row in rows]), rows)]
        except DataError as error:
            if len(rows) == 1:
                self._refuse("untrainable", rows[0][1].source, "; ".join(error.found) or error.wrong, rows[0][0])
                return [], []
        half = len(rows) // 2
        (one, first), (other, second) = self._prepared(rows[:half]), self._prepared(rows[half:])
        return [*one, *other], [*first, *second]

    def _refuse(self, kind: str, place: str, why: str, number: int | None = None) -> None:
        self._gate.tally.add(kind, place)
        if not self.is_held_out:
            self._refused[kind].add(self._num_rows if number is None else number)
        if len(self._problems) < NUM_PLACES:
            self._problems.append(f"{place}: {why}" if place not in why else why)
