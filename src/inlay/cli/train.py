"""Train an adapter on a file of examples."""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from inlay import formats, methods, screen, tasks
from inlay.base.base import Base
from inlay.cli._findings import say_findings
from inlay.cli.plan import needs, planned, say_choice
from inlay.data import sources
from inlay.data.split import MIN_ROWS_TO_HOLD_OUT
from inlay.errors import ConfigError, explain
from inlay.gate.findings import Check
from inlay.gguf.opening import open_base
from inlay.io.fingerprint import short
from inlay.kernels import native
from inlay.methods.contract import Method
from inlay.options import purpose
from inlay.options.flags import Budgeted, Common, Data, OnBase, Verbose, repeated
from inlay.options.parse import METHOD_FIELD, from_mapping, given, to_mapping, value_of, with_method
from inlay.options.swept import swept
from inlay.options.types import one_of
from inlay.planning import foreseen
from inlay.report import recorded
from inlay.report.watch import watch
from inlay.runs import overfitting, recording
from inlay.runs.budget import Budget
from inlay.screen import count, say, size
from inlay.sweeps import sweep as sweeps
from inlay.sweeps import table, words
from inlay.tasks.causal_lm import unpacked_because
from inlay.tasks.contract import DEFAULT_TASK
from inlay.text.mask import show
from inlay.training import going_on, saves
from inlay.training import job as jobs
from inlay.training import rows as run_rows
from inlay.training.keep import PICTURE
from inlay.training.settings import Settings
from inlay.training.state import MIN_ROWS_TO_CHOOSE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(OnBase, Budgeted):
    """Everything but the method's own flags."""

    data: Data
    """The rows: a JSONL, JSON, CSV or Parquet file, a folder of them, or a data set on the hub; several of these, drawn by
    weight, as a.jsonl:3,b.jsonl:1."""

    output: Path
    """The directory that will hold the adapter; it must not exist."""

    task: Annotated[str, one_of(tasks.names())] = DEFAULT_TASK
    """What to learn."""

    method: Annotated[str, one_of(methods.names())] = "lora"
    """How to adapt."""

    from_adapter: Annotated[str | None, tyro.conf.arg(name="from", metavar="ADAPTER")] = None
    """Go on from this adapter, a directory or name@version, with its method; without it, a new one starts."""

    eval_data: str | None = None
    """Held-out rows; without it, a part of the data is held out."""

    sweep: repeated(str) = ()  # type: ignore[valid-type]  # an annotation built by a function
    """Train all combinations at once on one base, each into a directory of its own: NAME=VALUE,VALUE of any setting, field of
    the method, or the method."""

    each: tuple[str, ...] = ()
    """Files of rows in place of DATA, each with adapters of its own, all trained at once."""

    resume: Path | None = None
    """Go on with the run that was to write this directory and was stopped; every setting is as it began."""

    config: Path | None = None
    """A YAML file with any of these settings; flags win over it."""

    show_tokens: int = 0
    """Print this many rows with the trained tokens marked, and stop."""

    check: Check = "warn"
    """What is odd in the rows is counted, refused (error) or not looked for (off); what can't be trained on is refused
    always."""

    verbose: Verbose = False
    """Say which way the rows take through the model, and why."""

    settings: Settings
    """How to train."""

    def run(self) -> int:
        """Prepare, say what will happen, train, say what happened."""
        start, bounds = time.monotonic(), self.budget
        if (self.sweep or self.each) and bounds != Budget():
            wrong, do = "a budget is of one run, and these are many", "leave it out: inlay plan says what one takes"
            raise ConfigError(explain(wrong, found="--memory, --time or --disk with --sweep or --each", do=do))
        if (self.memory or self.disk) and self.resume is None and not self.show_tokens:
            return self._within(bounds)._run(start, bounds)
        return self._run(start, bounds)

    def _within(self, bounds: Budget) -> "Train":
        """The same, run in the way that keeps to these bounds; it says which that is."""
        with screen.bar("planning") as update:
            found = planned(self, getattr(self, METHOD_FIELD), lambda what, done, total: update(done, total, what))[1]
        say_choice(found)
        settings = dataclasses.replace(self.settings, micro_batch_tokens=found.way.micro_batch_tokens)
        return dataclasses.replace(self, quantize=found.way.quantize, settings=settings)

    def _run(self, start: float, bounds: Budget) -> int:
        with screen.bar("loading"):
            data = sweeps.sources_of(self.data or None, self.each)[0]
            chosen = purpose.choose(tasks.find(self.task), open_base(self.model), data, self.from_adapter)
            base = self.load(chosen)
        say("base", f"{base.describe()} · {base.fingerprint}")
        method = self._method()
        if self.show_tokens:
            return self._show_tokens(base, data, getattr(method, "num_virtual_tokens", 0))
        how: dict[str, Any] = dict(
            method=method,
            output=self.output,
            eval_data=self.eval_data,
            from_adapter=self.from_adapter,
            settings=self.settings,
            resume=self.resume is not None,
            begun=self._begun(base),
            check=self.check,
        )
        if self.sweep or self.each:
            return self._run_all(base, [chosen.data or data, *self.each[1:]], how)
        recording.note(base=base.about_base["base"], data={"source": self.data})
        with screen.bar("preparing") as update:
            how["doing"] = lambda what, done, total: update(done, total, what)
            job = jobs.prepare(base, chosen.data or data, **how)
        announce(job)
        if job.resumed is not None:
            say("resumed", f"after {job.resumed.step} of {job.state.plan.num_steps} steps")
            for difference in job.resumed.differs:
                say("note", f"the end may differ in its last bits from an unbroken run: {difference}")
        if self.verbose:
            say("path", path(base))
            say("kernels", kernels())
        with screen.bar("measuring"):
            deadline = None if bounds.seconds is None else start + bounds.seconds
            forecasts = foreseen.measured(job, bounds, deadline)
        say("needs", needs(*forecasts))
        for note in foreseen.notes(job, deadline):
            say("note", note)
        with screen.bar("step", timed=False) as update:
            report = job.run(watch(update, base.spec.unit))
        _conclude(job, report, self.model)
        if self.json:
            screen.emit(report.as_dict())
        return 130 if report.interrupted and not job.bounds.ended_by_time else int(report.diverged)

    def _run_all(self, base: Base, sources: Sequence[Any], how: dict[str, Any]) -> int:
        """Many runs at once."""
        over = swept(self.sweep, how["method"])
        with screen.bar("preparing") as update:
            doing = lambda what, done, total: update(done, total, what)  # noqa: E731
            runs = sweeps.prepare(base, sources, over=over, **how, doing=doing)
        for job in [*{job.source: job for job in runs.jobs.values()}.values()][:MOST_SOURCES]:
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

    def run(self) -> int:
        """Do what the run's own command does, from where it was stopped."""
        values = saves.begun(self.resume)
        train = from_mapping(with_method(Train, values), values)
        code: int = dataclasses.replace(train, resume=self.resume, json=self.json, debug=self.debug).run()
        return code


MOST_SOURCES = 8
"""Of as many files of `--each` the rows are described."""

OF_THE_MOMENT = ("json", "debug", "verbose", "show_tokens", "config", "resume")
"""What says nothing of a run."""


def command(arguments: Sequence[str]) -> Any:
    """The command with the flags of the method that the arguments, or their configuration file, name.

    With --show-tokens nothing is written, so that --output need not be given; with --each no DATA; with --resume nothing else.
    """
    if value_of("--resume", arguments) is not None:
        return Resume
    values = given(arguments)
    cls = with_method(Train, values)
    absent: list[tuple[str, Any, Any]] = []
    if str(values.get("show_tokens") or 0) != "0":
        absent.append(("output", Path, dataclasses.field(default=Path())))
    if values.get("each") or value_of("--each", arguments) is not None:
        absent.append(("data", Data, dataclasses.field(default="")))
    if not absent:
        return cls
    return dataclasses.make_dataclass(cls.__name__, absent, bases=(cls,), frozen=True, kw_only=True)


def announce_rows(job: jobs.Job) -> None:
    """The lines on what a run learns from."""
    train, base = job.train, job.base
    template = "the tokenizer's" if base.tokenizer.chat_template else "plain (the tokenizer has none)"
    is_causal, unit = base.spec.continues, base.spec.unit
    form = "" if train.form == "text" or not is_causal else f" · template: {template}"
    say("data", f"{job.source} · {train.num_rows:,} rows of {train.form}{form}")
    trained_on = f"{count(train.num_trained)} of them" if is_causal else f"{count(train.num_trained)} {unit}s"
    say("", f"{count(train.num_tokens)} tokens, {trained_on} trained on{_left_out(job)}")
    for note in [*job.notes, *train.notes, *([f"{train.advice} of the rows"] if train.advice else [])]:
        say("", note)
    say_findings(job.findings)
    if not is_causal:
        say("task", purpose.describe(base))
    say("held out", _held_out(job))


def announce(job: jobs.Job) -> None:
    """The lines that stand before a run: what it learns from, what it trains, how long."""
    announce_rows(job)
    train, is_causal = job.train, job.base.spec.continues
    say("adapter", describe(job))
    say("steps", str(job.state.plan))
    num_weights = job.state.adapter.num_weights
    if is_causal and train.num_trained > num_weights and hasattr(job.state.method, "r"):
        say(
            "note",
            f"{count(train.num_trained)} trained tokens are more than the adapter's {count(num_weights)} weights: "
            "a higher --r may learn more",
        )


def path(base: Base) -> str:
    """The way that rows take through this base."""
    if not base.spec.continues:
        return f"rows padded, with a mask: the task is {base.task}"
    reason = unpacked_because(base)
    if reason is None:
        return "rows packed, each attending to itself alone; only trained tokens reach the output head"
    return f"rows padded, all through the whole model: {reason}"


def kernels() -> str:
    """What does the work between the matrix products, and with quantised weights."""
    reason = native.why_not()
    if reason is not None:
        return f"torch's own: {reason}"
    attention = "compiled" if native.multiplies_bfloat16() else "torch's: this processor does not multiply bfloat16"
    return f"compiled, {native.variant()} · attention in bfloat16 {attention}"


def describe(job: jobs.Job) -> str:
    """The adapter of a run in one line."""
    adapter = job.state.adapter
    paths = [path for path in adapter.params if path]
    what = "linear layers" if all(path in job.base.linears for path in paths) else "layers"
    return (
        f"{methods.name_of(adapter.method)} {adapter.method.describe()}{f' on {len(paths)} {what}' if paths else ''} · "
        f"{count(adapter.num_weights)} weights ({100 * adapter.num_weights / job.base.num_weights:.1f} %) · "
        f"{size(4 * adapter.num_weights)}"
    )


def _left_out(job: jobs.Job) -> str:
    train = job.train
    parts = []
    if train.num_dropped:
        parts.append(f"{train.num_dropped:,} rows longer than {train.max_length:,} left out")
    if train.num_windowed:
        parts.append(f"{train.num_windowed:,} rows longer than {train.max_length:,} cut into windows")
    return "".join(f" · {part}" for part in parts)


def _held_out(job: jobs.Job) -> str:
    if job.held_out is None:
        reason = "too few rows" if job.train.num_rows < MIN_ROWS_TO_HOLD_OUT else "all rows say the same"
        return f"nothing: {reason if job.state.settings.eval_fraction else 'as asked'}; --eval-data FILE names some"
    total = len(job.held_out.examples)
    if not total:
        return f"nothing: its {job.held_out.num_rows:,} rows are longer than {job.held_out.max_length:,} tokens"
    some = f", {len(job.evaluated)} of them evaluated" if len(job.evaluated) < total else ""
    every = f"every {job.state.plan.eval_every} steps" if job.state.plan.eval_every > 1 else "every step"
    few = len(job.evaluated) < MIN_ROWS_TO_CHOOSE
    kept = "the last adapter is kept, as so few can't tell which is best" if few else "the best adapter is kept"
    return f"{total:,} rows{some}, {every}; {kept}"


def _conclude(job: jobs.Job, report: jobs.Report, model: str) -> None:
    unit = job.base.spec.unit
    done = f"after {report.steps} of {job.state.plan.num_steps} steps"
    if report.diverged:
        say("diverged", f"{done}; the adapter of step {report.best_step}, before that, is kept")
    if report.interrupted and report.best_step == report.steps:
        say(
            "time is up" if job.bounds.ended_by_time else "stopped",
            f"{done}; what was learned so far is kept" + ("" if report.eval_loss is not None else ", not evaluated"),
        )
    elif report.interrupted:
        was = f"what was learned so far is kept as it was at step {report.best_step}"
        say("stopped", f"{done}; {was}: later steps were worse on the held-out rows")
    if report.stopped_early:
        say("stopped", f"{done}: the held-out loss got no better in {job.state.settings.patience} evaluations")
    if report.eval_loss_before is not None and report.eval_loss is not None:
        best = "" if report.best_step == report.steps else f" (best at step {report.best_step})"
        say("held-out", f"loss {report.eval_loss_before:.3f} → {report.eval_loss:.3f} nats per {unit}{best}")
        if report.scores:
            say("scores", f"{purpose.in_words(report.scores)} on the held-out rows")
        if report.best_step == 0:
            say("note", "no step was better on the held-out rows than the base itself: the adapter changes nothing")
    else:
        say("loss", f"{report.loss:.3f} nats per {unit} at the last step")
    drawn = f", {PICTURE}" if (Path(report.output) / PICTURE).exists() else ""
    say(
        "wrote",
        f"{report.output}/  (adapter {size(report.adapter_bytes)}, base {short(report.base_fingerprint)}{drawn})",
    )
    say(
        "took",
        f"{report.seconds:.0f} s · {report.tokens_per_second:,.0f} tokens/s, prompts included · "
        f"{size(report.peak_rss_bytes)} at most",
    )
    if job.bounds.watch is not None and job.bounds.watch.num_splits:
        say("note", f"{job.bounds.watch.num_splits:,} micro-batches were split, so that the memory held them")
    if said := overfitting.note(job.state.progress):
        say("note", said)
    if recorded.page(job.output).exists():
        say("report", os.path.relpath(recorded.page(job.output)))
    if report.interrupted:
        say("go on", f"inlay train --resume {report.output}")
    say("try it", _try_it(job.base, model, str(report.output)))


def _try_it(base: Base, model: str, adapter: str) -> str:
    """A command that uses the adapter on something new."""
    if base.spec.continues:
        return f"inlay chat {model} --adapter {adapter}"
    return f"echo '{base.spec.typed}' | inlay predict {model} - --adapter {adapter}"
