"""What the screen says of many runs at once: before them and after them."""

from collections.abc import Mapping, Sequence
from typing import Any

from inlay.screen import count, say, size
from inlay.sweeps import table
from inlay.sweeps.sweep import Runs
from inlay.sweeps.table import Sweep
from inlay.sweeps.variants import label
from inlay.training.state import MIN_ROWS_TO_CHOOSE

MOST_LISTED = 32
"""As many runs are listed before they begin."""


def announce(runs: Runs, sweep: Mapping[str, Sequence[Any]]) -> None:
    """The lines that stand before the runs."""
    parts = [f"{key.replace('_', '-')} {', '.join(map(label, values))}" for key, values in sweep.items()]
    num_files = len({job.about.source for job in runs.jobs.values()})
    parts += [f"{num_files} files of rows"] * (num_files > 1)
    say("sweep", f"{len(runs.variants)} runs at once: {' × '.join(parts)}")
    for name in runs.finished:
        say("", f"{name}: finished before")
    for name, job in [*runs.jobs.items()][:MOST_LISTED]:
        after = "" if job.resumed is None else f" · after {job.resumed.step} of them"
        say("", f"{name}: {count(job.state.adapter.num_weights)} weights · {job.state.plan}{after}")
    if len(runs.jobs) > MOST_LISTED:
        say("", f"and {len(runs.jobs) - MOST_LISTED} more")


def conclude(runs: Runs, found: Sweep) -> None:
    """The lines that stand after the runs."""
    if found.apart:
        say("note", f"each run had passes of its own: {found.apart}")
    for data, name in found.best.items():
        report = found.reports[name]
        of = f" on {data}" if len(found.best) > 1 else ""
        before = "" if report.eval_loss_before is None else f"{report.eval_loss_before:.3f} → "
        say("best", f"{name}{of}: held-out loss {before}{report.eval_loss:.3f} nats per {runs.base.spec.unit}")
    few = [len(job.evaluated) for job in runs.jobs.values() if 0 < len(job.evaluated) < MIN_ROWS_TO_CHOOSE]
    if found.best and few:
        say("note", f"{min(few)} held-out rows can't tell which is best: --eval-data FILE names more")
    elif not found.best:
        say("note", "nothing was held out, so that no run is named best: --eval-data FILE names some rows")
    say("wrote", f"{found.output}/  ({table.TABLE}, {table.RESULTS}, {table.PICTURE}, and an adapter for each run)")
    say("took", f"{found.seconds:.0f} s · {size(found.peak_rss_bytes)} at most")
    if found.interrupted:
        say("go on", f"inlay train --resume {found.output}")
