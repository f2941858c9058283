"""The gate: rows go by, each kind of fault is looked for, and what was found is told.

    gate = Gate(tokenizer)
    gate.see(rows)                         rows to train on, as many at a time as suits; then those that are held out
    gate.see_samples(prepared, rows)       the same as tokens
    gate.findings()

Of a row its hashes and its signature stay (`inlay.gate.repeats`, `inlay.gate.near`), 90 bytes or so; everything is linear
in their number but for sorting those.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from inlay.data.keys import in_words
from inlay.data.rows import Kept, Row
from inlay.data.split import spread
from inlay.gate import texts, tokens, turns
from inlay.gate.findings import NUM_PLACES, Findings, Tally
from inlay.gate.near import Near
from inlay.gate.repeats import Repeats
from inlay.gate.said import said
from inlay.gate.tokens import NUM_TRIED, TRIED_AT_ONCE
from inlay.streams.places import Places
from inlay.tasks.contract import Prepared
from inlay.text.mask import Example

AT_ONCE, AT_ONCE_CHARACTERS = 512, 1 << 20
"""As many rows and characters are looked at together, unless a row alone is longer."""


class Gate:
    """What is found in rows as they go by."""

    def __init__(self, tokenizer: Any, *, has_answers: bool = True):
        """`has_answers`: rows of one prompt that say different things contradict each other."""
        self.tally = Tally()
        self.dropped: dict[str, list[int]] = {}
        """Once it is said what was found: kind -> the numbers of the rows to train on that a cleaned copy does without."""
        self._tokenizer, self._has_answers = tokenizer, has_answers
        self._repeats, self._near, self._places = Repeats(), Near(), Places()
        self._num_trained: int | None = None
        self._num_left = NUM_TRIED
        self._seconds = 0.0

    def see(self, rows: Sequence[Kept], *, held_out: bool = False) -> None:
        """The next rows; all that are trained on come before those that are held out."""
        start = time.perf_counter()
        if held_out and self._num_trained is None:
            self._num_trained = len(self._places)
        for part, each in _pages(rows):
            self._repeats.add(part)
            self._near.add(each)
            for row in part:
                self._places.add(row.source)
            for kind, numbers in texts.faults(each).items():
                for number in numbers:
                    self.tally.add(kind, part[number].source)
            self._see_forms(part)
        self._seconds += time.perf_counter() - start

    def see_samples(self, prepared: Prepared, rows: Sequence[Kept]) -> None:
        """What a task made of rows."""
        start = time.perf_counter()
        kind = "truncated" if prepared.num_windowed else "left-out"
        for place in prepared.longer:
            self.tally.add(kind, place)
        examples: Sequence[Example] = (
            prepared.examples if isinstance(next(iter(prepared.examples), None), Example) else ()
        )
        for fault, place in tokens.faults(self._tokenizer, examples, frozenset(prepared.longer)):
            self.tally.add(fault, place)
        if examples and self._num_left:
            self._try_some(rows, examples, prepared.longer)
        self._seconds += time.perf_counter() - start

    def see_unused(self, columns: Mapping[str, int], num_rows: int) -> None:
        """Columns that were not used, each with the rows that have it."""
        if columns:
            self.tally.add("unused-key", num_rows=num_rows)
            self.tally.about("unused-key", in_words([*columns]))

    def findings(self) -> Findings:
        """What was found in all rows that went by."""
        start = time.perf_counter()
        num_rows = len(self._places)
        num_trained = num_rows if self._num_trained is None else self._num_trained
        again, (both, held) = self._repeats.duplicates(num_trained), self._repeats.evaluated(num_trained)
        self._add("evaluated", both, f"{len(held):,} of {num_rows - num_trained:,} held-out rows")
        self._add("duplicate", again)
        if self._has_answers:
            numbers, num_prompts = self._repeats.contradictions()
            self._add("contradiction", numbers, f"{num_prompts:,} prompts")
        same, near = {*again, *held}, self._near.pairs()
        beyond = f"{self._near.num_beyond:,} rows were not compared" if self._near.num_beyond else ""
        is_new = lambda pair: pair[1] < num_trained <= pair[0]  # noqa: E731
        pairs = [pair for pair in near if pair[0] not in same]
        self._add("nearly-evaluated", [row for row, _ in filter(is_new, pairs)], beyond)
        self._add("near-duplicate", [row for row, earlier in pairs if not is_new((row, earlier))], beyond)
        self.dropped = {"evaluated": both, "duplicate": [row for row in again if row < num_trained]}
        return self.tally.findings(num_rows, self._seconds + time.perf_counter() - start)

    def _add(self, kind: str, numbers: Sequence[int], about: str = "") -> None:
        """Count rows by their numbers."""
        if numbers:
            self.tally.add(kind, *(self._places[number] for number in numbers[:NUM_PLACES]), num_rows=len(numbers))
            self.tally.about(kind, about)

    def _see_forms(self, rows: Sequence[Kept]) -> None:
        """What can be said of rows of text, prompts and messages alone."""
        for row in rows:
            if isinstance(row, Row):
                if turns.are_odd(row):
                    self.tally.add("role-order", row.source)
                if row.text is None and not said(row)[0].strip():
                    self.tally.add("empty-prompt", row.source)

    def _try_some(self, rows: Sequence[Kept], examples: Sequence[Example], longer: Collection[str]) -> None:
        """Turn some rows back into text."""
        count = min(self._num_left, TRIED_AT_ONCE)
        self._num_left -= count
        some = {row.source: row for row in spread(rows, count) if isinstance(row, Row) and row.source not in longer}
        made: dict[str, list[Example]] = {}
        for example in examples:
            if example.source in some:
                made.setdefault(example.source, []).append(example)
        for place, own in made.items():
            if tokens.lossy(self._tokenizer, some[place], own):
                self.tally.add("lossy", place)


def _pages(rows: Sequence[Kept]) -> Iterator[tuple[list[Kept], list[str]]]:
    """(Some rows, what each says) at a time."""
    part: list[Kept] = []
    each: list[str] = []
    size = 0
    for row in rows:
        part.append(row)
        each.append("\n".join(said(row)))
        size += len(each[-1])
        if len(part) >= AT_ONCE or size > AT_ONCE_CHARACTERS:
            yield part, each
            part, each, size = [], [], 0
    if part:
        yield part, each
