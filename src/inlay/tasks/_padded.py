"""Tasks whose rows are objects with keys of their own, and go through the model as padded batches with a mask."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from inlay.core.cross_entropy import IGNORE
from inlay.data import files
from inlay.data.forms import is_null
from inlay.data.keys import unused_of
from inlay.data.sources import TRAIN, Data, Source, read
from inlay.errors import ConfigError, DataError, explain, few
from inlay.tasks import _memory
from inlay.tasks._encode import groups
from inlay.tasks._lengths import left_out, unheard
from inlay.tasks.contract import Loaded, Prepared, TaskSpec


@dataclasses.dataclass(frozen=True)
class KeyedRow:
    """One row of a source, checked: the values of a task's keys."""

    source: str
    """Where it came from, such as train.jsonl:12."""
    values: dict[str, Any]
    form: str
    """The task's keys."""
    prompt: Any
    """The value that rows on one side of a split share."""

    def content(self) -> str:
        """What the row says, in one canonical string, without where it came from."""
        return json.dumps(self.values, ensure_ascii=False, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A row as tokens."""

    row: KeyedRow
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """What the tokens should lead to: one class, one class per token, the tokens of an answer or of another text."""
    types: tuple[int, ...] = ()
    """Which of two texts each token belongs to, where the model asks for that."""

    @property
    def source(self) -> str:
        """Where the row came from."""
        return self.row.source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """How rows of a task are read and become samples."""

    task: str
    keys: str
    """What a row holds, in words, for a message."""
    example: str
    """Such a row."""
    split_by: str
    """The key whose value decides on which side of a split a row is."""
    values: Callable[[dict[str, Any]], dict[str, Any] | str]
    """The values of the task's keys in an object of a file; or what is wrong with it, in a few words."""
    sample: Callable[[KeyedRow, Loaded], Sample]
    """A row as tokens; `DataError` where it can't be one: the first line of the message says why."""
    notes: Callable[[Sequence[KeyedRow]], Counter[str]] = lambda rows: Counter()
    """What is not trained on just as the rows have it, each with how often."""
    has_two_texts: bool = False
    """The labels are the tokens of a text, and count as such."""

    def length(self, sample: Sample) -> int:
        """How many tokens a sample has, as `max_length` counts them."""
        return max(len(sample.input_ids), len(sample.labels)) if self.has_two_texts else len(sample.input_ids)

    def num_tokens(self, samples: Sequence[Sample]) -> int:
        """How many tokens samples have, without padding."""
        return sum(len(s.input_ids) + (len(s.labels) if self.has_two_texts else 0) for s in samples)


def padded(form: Form, *, losses_of: Callable[..., list[Tensor]], **others: Any) -> TaskSpec:
    """The task whose samples are those of a form, in groups of similar length; `others` are its other fields."""
    num_targets = others.pop("num_targets", _num_targets)
    made: dict[str, Any] = {"parts": partial(_parts, form), "step_parts": partial(_parts, form)} | others
    return TaskSpec(
        name=form.task,
        keys=form.keys,
        read=partial(_read, form),
        prepare=partial(_prepare, form=form, num_targets=num_targets),
        num_targets=num_targets,
        num_tokens=form.num_tokens,
        loss_of=lambda base, samples: losses_of(base, [samples])[0],
        losses_of=losses_of,
        **made,
    )


def _read(form: Form, source: Source, splits: tuple[str, ...] = TRAIN) -> Data[KeyedRow]:
    return read(source, partial(_rows, form), splits)


def _rows(form: Form, values: Iterable[files.Numbered], name: str, unused: Counter[str]) -> list[KeyedRow]:
    rows, problems = [], []
    for number, value in values:
        given = {key: item for key, item in value.items() if not is_null(item)} if isinstance(value, dict) else {}
        found = form.values(given) if isinstance(value, dict) else f"{files.what(value)}, not an object"
        where = f"{name}:{number}"
        if isinstance(found, str):
            problems.append(f"{where}: {found}")
            continue
        unused.update(unused_of(given.keys() - found.keys()))
        row = KeyedRow(where, found, form.keys, found[form.split_by])
        if any(0xD800 <= ord(character) < 0xE000 for character in row.content()):
            problems.append(f"{where}: half a character (a lone surrogate)")
        rows.append(row)
    if problems:
        wrong = f"some rows don't have {form.keys}, which {form.task} needs"
        raise DataError(explain(wrong, found=few(problems), do=form.example))
    return rows


def _prepare(
    rows: Sequence[KeyedRow],
    base: Loaded,
    max_length: int,
    train_on: str,
    too_long: str | None,
    *,
    form: Form,
    num_targets: Callable[[Sequence[Sample]], int],
    may_be_empty: bool = False,
    progress: Callable[[int, int], None] = unheard,
) -> Prepared:
    _check_settings(form, train_on, too_long)
    if base.max_length is not None:  # where positions are learned, some are not for tokens
        max_length = min(max_length, base.tokenizer.model_max_length)
    samples = _samples(form, rows, base, progress)
    kept = [sample for sample in samples if form.length(sample) <= max_length]
    lengths = [*map(form.length, samples)]
    how = {"may_be_empty": may_be_empty, "num_left": len(kept), "can_window": False}
    longer = left_out(lengths, max_length, too_long, base.max_length, **how)
    return Prepared(
        examples=kept,
        form=form.keys,
        max_length=max_length,
        num_rows=len(rows),
        num_tokens=form.num_tokens(kept),
        num_trained=num_targets(kept),
        **longer,
        notes=tuple(f"{number:,} {note}" for note, number in form.notes(rows).items()),
        longer=tuple(sample.row.source for sample in samples if form.length(sample) > max_length),
    )


def _samples(form: Form, rows: Sequence[KeyedRow], base: Loaded, progress: Callable[[int, int], None]) -> list[Sample]:
    samples, problems = [], []
    for i, row in enumerate(rows):
        progress(i, len(rows))
        try:
            samples.append(form.sample(row, base))
        except DataError as error:
            problems.append(f"{row.source}: {error}")
    if problems:
        found = few(problems)
        raise DataError(explain("some rows can't be trained on", found=found, do="mend or remove these rows"))
    return samples


def _check_settings(form: Form, train_on: str, too_long: str | None) -> None:
    asked = [f"train_on={train_on}"] * (train_on != "completions")
    asked += [f"too_long={too_long}"] * (too_long == "window")
    if asked:
        raise ConfigError(
            explain(
                "these settings do nothing for this task",
                found=f"{', '.join(asked)} with task {form.task}",
                do="leave them out",
            )
        )


def _num_targets(samples: Sequence[Sample]) -> int:
    return sum(label != IGNORE for sample in samples for label in sample.labels)


def _parts(form: Form, base: Loaded, samples: Sequence[Sample], max_tokens: int | None) -> Iterator[list[Sample]]:
    most = max_tokens or _memory.micro_batch_tokens(base)
    for group in groups([form.length(sample) for sample in samples], most):
        yield [samples[i] for i in group]
