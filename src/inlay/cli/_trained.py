"""What a run of training says of itself: the rows and settings that it has, and what came of it."""

import os
from collections.abc import Iterator
from pathlib import Path

from inlay import methods
from inlay.base.base import Base
from inlay.cli._findings import say_findings
from inlay.data.split import MIN_ROWS_TO_HOLD_OUT
from inlay.io.fingerprint import short
from inlay.kernels import native
from inlay.options import purpose
from inlay.report import recorded
from inlay.report.outcome import Report
from inlay.runs import overfitting
from inlay.screen import count, say, size
from inlay.tasks.causal_lm import unpacked_because
from inlay.training import job as jobs
from inlay.training.keep import PICTURE, SKETCH
from inlay.training.state import MIN_ROWS_TO_CHOOSE


def announce_rows(job: jobs.Job) -> None:
    """The lines on what a run learns from."""
    train, base = job.rows.train, job.base
    template = "the tokenizer's" if base.tokenizer.chat_template else "plain (the tokenizer has none)"
    is_causal, unit = base.spec.continues, base.spec.unit
    form = "" if train.form == "text" or not is_causal else f" · template: {template}"
    say("data", f"{job.about.source} · {train.num_rows:,} rows of {train.form}{form}")
    trained_on = f"{count(train.num_trained)} of them" if is_causal else f"{count(train.num_trained)} {unit}s"
    say("", f"{count(train.num_tokens)} tokens, {trained_on} trained on{_left_out(job)}")
    for note in [*job.rows.notes, *train.notes, *([f"{train.advice} of the rows"] if train.advice else [])]:
        say("", note)
    say_findings(job.rows.findings)
    if not is_causal:
        say("task", purpose.describe(base))
    say("held out", _held_out(job))


def announce(job: jobs.Job) -> None:
    """The lines that stand before a run: what it learns from, what it trains, how long."""
    announce_rows(job)
    train, is_causal = job.rows.train, job.base.spec.continues
    say("adapter", describe(job))
    say("steps", str(job.state.plan))
    num_weights = job.state.adapter.num_weights
    if is_causal and train.num_trained > num_weights and hasattr(job.state.method, "r"):
        say(
            "note",
            f"{count(train.num_trained)} trained tokens are more than the adapter's {count(num_weights)} weights: "
            "a higher --r may learn more",
        )
    if job.state.world.size > 1:
        say("processes", f"{job.state.world.size}, which share the rows of each step")
    if job.resumed is not None:
        say("resumed", f"after {job.resumed.step} of {job.state.plan.num_steps} steps")
        for difference in job.resumed.differs:
            say("note", f"the end may differ in its last bits from an unbroken run: {difference}")


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
    train, parts = job.rows.train, []
    if train.num_dropped:
        parts.append(f"{train.num_dropped:,} rows longer than {train.max_length:,} left out")
    if train.num_windowed:
        parts.append(f"{train.num_windowed:,} rows longer than {train.max_length:,} cut into windows")
    return "".join(f" · {part}" for part in parts)


def _held_out(job: jobs.Job) -> str:
    held_out = job.rows.held_out
    if held_out is None:
        reason = "too few rows" if job.rows.train.num_rows < MIN_ROWS_TO_HOLD_OUT else "all rows say the same"
        return f"nothing: {reason if job.state.settings.eval_fraction else 'as asked'}; --eval-data FILE names some"
    total = len(held_out.examples)
    if not total:
        return f"nothing: its {held_out.num_rows:,} rows are longer than {held_out.max_length:,} tokens"
    some = f", {len(job.evaluated)} of them evaluated" if len(job.evaluated) < total else ""
    every = f"every {job.state.plan.eval_every} steps" if job.state.plan.eval_every > 1 else "every step"
    few = len(job.evaluated) < MIN_ROWS_TO_CHOOSE
    kept = "the last adapter is kept, as so few can't tell which is best" if few else "the best adapter is kept"
    return f"{total:,} rows{some}, {every}; {kept}"


def conclude(job: jobs.Job, report: Report, model: str, seconds: float) -> None:
    """The lines that stand after a run: how it ended, what it learned, where that is, and what to do with it.

    `seconds` is what it took with all that followed its adapter.
    """
    lines = [*_ended(job, report), *_learned(job, report), *_left_behind(job, report, seconds - report.seconds)]
    if report.interrupted:
        lines.append(("go on", f"inlay train --resume {report.output}"))
    for label, text in [*lines, ("try it", _try_it(job.base, model, str(report.output)))]:
        say(label, text)


def _ended(job: jobs.Job, report: Report) -> Iterator[tuple[str, str]]:
    """Why a run made fewer steps than it was to make."""
    done = f"after {report.steps} of {job.state.plan.num_steps} steps"
    if report.diverged:
        yield "diverged", f"{done}; the adapter of step {report.best_step}, before that, is kept"
    if report.interrupted and report.best_step == report.steps:
        label = "time is up" if job.bounds.ended_by_time else "stopped"
        evaluated = "" if report.eval_loss is not None else ", not evaluated"
        yield label, f"{done}; what was learned so far is kept{evaluated}"
    elif report.interrupted:
        was = f"what was learned so far is kept as it was at step {report.best_step}"
        yield "stopped", f"{done}; {was}: later steps were worse on the held-out rows"
    if report.stopped_early:
        yield "stopped", f"{done}: the held-out loss got no better in {job.state.settings.patience} evaluations"


def _learned(job: jobs.Job, report: Report) -> Iterator[tuple[str, str]]:
    unit = job.base.spec.unit
    if report.eval_loss_before is None or report.eval_loss is None:
        yield "loss", f"{report.loss:.3f} nats per {unit} at the last step"
        return
    best = "" if report.best_step == report.steps else f" (best at step {report.best_step})"
    yield "held-out", f"loss {report.eval_loss_before:.3f} → {report.eval_loss:.3f} nats per {unit}{best}"
    if report.scores:
        yield "scores", f"{purpose.in_words(report.scores)} on the held-out rows"
    if report.best_step == 0:
        yield "note", "no step was better on the held-out rows than the base itself: the adapter changes nothing"


def _left_behind(job: jobs.Job, report: Report, after: float) -> Iterator[tuple[str, str]]:
    """What a run has written, what it took, and what there is to say of that."""
    drawn = next((f", {name}" for name in (PICTURE, SKETCH) if (Path(report.output) / name).exists()), "")
    written = f"adapter {size(report.adapter_bytes)}, base {short(report.base_fingerprint)}{drawn}"
    yield "wrote", f"{report.output}/  ({written})"
    rate = f"{report.tokens_per_second:,.0f} tokens/s, prompts included"
    end = f", then {after:.0f} s for scores, answers and the page" if after >= 1 else ""
    yield "took", f"{report.seconds:.0f} s{end} · {rate} · {size(report.peak_rss_bytes)} at most"
    if job.bounds.watch is not None and job.bounds.watch.num_splits:
        yield "note", f"{job.bounds.watch.num_splits:,} micro-batches were split, so that the memory held them"
    if said := overfitting.note(job.state.progress):
        yield "note", said
    if recorded.page(job.output).exists():
        yield "report", os.path.relpath(recorded.page(job.output))


def _try_it(base: Base, model: str, adapter: str) -> str:
    """A command that uses the adapter on something new."""
    if base.spec.continues:
        return f"inlay chat {model} --adapter {adapter}"
    return f"echo '{base.spec.typed}' | inlay predict {model} - --adapter {adapter}"
