"""A run that may take so long and no longer: laid out over the steps that fit, and what is left of its time when it goes on.

    n steps fit where   n step + evaluations(n) evaluation <= PART (left - closing)

The run is then that of `--max-steps n` with as many rows in each step, to the bit: its settings say so, and with them its
state, its record, and how it was begun. So it goes on to the same end whatever its time is by then.
"""

import bisect
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from inlay.errors import ConfigError, explain
from inlay.methods.contract import Method
from inlay.planning import foreseen
from inlay.runs.bounds import CLOSING_SECONDS
from inlay.runs.budget import Budget, num_seconds
from inlay.runs.forecast import Forecast
from inlay.training.job import Job
from inlay.training.saves import Saves
from inlay.training.settings import Plan, Settings, plan

PART = 0.9
"""So much of the time is laid out, since a forecast may be too short."""


def in_all(output: Path, text: str) -> str:
    """The time in all, as `--time` says it, of a run into `output` that gets as much as `text` says from now on."""
    kept = Saves(output).read()
    return f"{math.ceil(num_seconds('--time', text) + (0 if kept is None else _taken(kept[1]['progress'])))}s"


def deadline(job: Job, start: float, seconds: float) -> float:
    """When a run is to be done that may take `seconds` in all and goes on since `start`, by the clock of `time.monotonic`.

    **Raises:**

    - `ConfigError`: it took as long before it was stopped.
    """
    progress = job.state.progress
    left = seconds - _taken(vars(progress))
    if left <= 0 and progress.step < progress.num_steps:
        found = f"{seconds:.0f} s, taken by {progress.step} of {progress.num_steps} steps"
        do = f"inlay train --resume {job.output} --time 1h"
        raise ConfigError(explain("the time of this run is over", found=found, do=do))
    return start + left


def measured(job: Job, budget: Budget, start: float) -> tuple[tuple[Forecast, Forecast], str]:
    """(what a run was foreseen to take and will take, what there is to say of its time): as `inlay.planning.foreseen.measured`
    and `fit_`, for a run that goes on since `start`.

    **Raises:** as `foreseen.measured` and `deadline`.
    """
    until = None if budget.seconds is None else deadline(job, start, budget.seconds)
    forecasts = foreseen.measured(job, budget, until)
    if job.state.world.size > 1:
        job.forecast = None  # it is that of one process
    return forecasts, "" if until is None else fit_(job, until)


def fit_(job: Job, until: float) -> str:
    """Lay a run that was measured out over the steps that fit, where not all do; what there is to say of that, if anything.

    One that goes on stays as it is, and so does one of several processes, which measure different times.
    """
    forecast, state = job.forecast, job.state
    left, asked = until - time.monotonic() - CLOSING_SECONDS, state.plan.num_steps
    if forecast is None or forecast.seconds * (1 - state.progress.step / asked) <= left:
        return ""
    if job.resumed is not None:
        return f"time may be up before the last step: inlay train --resume {job.output} --time 1h would give it more"
    laid_out = _laid_out(job)
    num_steps = laid_out.steps_within(forecast, left)
    state.settings, state.plan = laid_out.over(num_steps)
    state.progress.num_steps = num_steps
    state.progress.num_evaluations = state.plan.num_evaluations if laid_out.is_evaluated else 0
    job.forecast = dataclasses.replace(forecast, seconds=laid_out.seconds(forecast)(num_steps))
    if job.begun is not None:
        job.begun = {**job.begun, "max_steps": num_steps, "batch_size": state.plan.batch_size}
    return f"{num_steps:,} of {asked:,} steps fit into the time: the learning rate comes to 0 with them"


def num_steps_within(found: foreseen.Planned, config: Any, seconds: float) -> int:
    """How many of its steps a run takes that was planned, over a base of this configuration, and may take so many seconds."""
    held_out = found.rows.evaluated(found.settings.eval_rows)
    num_rows = len(found.rows.train.examples)
    laid_out = _LaidOut(found.settings, found.plan, num_rows, config, found.method, bool(held_out))
    left = seconds - CLOSING_SECONDS
    return found.plan.num_steps if found.forecast.seconds <= left else laid_out.steps_within(found.forecast, left)


def _laid_out(job: Job) -> "_LaidOut":
    state = job.state
    of_base = len(job.rows.train.examples), job.base.model.config, state.method
    return _LaidOut(state.settings, state.plan, *of_base, state.progress.num_evaluations > 0)


class _LaidOut(NamedTuple):
    """A run laid out over its steps, which it may be over fewer."""

    settings: Settings
    plan: Plan
    num_rows: int
    config: Any
    method: Method
    is_evaluated: bool

    def over(self, num_steps: int) -> tuple[Settings, Plan]:
        """The run over as many steps of as many rows."""
        settings = dataclasses.replace(self.settings, max_steps=num_steps, batch_size=self.plan.batch_size)
        return settings, plan(settings, self.num_rows, self.config, self.method)

    def seconds(self, forecast: Forecast) -> Callable[[int], float]:
        """What it takes by its number of steps."""
        num_evaluations = self.plan.num_evaluations if self.is_evaluated else 0
        steps = forecast.seconds_per_epoch * self.plan.num_steps * self.plan.batch_size / self.num_rows
        a_step = steps / self.plan.num_steps
        an_evaluation = max(0.0, forecast.seconds - steps) / max(1, num_evaluations)

        def seconds(num_steps: int) -> float:
            evaluations = self.over(num_steps)[1].num_evaluations if self.is_evaluated else 0
            return a_step * num_steps + an_evaluation * evaluations

        return seconds

    def steps_within(self, forecast: Forecast, left: float) -> int:
        """How many steps fit into so many seconds, one at least."""
        return max(1, bisect.bisect_right(range(1, self.plan.num_steps), PART * left, key=self.seconds(forecast)))


def _taken(progress: Mapping[str, Any]) -> float:
    """The seconds of steps and evaluations, of a progress by its fields."""
    seconds: float = progress["step_seconds"] + progress["eval_seconds"]
    return seconds
