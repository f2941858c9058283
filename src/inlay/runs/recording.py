"""A run is recorded while it is under way, by whichever command or call began it.

    with recording("eval", arguments) as run:      # a run under way; within another one it is that one
        note(base=..., data=...)                   # what is known of it so far: the first makes its row
        note(scores=...)

A row is for the person who asks in a month what was tried, and no run may suffer for it: what goes wrong with the database is
one warning.
"""

import contextlib
import contextvars
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from inlay.errors import InlayError
from inlay.runs import provenance
from inlay.runs.database import Database
from inlay.runs.record import DONE, FAILED, RUNNING, STOPPED, Run, without_secrets

_under_way: contextvars.ContextVar[Run | None] = contextvars.ContextVar("run", default=None)


@contextlib.contextmanager
def recording(command: str, arguments: Sequence[str] = ()) -> Iterator[Run]:
    """Within the block a run is under way; how it ended is written after it. Within another one it is that one."""
    if (outer := _under_way.get()) is not None:
        yield outer
        return
    with _ended(Run(command, without_secrets(arguments))) as run:
        token = _under_way.set(run)
        try:
            yield run
        finally:
            _under_way.reset(token)


@contextlib.contextmanager
def taken(command: str) -> Iterator[Run]:
    """A record for the block alone: that of the run under way, where nobody has taken it, or one beside it.

    Of several trainings that one command makes the first has the command's row, and each other one its own.
    """
    outer = _under_way.get()
    if outer is not None and not outer.is_taken:
        outer.is_taken = True
        yield outer
        return
    with _ended(Run(command, list(outer.arguments) if outer else [])) as run:
        yield run


@contextlib.contextmanager
def _ended(run: Run) -> Iterator[Run]:
    """Within the block a run is under way; its end is written after it."""
    run.process, run.versions, run.machine = provenance.process(), provenance.versions(), provenance.machine()
    try:
        yield run
        run.outcome = DONE if run.outcome == RUNNING else run.outcome
    except (KeyboardInterrupt, GeneratorExit):
        run.outcome = STOPPED
        raise
    except BaseException as error:
        run.outcome, run.error = FAILED, headline(error)
        raise
    finally:
        run.ended = time.time()
        if run.is_begun:
            save(run)


def note(**parts: dict[str, Any]) -> None:
    """Put more into parts of the record of the run under way, where there is one, and write them."""
    if (run := _under_way.get()) is not None:
        put(run, **parts)


def put(run: Run, **parts: dict[str, Any]) -> None:
    """The same of a run that is at hand."""
    for name, values in parts.items():
        getattr(run, name).update(values)
    run.is_begun = True
    save(run)


def save(run: Run, *, timeout: float = 5.0) -> None:
    """Write what is new of a record. What goes wrong is a warning, said once, and tried again the next time.

    **Arguments:**

    - `timeout`: seconds to wait where another process writes.
    """
    if not provenance.is_first():
        return
    try:
        if (database := Database.found(timeout)) is not None:
            database.put(run)
    except Exception as error:
        if not run.is_warned:
            why = "; ".join(error.found) if isinstance(error, InlayError) else headline(error)
            warnings.warn(f"the record of runs is not written: {why}; the run goes on", stacklevel=2)
        run.is_warned = True


def headline(error: BaseException) -> str:
    """The first line of what an error says."""
    first = str(error).strip().partition("\n")[0]
    return first[:500] or type(error).__name__
