"""A whole run: rows in, an adapter directory out.

    job = prepare(base, "rows.jsonl", method=Lora(r=16), output="mine")    # all is chosen and checked, nothing attached
    report = job.run()                                                     # attach, train, keep the best, write

The output directory appears whole at the end: the adapter as the exchange format has it, and `inlay.json` with the record of
the run. The loss curve, `curve.png` and `curve.svg`, follows.
"""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from inlay import formats, methods
from inlay.base import origin
from inlay.base.base import Base
from inlay.data import split
from inlay.data.sources import Data, Source, license_of, name_of
from inlay.distributed.begin import begin_, check_divides
from inlay.distributed.world import ALONE, World
from inlay.errors import DataError, explain, within_memory
from inlay.evaluation import golden, score
from inlay.formats import peft
from inlay.io import output as output_directory
from inlay.io import records
from inlay.io.checkpoint import hub_name
from inlay.methods.contract import Method
from inlay.model.adapter import Adapter
from inlay.process import peak_rss_bytes
from inlay.report import recorded
from inlay.report.observer import Observer
from inlay.report.outcome import Report
from inlay.runs import patience
from inlay.runs.bounds import Bounds
from inlay.runs.forecast import Forecast
from inlay.runs.progress import Progress
from inlay.runs.stop import Stop
from inlay.screen import Doing, unheard
from inlay.text import stops
from inlay.training import equivalent, going_on, keep, loop
from inlay.training import rows as run_rows
from inlay.training.attaching import attached
from inlay.training.calibration import calibrate
from inlay.training.run_spec import RunSpec
from inlay.training.saves import Saves, was_stopped
from inlay.training.settings import Settings, plan
from inlay.training.state import MIN_ROWS_TO_CHOOSE, TrainState

DEFAULT_METHOD = "lora"

CALIBRATION_ROWS = 64
"""As many rows, spread over all, are looked at beforehand where an initialiser needs some."""


class Resumed(NamedTuple):
    """A run that goes on from a state."""

    step: int
    differs: list[str]
    """Why its end may differ in its last bits from that of the run that was never stopped."""


@dataclasses.dataclass(frozen=True)
class About:
    """What the record says of where a run comes from."""

    source: str
    """What its rows are called."""
    goes_on: dict[str, Any] | None
    """The adapter that it starts from; None where it starts anew."""
    license: str | None
    """The licence of the data, where its card names one."""
    command: Callable[[], str | None]
    """Says the command that makes it again; None where Python gave rows, which no command names."""


@dataclasses.dataclass
class Job:
    """A run with all its choices made; `str` of its parts is what the screen says before it starts."""

    base: Base
    state: TrainState
    output: Path
    rows: run_rows.RunRows
    evaluated: Sequence[Any]
    """The held-out samples that are evaluated."""
    saves: Saves
    """The states that it keeps as it goes."""
    about: About
    begun: Mapping[str, Any] | None = None
    """How a command began it, for the one that goes on."""
    resumed: Resumed | None = None
    """Where it goes on from; None where it begins."""
    forecast: Forecast | None = None
    """What it was foreseen to take, for the record; None where nobody asked."""
    bounds: Bounds = dataclasses.field(default_factory=Bounds)
    """The memory and the time that it keeps to."""

    @within_memory()
    def run(self, listener: Callable[[Progress], None] = lambda progress: None) -> Report:
        """Train, keep the best adapter, write the output directory.

        The adapter is written, synced and in its place before anything else is done. What the run raises after its first step,
        or its listener, is raised once that is so.

        **Raises:**

        - `DivergedError`: the loss is not finite any more.
        - `OutputError`: the directory appeared meanwhile, or the disk is full; the adapter is then kept elsewhere, and the
          message says where.
        """
        stop = Stop()
        with stop.heard():
            return loop.alone(self.base, self.state, self.steps(stop, listener), stop, self.bounds.watch)

    def steps(self, stop: Stop, listener: Callable[[Progress], None]) -> loop.Steps[Report]:
        """The same, with its steps made by whoever asks for them; see `inlay.training.loop.Steps`."""
        if not self.state.world.is_first:
            return (yield from self._followed(stop, listener))
        with recorded.observed(self, listener) as observer:
            return (yield from self._steps(stop, observer))

    def _followed(self, stop: Stop, listener: Callable[[Progress], None]) -> loop.Steps[Report]:
        """Those of a process that is not the first of several: it writes nothing."""
        start, how = time.perf_counter(), {"listener": listener, "stop": stop, "bounds": self.bounds}
        progress = yield from loop.steps(self.base, self.state, self.rows.train.examples, self.evaluated, **how)
        if (failure := progress.failure) is None:
            return self._report(progress, time.perf_counter() - start)
        raise failure

    def _steps(self, stop: Stop, observer: Observer) -> loop.Steps[Report]:
        start, saves, rows = time.perf_counter(), self.saves, self.rows.train.examples
        with saves.kept(self.begun):
            how: dict[str, Any] = {"listener": observer.hear, "stop": stop, "saves": saves, "bounds": self.bounds}
            progress = yield from loop.steps(self.base, self.state, rows, self.evaluated, **how)
            report = self._report(progress, time.perf_counter() - start)
            kept = keep.keep(
                lambda directory, whole: self._write(directory, progress, report, whole),
                self.output,
                replacing=self.resumed is not None and was_stopped(self.output),
            )
            if not report.interrupted:
                saves.remove()
        report = dataclasses.replace(report, adapter_bytes=(kept.place / peft.TENSORS).stat().st_size)
        report = self._concluded(kept, report, observer, hurry=stop.hurries or self.state.world.holds_base)
        recorded.ended(self, observer, report.as_dict())
        return dataclasses.replace(report, run=observer.run)

    def _concluded(self, kept: keep.Kept, report: Report, observer: Observer, hurry: bool) -> Report:
        """The report with what comes after the adapter is safe: scores, picture, and what went wrong before."""
        progress = self.state.progress
        if kept.place != self.output:
            raise keep.elsewhere(kept) from None
        if (problem := kept.problem) is not None:
            warnings.warn(f"the record of the run could not be written: {problem}; the adapter is whole", stacklevel=3)
        if progress.failure is not None:
            warnings.warn(f"{self.output} holds what was learned in {progress.step} steps", stacklevel=3)
            raise progress.failure
        try:
            if self.evaluated and not hurry:
                with keep.beside("no scores were computed"):
                    report = self._scored(report)
            if not hurry:
                with keep.beside("no golden answers were kept"):
                    self._keep_golden()
                with keep.beside("no samples were answered"):
                    recorded.looked_at(self, observer, report.best_step)
            with keep.beside(f"{keep.SKETCH} was not drawn"):
                keep.sketch(self.output, observer.run)
            with keep.beside(f"{keep.PICTURE} was not drawn"):
                title = f"{self.output.name} on {self.base.checkpoint.name}"
                keep.draw(self.output, progress, title, self.base.spec.unit)
        except KeyboardInterrupt:
            report = dataclasses.replace(report, interrupted=True)
        return report

    def _scored(self, report: Report) -> Report:
        adapter = self.state.adapter
        scores = score.scores(self.base, adapter.name, self.evaluated)
        if scores:
            self._note(training=adapter.record["training"] | {"scores": scores})
            peft.write_card(self.output, formats.outline(self.output))
        return dataclasses.replace(report, scores=scores or None)

    def _keep_golden(self) -> None:
        if said := golden.kept(self.base, self.state.adapter.name):
            self._note(**{golden.KEY: said})

    def _note(self, **more: Any) -> None:
        """Put more into the record of the adapter, and into its file, which says besides which packages it needs."""
        self.state.adapter.record |= more
        records.write(self.output, records.read(self.output) | more)

    def _report(self, progress: Progress, seconds: float) -> Report:
        evaluated = dict(progress.eval_losses)
        return Report(
            steps=progress.step,
            loss=progress.losses[-1],
            eval_loss_before=evaluated.get(0),
            eval_loss=evaluated.get(progress.best_step),
            best_step=progress.best_step,
            seconds=seconds,
            tokens=progress.num_tokens,
            supervised_tokens=progress.num_supervised,
            tokens_per_second=progress.num_tokens / max(progress.step_seconds, 1e-9),
            trainable_parameters=self.base.layout.count(self.state.method),
            peak_rss_bytes=peak_rss_bytes(),
            adapter_bytes=0,
            base_fingerprint=self.base.fingerprint.weights,
            interrupted=progress.interrupted or progress.failure is not None,
            stopped_early=progress.stopped_early,
            diverged=progress.diverged,
            output=str(self.output),
        )

    def _write(self, directory: Path, progress: Progress, report: Report, whole: bool = True) -> None:
        record = self._record(progress, report) if whole else {}
        if self.base.spec.continues:
            record |= {"text": stops.record_of(self.rows.train.form, self.rows.train.ends, self.base.tokenizer)}
        adapter = self.state.adapter
        adapter.record = origin.about(self.base, adapter) | self.base.about_task | record
        self.base.save(adapter.name, directory, record)

    def _record(self, progress: Progress, report: Report) -> dict[str, Any]:
        state = self.state
        others = {} if self.resumed is None else {"resumed_at": self.resumed.step}
        others |= {} if self.forecast is None else {"forecast": self.forecast.as_dict()}
        return {
            "method": state.about_method,
            "data": {
                "source": self.about.source,
                "sha256": state.digests["rows"],
                "rows": len(self.rows.train.examples),
                **({} if self.about.license is None else {"license": self.about.license}),
            },
            **({} if self.about.goes_on is None else {"from": self.about.goes_on}),
            "training": {
                **dataclasses.asdict(state.settings),
                **dataclasses.asdict(state.plan),
                **{key: value for key, value in report.as_dict().items() if key not in ("output", "adapter_bytes")},
                **others,
                **({"processes": state.world.size} if state.world.size > 1 else {}),
                "losses": [round(loss, 6) for loss in progress.losses],
                "eval_losses": progress.eval_losses,
                "command": self.about.command(),
                "date": time.strftime("%Y-%m-%d"),
                "dtype": str(self.base.dtype).removeprefix("torch."),
            },
            "versions": state.versions,
        }


@within_memory()
def prepare(
    base: Base,
    source: Source,
    asked: RunSpec,
    *,
    world: World = ALONE,
    doing: Doing = unheard,
    read: Callable[..., run_rows.RunRows] = run_rows.read,
) -> Job:
    """Read and check everything that a run needs, make its adapter, and choose what was left open. The base stays as it is.

    **Arguments:**

    - `source`: rows of the task that the base was loaded for; see `inlay.data.sources.read`.
    - `read`: what reads them; runs that share rows read them once.

    **Raises:**

    - `OutputError`: the output exists, or the disk has no room for it.
    - `DataError`, `FormatError`, `UnknownNameError`: the data is missing, malformed, or leaves nothing to train on.
    - `TargetError`, `ConfigError`: the method does not fit the model, or is not that of `from_adapter`.
    - `CompatibilityError`: `from_adapter` was trained on another base.
    """
    settings, output, resume = asked.settings, output_directory.place(asked.output), asked.resume
    saves = Saves(output, settings.save_every)
    world.from_first(lambda: saves.check(resume))
    method, earlier = _method(base, asked, output.resolve().name)
    num_virtual = getattr(method, "num_virtual_tokens", 0)
    rows = read(base, source, asked.eval_data, settings, num_virtual, doing, check=asked.check)
    doing("measuring what the adapter starts from", 0, None)
    evaluated = rows.evaluated(settings.eval_rows)
    patience.check(settings.patience, len(evaluated), MIN_ROWS_TO_CHOOSE)
    adapter = earlier or _new(base, output.resolve().name, method, rows.train.examples, settings)
    state = _state(base, adapter, rows, asked, len(evaluated), world)
    check_divides(world, state.plan.batch_size, base.spec.step_parts(base, rows.train.examples[:2], 1))
    differs = begin_(world, state, lambda: saves.read() if resume else None, {"dtype": str(base.dtype)})
    resumed = Resumed(state.progress.step, differs) if resume else None
    about = _about(base, source, asked, state)
    return Job(base, state, output, rows, evaluated, saves, about, begun=asked.begun, resumed=resumed)


def _about(base: Base, source: Source, asked: RunSpec, state: TrainState) -> About:
    goes_on = None if asked.from_adapter is None else going_on.about(asked.from_adapter)
    name = None if goes_on is None else goes_on["name"]
    command = partial(_command, base, source, asked.eval_data, state, name)
    return About(name_of(source), goes_on, license_of(source), command)


def _command(
    base: Base, source: Source, eval_data: Source | None, state: TrainState, goes_on: str | None
) -> str | None:
    """The command that makes the run again; None where its rows are of no file and not of the hub."""
    if not all(given is None or isinstance(given, str | os.PathLike | Data) for given in (source, eval_data)):
        return None
    others = {
        "--eval-data": None if eval_data is None else name_of(eval_data),
        "--quantize": None if base.original is None else base.scheme,
        "--dtype": str(base.dtype).removeprefix("torch."),
    }
    name = hub_name(base.checkpoint.reference) or base.checkpoint.name
    return equivalent.command(
        name, name_of(source), base.task, state.method, state.settings, goes_on=goes_on, others=others
    )


def _state(
    base: Base, adapter: Adapter, rows: run_rows.RunRows, asked: RunSpec, num_held_out: int, world: World
) -> TrainState:
    """The run that learns from these rows, with what was left open chosen; refused, where it can't be attached or written."""
    settings, goes_on = asked.settings, asked.from_adapter is not None
    with attached(base, adapter):
        output_directory.check_space(output_directory.place(asked.output), 8 * adapter.num_weights + (1 << 20))
        chosen = plan(settings, len(rows.train.examples), base.model.config, adapter.method)
    if why := base.spec.teaches_nothing(rows.train.examples, chosen.batch_size):
        raise DataError(
            explain("an adapter would learn nothing from these rows", found=why, do="more rows, in larger steps")
        )
    digests = {**base.fingerprint.as_dict(), "rows": rows.digest, "held out": rows.held_out_digest}
    if rows.parts:
        digests["mixture"] = ":".join(f"{weight:g}" for weight, _ in rows.parts)
    how: dict[str, Any] = {"num_held_out": num_held_out, "goes_on": goes_on, "parts": rows.parts, "world": world}
    return TrainState.new(adapter, settings, chosen, digests=digests, **how)


def _method(base: Base, asked: RunSpec, name: str) -> tuple[Method, Adapter | None]:
    """(how to adapt, the adapter to go on from, called `name` from now on)."""
    if asked.from_adapter is not None:
        earlier = going_on.read(base, asked.from_adapter, name, asked.method)
        return earlier.method, earlier
    method = asked.method or DEFAULT_METHOD
    return method if isinstance(method, Method) else methods.find(method)(), None


def _new(base: Base, name: str, method: Method, examples: Sequence[Any], settings: Settings) -> Adapter:
    """A new adapter; where its initialiser is calibrated on rows, on some of these."""
    some = split.spread(examples, CALIBRATION_ROWS)
    calibration = calibrate(base, method, some, settings.micro_batch_tokens, settings.seed)
    return base.fresh(method, name, settings.seed, calibration)
