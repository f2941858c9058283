"""Training from Python: one call, every setting under its own name."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Literal

from inlay import screen
from inlay.base.base import Base
from inlay.data.sources import Source
from inlay.distributed.group import joined
from inlay.gate.findings import Check
from inlay.methods.contract import Method
from inlay.planning import timed
from inlay.process import keep_few_products
from inlay.report import watch
from inlay.report.outcome import Report
from inlay.runs import budget, recording, trackers
from inlay.runs.budget import Budget
from inlay.runs.progress import Progress
from inlay.training.job import prepare
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings


def train(
    base: Base,
    source: Source,
    *,
    method: Method | str | None = None,
    output: str | Path,
    eval_data: Source | None = None,
    from_adapter: str | Path | None = None,
    resume: bool = False,
    check: Check = "warn",
    progress: bool | None = None,
    on_step: Callable[[Progress], object] | None = None,
    memory: str | None = None,
    time: str | None = None,
    disk: str | None = None,
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
) -> Report:
    """Train an adapter on rows, write it to a directory, and leave it attached and active.

    **Arguments:**

    - `base`: what `inlay.load` gave.
    - `source`, `eval_data`: rows of the task that the base was loaded for: a path, a name on the hub, a list of
      dictionaries, a `datasets.Dataset` or a `pandas.DataFrame`; see `inlay.data.sources.read`.
    - `method`: how to adapt, as a method or by its name; lora, or that of `from_adapter`, unless given.
    - `output`: the directory that will hold the adapter; it must not exist. Its last part is the adapter's name.
    - `from_adapter`: an adapter of this base that the training goes on from.
    - `resume`: go on with this same run where it was stopped; with none that was, it begins.
    - `check`: what is odd in the rows is counted ("warn"), refused ("error") or not looked for ("off"); see
      `docs/guides/check.md`.
    - `progress`: show what is being done on stderr, or as a bar under the cell; where somebody watches, in a terminal or a
      notebook, unless given.
    - `on_step`: called after every step, and its evaluation, with where the run stands. What it raises ends the run, and is
      raised again once what was learned is written.
    - `memory`, `time`, `disk`: what the run may take, such as "6GB", "2h" and "20GB"; see `docs/guides/fit.md`. It is measured
      before its first step then, keeps to them, and is refused where it can't.
    - all others: the fields of `inlay.Settings`, where each is described.

    **Returns:** what the run did; losses in nats per supervised token, times in seconds, memory in bytes.

    **Raises:**

    - `ConfigError`: a setting is out of its range, or the method does not fit the model or the task.
    - `DataError`, `FormatError`, `UnknownNameError`: the data is missing, malformed, or leaves nothing to train on.
    - `TargetError`, `CompatibilityError`: the method finds no layers, or `from_adapter` is not of this base.
    - `OutputError`: the output exists, or the disk is full; what was learned is kept elsewhere, and the message says where.
    - `DivergedError`: the loss is not finite any more. `CapacityError`: there is not enough memory.
    - `WorkerError`: under torchrun, one of the processes that share the run was lost.
    """
    asked, began = RunSpec.among(locals()), monotonic()
    bounds = budget.read(memory, time, disk, "{}=".format)
    keep_few_products()
    shown = screen.is_watched() if progress is None else progress
    shows = screen.bar("step", shown=shown, timed=False)
    with joined() as world, recording.recording("train"), shows as update:
        asked = dataclasses.replace(asked, resume=resume or world.restarted)
        job = prepare(base, source, asked, world=world, doing=screen.doing(update))
        if bounds != Budget() and (said := timed.measured(job, bounds, began)[1]):
            warnings.warn(said, stacklevel=2)
        listeners = [watch.watch(update, base.spec.unit)] if shown else []
        return job.run(watch.each([*listeners, *([] if on_step is None else [watch.each_step(on_step)])]))
