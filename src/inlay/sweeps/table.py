"""What many runs came to, side by side: a table, the numbers, the curves; and what the screen says while they go on."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inlay import screen
from inlay.io import output, records
from inlay.picture import figure
from inlay.report.curve import running_mean
from inlay.report.outcome import Report
from inlay.runs.progress import Progress
from inlay.screen import count
from inlay.sweeps.variants import label
from inlay.training import keep
from inlay.training.job import Job

TABLE, RESULTS, PICTURE = "sweep.md", "sweep.json", "sweep.png"

MOST_NAMED = 10
"""With more runs than these a picture names the best alone."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What many runs at once have come to."""

    reports: dict[str, Report]
    """By the name of each run that has written an adapter."""
    reasons: dict[str, str]
    """By name, why the other runs have none."""
    best: dict[str, str]
    """By the name of the data, the run of the lowest held-out loss; none where nothing was held out."""
    swept: dict[str, dict[str, Any]]
    """By name, what each run has of what is swept."""
    seconds: float
    peak_rss_bytes: int
    output: str
    interrupted: bool
    """A run was stopped before its last step."""
    apart: str = ""
    """Why each run had passes of its own; empty where they were shared."""


def write(directory: Path, found: Sweep) -> None:
    """Write the table, the numbers and the picture into the directory of the runs."""
    output.write_file(directory / TABLE, (lines(found) + "\n").encode("utf-8", "backslashreplace"))
    output.write_file(directory / RESULTS, json.dumps(as_dict(found), indent=1).encode())
    with keep.beside("the picture was not drawn"):
        output.write_file(directory / PICTURE, drawn(directory, found))


def as_dict(found: Sweep) -> dict[str, Any]:
    """The same as JSON can hold it."""
    swept = {name: {key: label(value) for key, value in own.items()} for name, own in found.swept.items()}
    reports = {name: report.as_dict() for name, report in found.reports.items()}
    others = ("reasons", "best", "seconds", "peak_rss_bytes", "output", "apart", "interrupted")
    return {"runs": reports, "swept": swept, **{key: getattr(found, key) for key in others}}


def lines(found: Sweep) -> str:
    """The runs as a table in Markdown, the best ones marked."""
    keys = [*dict.fromkeys(key for own in found.swept.values() for key in own)]
    heads = ["run", *(key.replace("_", "-") for key in keys), "steps", "held-out loss", "best step", "last loss"]
    heads += ["trained weights", ""]
    made = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, own in found.swept.items():
        values = [label(own[key]) for key in keys]
        made.append("| " + " | ".join([name, *values, *_cells(found, name)]) + " |")
    return "\n".join(made)


def _cells(found: Sweep, name: str) -> list[str]:
    report = found.reports.get(name)
    if report is None:
        return ["", "", "", "", "", found.reasons.get(name, "")]
    notes = [text for text in ("diverged", "interrupted") if getattr(report, text)]
    notes += ["**best**"] * (name in found.best.values())
    loss = "" if report.eval_loss is None else f"{report.eval_loss:.4f}"
    step = str(report.best_step)
    return [str(report.steps), loss, step, f"{report.loss:.4f}", count(report.trainable_parameters), ", ".join(notes)]


def drawn(directory: Path, found: Sweep) -> bytes:
    """A PNG: the loss of every run, and its held-out loss where rows were held out."""
    curves = {name: records.read(directory / name)["training"] for name in found.reports}
    held_out = any(curve["eval_losses"] for curve in curves.values())
    best, named = set(found.best.values()), len(curves) <= MOST_NAMED
    with figure(11 if held_out else 6, 5) as (made, png):
        left, *right = made.subplots(1, 1 + held_out, squeeze=False)[0]
        for name, curve in curves.items():
            is_best = name in best
            style: dict[str, Any] = {"linewidth": 2.5 if is_best else 1, "zorder": 2 + is_best}
            style |= {"label": name if named or is_best else None} | ({} if named or is_best else {"color": "0.75"})
            left.plot(range(1, len(curve["losses"]) + 1), running_mean(curve["losses"]), **style)
            for axes in right:
                evaluated = [*zip(*curve["eval_losses"], strict=True)] or [(), ()]
                axes.plot(*evaluated, "o-", markersize=3, **style)
        left.set_ylabel("nats per target, running mean of the steps")
        for axes in right:
            axes.set_ylabel("held-out loss, nats per target")
        for axes in (left, *right):
            axes.set_xlabel("step")
        (right or [left])[-1].legend(frameon=False, fontsize="small")
    return png.getvalue()


def watch(update: Callable[..., None], jobs: Mapping[str, Job]) -> Callable[[str, Progress], None]:
    """A listener that moves the bar, and says a line for each run that comes to its last step."""
    total = sum(job.state.plan.num_steps for job in jobs.values())
    steps, ended = {name: job.state.progress.step for name, job in jobs.items()}, set[str]()

    def listen(name: str, progress: Progress) -> None:
        steps[name] = progress.step
        going = [job.state.progress.losses[-1] for job in jobs.values() if job.state.progress.losses]
        losses = f"loss {min(going):.3f} to {max(going):.3f}" if going else ""
        shown = [f"{len(jobs)} runs", losses, progress.doing]
        update(sum(steps.values()), total, "  ".join(part for part in shown if part))
        if progress.step == progress.num_steps and not progress.doing and name not in ended:
            ended.add(name)
            screen.say("run", f"{name}  {_said(progress)}")

    return listen


def _said(progress: Progress) -> str:
    text = f"{progress.step} steps, loss {progress.losses[-1]:.3f}"
    if progress.eval_losses:
        step, lowest = min(progress.eval_losses, key=lambda pair: pair[1])
        text += f", held-out {progress.eval_losses[0][1]:.3f} → {lowest:.3f} (step {step})"
    return text
