"""Many runs at once on one base: what they are, side by side, and which is best.

OUTPUT/NAME/       the adapter of each run, as the run alone writes it
OUTPUT/sweep.md    the table; sweep.json the same in numbers; sweep.png the curves
OUTPUT/run.json    while runs are left: how the command began them
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from inlay import screen
from inlay.base.base import Base
from inlay.data.sources import Source, name_of
from inlay.distributed.begin import check_one
from inlay.distributed.group import joined
from inlay.distributed.world import ALONE, World
from inlay.errors import ConfigError, DivergedError, InlayError, OutputError, explain, within_memory
from inlay.formats import peft
from inlay.gate.findings import Check
from inlay.io import output as output_directory
from inlay.io import records
from inlay.methods.contract import Method
from inlay.process import peak_rss_bytes
from inlay.report.outcome import Report
from inlay.runs import trackers
from inlay.runs.progress import Progress
from inlay.runs.stop import Stop
from inlay.screen import Doing, unheard
from inlay.sweeps import table
from inlay.sweeps.table import Sweep
from inlay.sweeps.together import Together
from inlay.sweeps.variants import Variant, variants
from inlay.training import job as jobs
from inlay.training import rows as run_rows
from inlay.training.job import Job
from inlay.training.run_spec import RunSpec
from inlay.training.saves import BEGUN, was_stopped
from inlay.training.settings import Settings

Listener = Callable[[str, Progress], None]
"""Hears the name of a run, and where it stands."""


@dataclasses.dataclass
class Runs:
    """Runs with all their choices made."""

    base: Base
    output: Path
    variants: list[Variant]
    jobs: dict[str, Job]
    """Those that are left, by name."""
    finished: dict[str, Report]
    """Those that a sweep which was stopped has finished."""
    begun: Mapping[str, Any] | None = None
    """How a command began them, for the one that goes on."""

    @within_memory()
    def run(self, listener: Listener = lambda name, progress: None) -> Sweep:
        """Train all, write all, and then the table and the picture. The best adapter is then active.

        **Raises:**

        - `DivergedError`: no run has learned anything.
        - what a run raises, once what the others have learned is written.
        """
        start, stop = time.perf_counter(), Stop()
        with output_directory.refusals(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
        with output_directory.locked(self.output), stop.heard():
            if self.begun is not None:
                output_directory.write_file(self.output / BEGUN, json.dumps(self.begun, indent=1).encode())
            steps = {
                name: (job.state, job.steps(stop, lambda progress, name=name: listener(name, progress)))
                for name, job in self.jobs.items()
            }
            together = Together(self.base, steps, stop)
            together.run()
            reports = self.finished | {n: end for n, end in together.ended.items() if isinstance(end, Report)}
            errors = {name: end for name, end in together.ended.items() if isinstance(end, BaseException)}
            if not reports:
                self._leave_nothing()
                ended = next(iter(errors.values()))
                raise ended
            found = self._found(reports, errors, time.perf_counter() - start, together.passes.apart)
            table.write(self.output, found)
            others = [error for error in errors.values() if not isinstance(error, DivergedError | KeyboardInterrupt)]
            if not (found.interrupted or others):
                (self.output / BEGUN).unlink(missing_ok=True)
        self._choose(found)
        for ended in others:
            raise ended
        return found

    def _found(
        self, reports: Mapping[str, Report], errors: Mapping[str, BaseException], seconds: float, apart: str
    ) -> Sweep:
        best: dict[str, str] = {}
        for one in self.variants:
            loss, data = _loss(reports.get(one.name)), name_of(one.source)
            if loss is not None and (data not in best or loss < (_loss(reports[best[data]]) or loss)):
                best[data] = one.name
        return Sweep(
            reports={one.name: reports[one.name] for one in self.variants if one.name in reports},
            reasons={name: _reason(error) for name, error in errors.items()},
            best=best,
            swept={one.name: one.swept for one in self.variants},
            seconds=seconds,
            peak_rss_bytes=peak_rss_bytes(),
            output=str(self.output),
            apart=apart,
            interrupted=any(report.interrupted for report in reports.values())
            or any(isinstance(error, KeyboardInterrupt) for error in errors.values()),
        )

    def _choose(self, found: Sweep) -> None:
        """Make the best adapter active."""
        best = next((name for name in found.best.values() if name in self.base.adapters), None)
        if best is not None:
            self.base.active = best

    def _leave_nothing(self) -> None:
        (self.output / BEGUN).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # states of runs, or something of somebody else's, is in it
            self.output.rmdir()


def _loss(report: Report | None) -> float | None:
    return None if report is None else report.eval_loss


def _reason(error: BaseException) -> str:
    if isinstance(error, InlayError):
        return " · ".join([error.wrong, *error.found])
    return (
        "stopped before its first step" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
    )


@within_memory()
def prepare(
    base: Base,
    sources: Sequence[Source],
    over: Mapping[str, Sequence[Any]],
    asked: RunSpec,
    *,
    world: World = ALONE,
    doing: Doing = unheard,
) -> Runs:
    """Read and check everything that the runs need; rows that several have are read once. The base stays as it is.

    **Arguments:**

    - `sources`: rows, a run for each, times what is swept.
    - `over`: what is swept, and its values; see `inlay.sweeps.variants`.
    - `asked`: of all runs, whose adapters its `output` will hold. With `resume` those that are finished are left.

    **Raises:** what `inlay.training.job.prepare` raises, and `ConfigError` where something can't be swept, or several
    processes would share it.
    """
    check_one(world, "many adapters at once")
    place = output_directory.place(asked.output)
    if not asked.resume:
        output_directory.check_free(place)
    chosen = variants(sources, asked.method, asked.settings, over)
    found, finished, read = dict[str, Job](), dict[str, Report](), _reader()
    for one in chosen:
        if asked.resume and (report := _finished(place / one.name)) is not None:
            finished[one.name] = report
        else:
            own = {"method": one.method, "settings": one.settings, "output": place / one.name, "begun": None}
            found[one.name] = jobs.prepare(base, one.source, dataclasses.replace(asked, **own), doing=doing, read=read)
    if not found:
        do = f"inlay eval MODEL DATA --adapter {place / chosen[0].name}"
        raise OutputError(explain("these runs are finished", found=str(place), do=do))
    return Runs(base, place, chosen, found, finished, asked.begun)


def _reader() -> Callable[..., run_rows.RunRows]:
    """`inlay.training.rows.read` for runs that share rows: those of a source, as long, are read once."""
    known: dict[Any, run_rows.RunRows] = {}

    def read(
        base: Base,
        source: Source,
        eval_data: Source | None,
        settings: Settings,
        num_virtual: int,
        doing: Doing,
        **how: Any,
    ) -> run_rows.RunRows:
        key = id(source), run_rows.longest_row(base, settings.max_length, num_virtual)
        if key not in known:
            known[key] = run_rows.read(base, source, eval_data, settings, num_virtual, doing, **how)
        return known[key]

    return read


def _finished(path: Path) -> Report | None:
    """What the run that has written `path` came to, if it came to its end."""
    if not (path / peft.TENSORS).is_file() or was_stopped(path):
        return None
    training = records.read(path).get("training", {})
    about = {field.name: training.get(field.name) for field in dataclasses.fields(Report) if field.name != "run"}
    size = (path / peft.TENSORS).stat().st_size
    return Report(**{**about, "output": str(path), "adapter_bytes": size})


def sweep(
    base: Base,
    source: Source = None,
    *,
    over: Mapping[str, Sequence[Any]] | None = None,
    each: Sequence[Source] = (),
    method: Method | str | None = None,
    output: str | Path,
    eval_data: Source | None = None,
    from_adapter: str | Path | None = None,
    resume: bool = False,
    check: Check = "warn",
    progress: bool | None = None,
    max_steps: int | None = Settings.max_steps,
    epochs: float = Settings.epochs,
    batch_size: int | None = Settings.batch_size,
    learning_rate: float | None = Settings.learning_rate,
    max_length: int | None = Settings.max_length,
    too_long: Literal["drop", "window"] | None = Settings.too_long,
    train_on: Literal["completions", "all"] = Settings.train_on,
    eval_fraction: float = Settings.eval_fraction,
    eval_rows: int = Settings.eval_rows,
    eval_every: int | None = Settings.eval_every,
    weight_decay: float = Settings.weight_decay,
    max_grad_norm: float = Settings.max_grad_norm,
    micro_batch_tokens: int | None = Settings.micro_batch_tokens,
    recompute: bool = Settings.recompute,
    save_every: int | None = Settings.save_every,
    patience: int | None = Settings.patience,
    sample_every: int | None = Settings.sample_every,
    log: trackers.Name | None = Settings.log,
    seed: int = Settings.seed,
) -> Sweep:
    """Train many adapters at once on one base: every combination of some settings, or one for each source of rows.

        inlay.sweep(base, "rows.jsonl", over={"learning_rate": [1e-4, 1e-3], "r": [8, 32]}, output="swept")

    Each adapter is what `inlay.train` would have made of its settings alone, up to the rounding of sums, and is written to a
    directory of its own in `output`. All are left attached; the best is active.

    **Arguments:**

    - `source`: the rows of all runs; or `each`: sources, with runs of their own for each.
    - `over`: a setting of `inlay.Settings`, a field of the method, or `method` -> its values; each combination is a run.
    - `output`: the directory that will hold the adapters, the table `sweep.md` and the curves; it must not exist.
    - `resume`: go on with these same runs where they were stopped.
    - all others: see `inlay.train`; what is swept wins over them.

    **Returns:** the report of every run, and which is best.

    **Raises:** what `inlay.train` raises, once what the runs have learned is written; and

    - `ConfigError`: something can't be swept, since the runs share the base and the rows; or torchrun has started several
      processes.
    - `DivergedError`: every run diverged. One that does ends without harm to the others.
    """
    asked = RunSpec.among(locals())
    shown = screen.is_watched() if progress is None else progress
    with joined() as world, screen.bar("step", shown=shown) as update:
        asked = dataclasses.replace(asked, resume=resume or world.restarted)
        runs = prepare(base, sources_of(source, each), over or {}, asked, world=world, doing=screen.doing(update))
        return runs.run(table.watch(update, runs.jobs) if shown else lambda name, progress: None)


def sources_of(source: Source, each: Sequence[Source]) -> list[Source]:
    """The sources of rows that there is a run for.

    **Raises:**

    - `ConfigError`: there is none, or both one for all and one for each.
    """
    if (source is None) == (not each):
        found = "neither" if source is None else f"{name_of(source)} and {len(each):,} more"
        do = "the rows of all runs, or --each FILE FILE for runs of their own"
        raise ConfigError(explain("runs have one source of rows, or one each", found=found, do=do))
    return [source] if source is not None else list(each)
