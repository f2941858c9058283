"""The rows of a run: read as the base's task reads them, divided, made into samples, none longer than wanted."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from inlay.base.base import Base
from inlay.base.checks import check_rows
from inlay.data import split
from inlay.data.sources import Data, Source
from inlay.errors import DataError, explain
from inlay.gate.findings import Check, Findings
from inlay.gate.gate import Gate
from inlay.runs import mixing
from inlay.runs.mixing import Part
from inlay.screen import Doing
from inlay.tasks.contract import Prepared
from inlay.training.settings import Settings

LONGEST_DEFAULT = 2048
"""Rows are not made longer than this unless asked, whatever positions the model has: memory grows with it."""


@dataclasses.dataclass(frozen=True)
class RunRows:
    """What a run learns from."""

    train: Prepared
    held_out: Prepared | None
    digest: str
    """SHA-256 of the rows that it learns from."""
    held_out_digest: str
    """Likewise, of the rows that are held out."""
    notes: tuple[str, ...]
    """What there is to say about the data."""
    findings: Findings | None = None
    """What the gate found in it; None where it did not look."""
    parts: tuple[Part, ...] = ()
    """Of a mixture: its parts, with the numbers of the samples that are theirs."""

    def evaluated(self, most: int) -> Sequence[Any]:
        """The held-out samples that are evaluated: at most so many, spread over them."""
        return split.spread(self.held_out.examples if self.held_out else [], most)


def read(
    base: Base,
    source: Source | Data[Any],
    eval_data: Source | None,
    settings: Settings,
    num_virtual: int,
    doing: Doing,
    *,
    check: Check = "warn",
) -> RunRows:
    """The rows of `source` as samples of the base's task; those held out are of `eval_data`, or a part of them.

    **Arguments:**

    - `num_virtual`: positions that virtual tokens take in front of each row.
    - `check`: how strict the gate is.

    **Raises:**

    - `DataError`, `FormatError`, `UnknownNameError`: the data is missing, malformed, leaves nothing to train on, or is stopped
      at the gate.
    - `CompatibilityError`: rows have tokens that the model has no embeddings for.
    """
    doing("reading rows", 0, None)
    parts = split.divided(base.spec.read, source, eval_data, settings.eval_fraction)
    length = longest_row(base, settings.max_length, num_virtual)
    train, held_out = _samples(base, parts, length, settings, doing, may_be_empty=eval_data is None)
    check_rows(base, itertools.chain(train.examples, held_out.examples if held_out else ()))
    findings = None if check == "off" else _examined(base, parts, train, held_out, doing)
    if findings is not None:
        findings.enforce(check)
    mixed = mixing.parts(parts.found, train.examples)
    notes = (*parts.notes, *([mixing.in_words(parts.found, mixed)] if mixed else []))
    digests = split.digest(parts.rows), split.digest(parts.held_out)
    return RunRows(train, held_out, *digests, notes, findings, mixed)


def _samples(
    base: Base, parts: split.Divided[Any], length: int, settings: Settings, doing: Doing, *, may_be_empty: bool
) -> tuple[Prepared, Prepared | None]:
    """(The samples to learn from, those held out), none longer than `length`; `may_be_empty`: none need be held out."""
    rows, held_rows = parts.rows, parts.held_out
    num_rows, how = len(rows) + len(held_rows), (base, length, settings.train_on, settings.too_long)
    heard = lambda before: lambda done, _: doing(f"tokenizing {num_rows:,} rows", before + done, num_rows)  # noqa: E731
    train = base.spec.prepare(rows, *how, progress=heard(0))
    if not held_rows:
        return train, None
    return train, base.spec.prepare(held_rows, *how, may_be_empty=may_be_empty, progress=heard(len(rows)))


def _examined(
    base: Base, parts: split.Divided[Any], train: Prepared, held_out: Prepared | None, doing: Doing
) -> Findings:
    """What the gate finds in the rows of a run."""
    doing("looking for faults in the rows", 0, None)
    gate = Gate(base.tokenizer, has_answers=not base.spec.pools)
    gate.see(parts.rows)
    gate.see_samples(train, parts.rows)
    if held_out is not None:
        gate.see(parts.held_out, held_out=True)
        gate.see_samples(held_out, parts.held_out)
    gate.see_unused(parts.found.unused, len(parts.rows))
    return gate.findings()


def first_rows(
    base: Base, source: Source, count: int, eval_data: Source | None, settings: Settings, num_virtual: int
) -> tuple[list[Any], tuple[str, ...]]:
    """(The first rows that a run would train on, as tokens; what there is to say about the data). No more rows are made than it
    takes to find as many."""
    task, length = base.spec, longest_row(base, settings.max_length, num_virtual)
    parts = split.divided(task.read, source, eval_data, settings.eval_fraction)
    rows = parts.rows
    found: list[Any] = []
    for first in range(0, len(rows), count):
        part = rows[first : first + count]
        found += task.prepare(part, base, length, settings.train_on, settings.too_long, may_be_empty=True).examples
        if len(found) >= count:
            break
    if not found:
        task.prepare(rows, base, length, settings.train_on, settings.too_long)  # it says why
    done = Counter(note for example in found[:count] for note in getattr(example, "notes", ()))
    return found[:count], (*parts.notes, *(f"{number:,} {note}" for note, number in done.items()))


def longest_row(base: Base, wanted: int | None, num_virtual: int = 0) -> int:
    """How many tokens a row may have: as many as are wanted, or what the model's positions allow, at most `LONGEST_DEFAULT`.

    `num_virtual` positions are taken by virtual tokens in front of it.

    **Raises:**

    - `DataError`: more are wanted than the model has positions.
    """
    room = None if base.max_length is None else base.max_length - num_virtual
    length = wanted or min(LONGEST_DEFAULT if room is None else room, LONGEST_DEFAULT)
    if room is not None and (length > room or room < 2):
        virtual = f", {num_virtual} of them for virtual tokens" if num_virtual else ""
        found = f"max_length={length}, the model has {base.max_length}{virtual}"
        do = f"--max-length {room}" if room > 1 else "fewer --num-virtual-tokens"
        raise DataError(explain("max_length is beyond the positions of this model", found=found, do=do))
    return length
