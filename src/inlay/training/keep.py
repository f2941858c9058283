"""What a run has learned is kept before anything else may fail: written, synced and renamed into its place.

Then, and only then, come the scores and the picture, which need memory, other packages and time: what fails there is a note.
"""

import contextlib
import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from inlay.errors import MissingExtraError, OutputError
from inlay.io import output
from inlay.report import page
from inlay.runs.progress import Progress
from inlay.runs.record import Run

PICTURE, SKETCH = "curve.png", "curve.svg"


class Kept(NamedTuple):
    """Where an adapter lies, and what went wrong on the way."""

    place: Path
    problem: Exception | None
    """Why it is not where it was asked for, or lacks a part of its record."""


def keep(write: Callable[[Path, bool], None], place: Path, *, replacing: bool = False) -> Kept:
    """Write an adapter to `place`; where that fails to the system's temporary directory; with a short record if need be.

    **Arguments:**

    - `write`: writes into a directory that exists; the record whole, or only what no adapter can do without.
    - `replacing`: `place` may hold what a run that was stopped has written, which goes.

    **Raises:** what the first attempt did, where no other went better.
    """
    problem: Exception | None = None
    refuge = Path(tempfile.gettempdir()) / f"{place.name[:100]}-{time.strftime('%Y%m%d-%H%M%S')}"
    for directory in (place, refuge):
        for whole in (True, False):
            try:
                with output.new_directory(directory, replacing=replacing and directory == place) as partial:
                    write(partial, whole)
                return Kept(directory, problem)
            except OSError as error:
                problem = problem or error
                break  # it is the place that is at fault
            except Exception as error:
                problem = problem or error
                gc.collect()
    assert problem is not None, "something failed"
    raise problem


def elsewhere(kept: Kept) -> OutputError:
    """What a run raises whose adapter could not be written where it was asked for."""
    return OutputError(f"{kept.problem}\n  kept:  {kept.place} holds the adapter that was trained")


@contextlib.contextmanager
def beside(what: str) -> Iterator[None]:
    """Within the block something is made that the adapter does not need: what fails is a warning that begins with `what`."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        hint = f" ({error.hint})" if isinstance(error, MissingExtraError) else ""
        warnings.warn(f"{what}: {first or type(error).__name__}{hint}; nothing else is missing", stacklevel=3)


def draw(directory: Path, progress: Progress, title: str, unit: str) -> None:
    """The loss curve of a run, beside its adapter; see `inlay.report.curve.draw`."""
    from inlay.report import curve

    output.write_file(directory / PICTURE, curve.draw(progress, title, unit))


def sketch(directory: Path, run: Run) -> None:
    """The same beside it as the page of the run has it, which needs no other package; see `inlay.report.page.picture`."""
    if drawn := page.picture(run):
        output.write_file(directory / SKETCH, drawn.encode())
