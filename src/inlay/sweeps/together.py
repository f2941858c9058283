"""Runs side by side: each goes its own way, evaluates, keeps its best and writes its adapter, and only steps are made together.

A run hands out the rows of its next step (`inlay.training.loop.Steps`), as it does to the loop that makes the steps of one run
alone. Here those of all runs are made at once. A run that ends, in whatever way, leaves the others to go on.
"""

from collections.abc import Mapping
from typing import Any

from inlay.base.base import Base
from inlay.errors import within_memory
from inlay.report.outcome import Report
from inlay.runs.stop import Stop
from inlay.sweeps.steps import Due, Passes
from inlay.training.loop import Steps
from inlay.training.state import TrainState

Ended = Report | BaseException
"""What a run comes to: its report, or what it raises."""


class Together:
    """Runs on one base, by name.

    **Attributes:**

    - `ended`: what those came to that have ended, in the order in which they did.
    """

    def __init__(self, base: Base, runs: Mapping[str, tuple[TrainState, Steps[Report]]], stop: Stop):
        self.base, self.runs, self.stop = base, runs, stop
        self.passes = Passes(base)
        self.ended: dict[str, Ended] = {}
        self._due: dict[str, Due] = {}

    def run(self) -> None:
        """Make all steps of all runs.

        The first request to end ends each run after the step under way; a second one gives that step up.
        """
        for name in self.runs:
            self._go_on(name)
        while self._due:
            names, due = [*self._due], [*self._due.values()]
            try:
                with self.stop.may_cut():
                    problems: list[Any] = self.passes.steps_(due)
            except KeyboardInterrupt as cut:
                problems = [cut for _ in due]
            for name, problem in zip(names, problems, strict=True):
                self._go_on(name, problem)

    def _go_on(self, name: str, problem: BaseException | None = None) -> None:
        """Let a run come to its next step, or to its end; `problem` is what kept its last step from being made."""
        state, steps = self.runs[name]
        self._due.pop(name, None)
        self.base.active = None  # a run that leaves its adapter off makes active again what it found
        try:
            with within_memory():
                self._due[name] = Due(state, next(steps) if problem is None else steps.throw(problem))
        except StopIteration as end:
            self.ended[name] = end.value
        except (Exception, KeyboardInterrupt) as error:
            self.ended[name] = error
