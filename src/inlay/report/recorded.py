"""What a run of training tells of itself: to its record, its page and the trackers of others (`inlay.report.observer`)."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from inlay.base.base import Base
from inlay.evaluation import by_row, forgetting, samples
from inlay.export.agreement import SAMPLE
from inlay.hub import files
from inlay.report.observer import Observer
from inlay.runs import overfitting, recording, trackers
from inlay.runs.forecast import Forecast
from inlay.runs.progress import Progress
from inlay.runs.record import DONE, FAILED, STOPPED, Run

PAGE = ".report.html"
"""What the name of a run's page has after that of its output, beside which it lies: it holds rows of the data, which are not to
go where the adapter goes."""

MAX_NAME_BYTES = 255
"""As long may a name in a folder be, on the usual file systems."""


@runtime_checkable  # the tests check it where they check shapes
class Job(Protocol):
    """What is asked of `inlay.training.job.Job`."""

    base: Base
    state: Any
    """An `inlay.training.state.TrainState`: a room above this one."""
    output: Path
    rows: Any
    """An `inlay.training.rows.RunRows`, likewise."""
    evaluated: Sequence[Any]
    about: Any
    resumed: Any
    forecast: Forecast | None


def page(output: Path) -> Path:
    """Where the page of the run into `output` lies; a name that would be too long for the file system loses its end."""
    place = output.absolute()
    return place.with_name(os.fsencode(place.name)[: MAX_NAME_BYTES - len(PAGE)].decode(errors="ignore") + PAGE)


@contextlib.contextmanager
def observed(job: Job, listener: Callable[[Progress], None]) -> Iterator[Observer]:
    """Within the block the run of a job is recorded: what hears of it in place of its listener, and tells that one.

    **Raises:**

    - `MissingExtraError`: the library of a tracker is not installed.
    """
    settings = job.state.settings
    logs = [trackers.find(settings.log)] if settings.log else []
    with recording.taken("train") as run:
        recording.put(run, **about(job))
        observer = Observer(run, page(job.output), listener, logs, _sampler(job, run), settings.sample_every)
        for tracker in logs:
            tracker.begin(run, job.output)
        yield observer


def about(job: Job) -> dict[str, dict[str, Any]]:
    """What is known of a job before its first step, by the parts of a record."""
    state, base = job.state, job.base
    weights = base.about_base["base"]
    settings = {**dataclasses.asdict(state.settings), **dataclasses.asdict(state.plan)}
    settings |= {f"method.{key}": value for key, value in state.about_method.items()}
    held_out = {"held_out": len(job.evaluated), "held_out_sha256": state.digests["held out"]} if job.evaluated else {}
    return {
        "base": {**weights, "dtype": str(base.dtype).removeprefix("torch."), "scheme": base.scheme},
        "adapter": {"path": str(job.output.absolute()), "weights": state.adapter.num_weights},
        "data": {
            "source": job.about.source,
            "sha256": state.digests["rows"],
            "rows": job.rows.train.num_rows,
            **held_out,
        },
        "settings": {key: value for key, value in settings.items() if value is not None},
        "forecast": {} if job.forecast is None else {"predicted": job.forecast.as_dict()},
        "findings": {} if job.rows.findings is None else job.rows.findings.as_dict(),
        "machine": {"device": str(base.model.device)},
        "notes": {"unit": base.spec.unit, "again": job.about.command()}
        | ({} if job.resumed is None else {"resumed_at": job.resumed.step}),
    }


def ended(job: Job, observer: Observer, report: Mapping[str, Any]) -> None:
    """Tell what came of a run whose adapter is in its place: the keys of `inlay.report.outcome.Report`."""
    run = observer.run
    run.scores |= {key: value for key, value in report.items() if key not in ("output", "scores")}
    run.scores |= report.get("scores") or {}
    if run.forecast:
        progress = job.state.progress
        known = {"memory_bytes": report["peak_rss_bytes"], "seconds": progress.step_seconds + progress.eval_seconds}
        known |= {key: report[key] for key in ("adapter_bytes", "trainable_parameters")}
        run.forecast["outcome"] = known | run.forecast.get("outcome", {})
    run.adapter["sha256"] = files.digest_of(job.output)
    run.outcome = FAILED if report["diverged"] else STOPPED if report["interrupted"] else DONE
    run.error = "the training diverged" if report["diverged"] else ""
    if said := overfitting.note(job.state.progress):
        run.notes["overfits"] = said
    run.ended = time.time()
    observer.end()


def _sampler(job: Job, run: Run) -> Callable[[int], None]:
    """What answers the prompts of a run after a step, and keeps the answers in its record."""
    name, base = job.state.adapter.name, job.base
    asked: list[samples.Asked] = []

    def sample(step: int) -> None:
        if not asked:
            rows = job.evaluated or job.rows.train.examples
            asked.extend(samples.prompts(base, rows, base.adapters[name].num_virtual))
            run.samples.update(prompts=[one.text for one in asked], wanted=[one.wanted for one in asked])
        if asked:
            answers = run.samples.setdefault("answers", {})
            names = [name] if "0" in answers else [None, name]
            said = samples.answered(base, names, asked)
            answers |= dict(zip(["0", str(step)][-len(names) :], said, strict=True))

    return sample


def looked_at(job: Job, observer: Observer, step: int) -> None:
    """Answer the prompts once more with the adapter that is kept, and measure what it forgot, and which rows it made worse."""
    if job.base.spec.continues:
        name = job.state.adapter.name
        observer.sample(step)
        observer.run.scores["forgotten"] = forgetting.of(job.base, name, SAMPLE)
        if rows := by_row.compared(job.base, name, job.evaluated):
            observer.run.samples["rows"] = [*map(list, rows)]
