"""Fine-tune: train an adapter on a file of examples."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from inlay import formats, methods, screen, tasks
from inlay.base.base import Base
from inlay.cli._trained import announce, announce_rows, conclude, kernels, path
from inlay.cli.plan import needs, planned, say_choice
from inlay.data import sources
from inlay.distributed.group import joined
from inlay.distributed.world import World
from inlay.errors import ConfigError, UnknownNameError, explain
from inlay.gate.findings import Check
from inlay.gguf.opening import open_base
from inlay.methods.contract import Method
from inlay.options import purpose
from inlay.options.flags import Budgeted, Common, OnBase, Verbose
from inlay.options.parse import METHOD_FIELD, build, to_mapping
from inlay.options.swept import swept
from inlay.options.types import Mark, found_in, repeated
from inlay.planning import foreseen, timed
from inlay.process import keep_few_products
from inlay.report.watch import watch
from inlay.runs import recording
from inlay.runs.budget import Budget
from inlay.screen import count, say
from inlay.sweeps import sweep as sweeps
from inlay.sweeps import table, words
from inlay.tasks.contract import DEFAULT_TASK
from inlay.text.mask import show
from inlay.training import going_on, saves
from inlay.training import job as jobs
from inlay.training import rows as run_rows
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(OnBase, Budgeted):
    """Rows of text, of prompts and answers or of conversations become an adapter. What is not given is chosen, and said.
    --method NAME --help shows the flags of another method."""

    data: Annotated[str, Mark(is_positional=True, metavar="DATA", is_required=True)] = ""
    """The rows: a JSONL, JSON, CSV or Parquet file, a folder of them, or a data set on the hub; several of these, drawn by
    weight, as a.jsonl:3,b.jsonl:1."""

    output: Annotated[Path, Mark(is_required=True)] = Path()
    """The directory that will hold the adapter; it must not exist."""

    task: Annotated[str, found_in(tasks.TABLE)] = DEFAULT_TASK
    """What to learn."""

    method: Annotated[str, found_in(methods.TABLE)] = "lora"
    """How to adapt."""

    from_adapter: Annotated[str | None, Mark(name="from", metavar="ADAPTER")] = None
    """Go on from this adapter, a directory or name@version, with its method; without it, a new one starts."""

    eval_data: str | None = None
    """Held-out rows; without it, a part of the data is held out."""

    sweep: repeated(str, "NAME=VALUE,VALUE") = ()  # type: ignore[valid-type]  # an annotation built by a function
    """Train all combinations at once on one base, each into a directory of its own: NAME=VALUE,VALUE of any setting, field of
    the method, or the method."""

    each: Annotated[tuple[str, ...], Mark(metavar="FILE", frees=("data",))] = ()
    """Files of rows in place of DATA, each with adapters of its own, all trained at once."""

    resume: Annotated[Path | None, Mark(only_with=("time", "json", "debug"))] = None
    """Go on with the run that was to write this directory and was stopped; every setting is as it began."""

    config: Path | None = None
    """A YAML file with any of these settings; flags win over it."""

    show_tokens: Annotated[int, Mark(frees=("output",))] = 0
    """Print this many rows with the trained tokens marked, and stop."""

    check: Check = "warn"
    """What is odd in the rows is counted, refused (error) or not looked for (off); what can't be trained on is refused
    always."""

    shard_base: bool = False
    """Under torchrun: each process holds a part of the base, which travels as it is used; for a base that none can hold."""

    verbose: Verbose = False
    """Say which way the rows take through the model, and why."""

    settings: Settings
    """How to train."""

    def run(self) -> int:
        """Prepare, say what will happen, train, say what happened."""
        if self.shard_base and self.settings.sample_every:
            found, do = "--shard-base and --sample-every", "one of the two"
            raise ConfigError(explain("one process alone can't answer over a base in parts", found=found, do=do))
        keep_few_products()
        with joined() as world:
            return (self._as_begun() if world.restarted and world.size == 1 else self)._bounded(world)

    def _as_begun(self) -> "Train":
        """The same over as many steps as it was laid out over, where torchrun starts again what was under way."""
        with contextlib.suppress(UnknownNameError):
            begun = saves.begun(self.output)
            steps = {name: begun[name] for name in ("max_steps", "batch_size")}
            return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **steps))
        return self

    def _bounded(self, world: World) -> int:
        start, bounds = time.monotonic(), self.budget
        if (self.sweep or self.each) and bounds != Budget():
            wrong, do = "a budget is of one run, and these are many", "leave it out: inlay plan says what one takes"
            raise ConfigError(explain(wrong, found="--memory, --time or --disk with --sweep or --each", do=do))
        is_planned = (self.memory or self.disk) and self.resume is None and not self.show_tokens
        return (self._within(bounds) if is_planned else self)._run(world, start)

    def _within(self, bounds: Budget) -> "Train":
        """The same, run in the way that keeps to these bounds; it says which that is."""
        with screen.bar("planning") as update:
            found = planned(self, getattr(self, METHOD_FIELD), screen.doing(update))[1]
        say_choice(found)
        return dataclasses.replace(self, quantize=found.way.quantize, settings=found.settings)

    def _run(self, world: World, start: float) -> int:
        with screen.bar("loading"):
            data = sweeps.sources_of(self.data or None, self.each)[0]
            chosen = purpose.choose(tasks.find(self.task), open_base(self.model), data, self.from_adapter)
            base = self.load(chosen, world if self.shard_base else None)
        say("base", f"{base.describe()} · {base.fingerprint}")
        method = self._method()
        if self.show_tokens:
            return self._show_tokens(base, data, getattr(method, "num_virtual_tokens", 0))
        asked = RunSpec(
            method=method,
            output=self.output,
            eval_data=self.eval_data,
            from_adapter=self.from_adapter,
            settings=self.settings,
            resume=self.resume is not None or world.restarted,
            begun=self._begun(base),
            check=self.check,
        )
        if self.sweep or self.each:
            return self._run_all(base, [chosen.data or data, *self.each[1:]], asked, world)
        recording.note(base=base.about_base["base"], data={"source": self.data})
        with screen.bar("preparing") as update:
            job = jobs.prepare(base, chosen.data or data, asked, world=world, doing=screen.doing(update))
        announce(job)
        return self._run_one(job, start)

    def _run_one(self, job: jobs.Job, start: float) -> int:
        """Say what the run will take, by some of its own batches, and run it."""
        if self.verbose:
            say("path", path(job.base))
            say("kernels", kernels())
            whole, once = foreseen.computed(job)
            if once < whole:
                say(
                    "shared",
                    f"what rows of a step begin with alike is computed once: {count(once)} of {count(whole)} tokens",
                )
        with screen.bar("measuring"):
            forecasts, said = timed.measured(job, self.budget, start)
        if job.state.world.size == 1:
            say("needs", needs(*forecasts))
        for note in (said, foreseen.split_note(job)):
            if note:
                say("note", note)
        begins = time.monotonic()
        with screen.bar("step", timed=False) as update:
            report = job.run(watch(update, job.base.spec.unit))
        conclude(job, report, self.model, time.monotonic() - begins)
        if self.json:
            screen.emit(report.as_dict())
        return 130 if report.interrupted and not job.bounds.ended_by_time else int(report.diverged)

    def _run_all(self, base: Base, sources: Sequence[Any], asked: RunSpec, world: World) -> int:
        """Many runs at once."""
        over = swept(self.sweep, asked.method)
        with screen.bar("preparing") as update:
            runs = sweeps.prepare(base, sources, over, asked, world=world, doing=screen.doing(update))
        for job in [*{job.about.source: job for job in runs.jobs.values()}.values()][:MOST_SOURCES]:
            announce_rows(job)
        words.announce(runs, over)
        with screen.bar("step") as update:
            found = runs.run(table.watch(update, runs.jobs))
        print(table.lines(found))
        words.conclude(runs, found)
        if self.json:
            screen.emit(table.as_dict(found))
        return 130 if found.interrupted else 0

    def _begun(self, base: Base) -> dict[str, Any]:
        """What `inlay train --resume` needs to do the same from anywhere."""
        values = to_mapping(self) | {"dtype": str(base.dtype).removeprefix("torch.")}
        for name in ("data", "eval_data"):
            values[name] = values[name] and sources.absolute(values[name])
        for name in ("model", "output", "from"):
            if values[name] is not None and (name == "output" or os.path.exists(values[name])):
                values[name] = os.path.abspath(values[name])
        values["each"] = [os.path.abspath(path) if os.path.exists(path) else path for path in self.each]
        return {name: value for name, value in values.items() if name not in OF_THE_MOMENT}

    def _method(self) -> Method | None:
        """The method that was asked for; None where it is that of the adapter to go on from."""
        method: Method = getattr(self, METHOD_FIELD)
        if self.from_adapter is None:
            return method
        going_on.check_method(self.from_adapter, formats.outline(self.from_adapter).method, method)
        return None

    def _show_tokens(self, base: Base, data: str, num_virtual: int) -> int:
        purpose.check_continues(base.spec, f"--show-tokens {self.show_tokens}")
        rows, notes = run_rows.first_rows(base, data, self.show_tokens, self.eval_data, self.settings, num_virtual)
        for note in notes:
            say("data" if note == notes[0] else "", note)
        for i, example in enumerate(rows):
            print(f"row {i} ({len(example.input_ids)} tokens, {example.num_trained} trained on)")
            print("  " + show(base.tokenizer, example))
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume(Common):
    """A run that was stopped goes on as it was begun, to the bytes that it would have come to."""

    resume: Path
    """The directory that the run was to write."""

    time: Annotated[str | None, Mark(metavar="TIME")] = None
    """As much time from here on; without it, what is left of the time that it was begun with."""

    def run(self) -> int:
        """Do what the run's own command does, from where it was stopped."""
        values = saves.begun(self.resume)
        train = build(Train, values)
        has = train.time if self.time is None else timed.in_all(train.output, self.time)
        code: int = dataclasses.replace(train, resume=self.resume, time=has, json=self.json, debug=self.debug).run()
        return code


MOST_SOURCES = 8
"""Of as many files of `--each` the rows are described."""

OF_THE_MOMENT = ("json", "debug", "verbose", "show_tokens", "config", "resume")
"""What says nothing of a run."""


def command(values: dict[str, Any]) -> Any:
    """What does as it is asked: with --resume nothing else is."""
    return Resume if "resume" in values else Train


Command = Train
