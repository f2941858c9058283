"""Who hears of a run's steps besides the terminal: its record, its page, the trackers of others.

Nothing of them can end a run: what fails is a warning, said once, and left alone from then on.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from inlay.io import output
from inlay.report import page
from inlay.runs import recording
from inlay.runs.pace import Pace
from inlay.runs.progress import Progress
from inlay.runs.record import Point, Run
from inlay.runs.trackers import Tracker

EVERY_SECONDS = 5.0
"""From one writing of record and page to the next, at least."""


class Observer:
    """What `hear` hears goes into the curve of the record; that, the page and the trackers follow.

    **Arguments:**

    - `run`: the record.
    - `place`: where its page lies.
    - `listener`: who else hears.
    - `trackers`: others that log its losses.
    - `sample`: answers some prompts after a step, and notes the answers in the record; called every `sample_every` steps.
    """

    def __init__(
        self,
        run: Run,
        place: Path,
        listener: Callable[[Progress], None],
        trackers: Sequence[Tracker] = (),
        sample: Callable[[int], None] = lambda step: None,
        sample_every: int | None = None,
    ):
        self.run, self.place, self.listener, self.trackers = run, place, listener, list(trackers)
        self.sample, self.sample_every = sample, sample_every
        self._seen, self._has_start = 0, False
        self._pace = Pace(EVERY_SECONDS)
        self._failed: set[str] = set()

    def hear(self, progress: Progress) -> None:
        """A listener of the loop, which tells the other one first."""
        self.listener(progress)
        if progress.doing:
            return
        points = self._new(progress)
        self.run.curve += points
        for point in points:
            self._log(point)
        if points and self.sample_every and progress.step % self.sample_every == 0 and progress.step:
            self._tried("samples were not answered", lambda: self.sample(progress.step))
        if self._pace.is_due:
            self.write()

    def write(self) -> None:
        """Write record and page as they are now."""
        with self._pace.spending():
            recording.save(self.run, timeout=0.2)
            self._tried("the page of the run was not written", self._draw)

    def end(self) -> None:
        """The run is over, and its record says how; its page and the trackers hear of it."""
        for tracker in self.trackers:
            self._tried(f"{tracker.name} was not told of the end", lambda tracker=tracker: tracker.end(self.run))
        self.write()

    def _draw(self) -> None:
        output.write_file(self.place, page.of(self.run).encode("utf-8", "backslashreplace"))

    def _new(self, progress: Progress) -> list[Point]:
        """The steps since the last time; of those before a run was resumed only the losses are known."""
        evaluated, found = dict(progress.eval_losses), []
        if 0 in evaluated and not self._has_start:
            self._has_start = True
            found.append(Point(0, None, evaluated[0], 0.0, 0))
        for step in range(self._seen + 1, progress.step + 1):
            is_now = step == progress.step
            seconds = progress.step_seconds + progress.eval_seconds if is_now else None
            tokens = progress.num_tokens if is_now else None
            found.append(Point(step, progress.losses[step - 1], evaluated.get(step), seconds, tokens))
        self._seen = progress.step
        return found

    def _log(self, point: Point) -> None:
        values = {"train/loss": point.loss, "eval/loss": point.held_out, "tokens": point.tokens}
        known = {name: float(value) for name, value in values.items() if value is not None}
        for tracker in self.trackers:
            self._tried(f"{tracker.name} was not told of steps", lambda tracker=tracker: tracker.log(point.step, known))

    def _tried(self, what: str, do: Callable[[], object]) -> None:
        if what in self._failed:
            return
        try:
            do()
        except Exception as error:
            self._failed.add(what)
            warnings.warn(f"{what}: {recording.headline(error)}; the run goes on without it", stacklevel=2)
