"""What a run will take: planned over an outline of its base, or prepared, by some of its own batches; and what it keeps to
while it is under way."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from inlay.base.base import Base
from inlay.data.sources import Data, Source
from inlay.errors import CapacityError, explain
from inlay.methods.contract import Method
from inlay.planning import counted
from inlay.planning.outline import outline
from inlay.process import release_freed_blocks, rss_bytes
from inlay.runs import foresee, needs
from inlay.runs import work as run_work
from inlay.runs.bounds import Bounds
from inlay.runs.budget import Budget, Way, above, check_disk, choose
from inlay.runs.forecast import Forecast
from inlay.runs.machine import FREE, room
from inlay.runs.measure import Measured, measure
from inlay.runs.mixing import Part
from inlay.runs.watch import Watch
from inlay.runs.work import Work, part_of, work
from inlay.screen import Doing, size, unheard
from inlay.training import rows as run_rows
from inlay.training import schedule
from inlay.training.attaching import attached
from inlay.training.job import Job
from inlay.training.rows import RunRows
from inlay.training.settings import Plan, Settings, plan


def work_of(
    base: Base,
    plan: Plan,
    settings: Settings,
    examples: Sequence[Any],
    evaluated: Sequence[Any],
    parts: tuple[Part, ...] = (),
) -> Work:
    """What a run sends through the model, which may be an outline; `parts`: those of a mixture."""
    order = schedule.order(len(examples), plan.batch_size, plan.num_steps, settings.seed, parts=parts)
    held: dict[str, Any] = {"evaluated": evaluated, "num_evaluations": plan.num_evaluations if evaluated else 0}
    return work(base, examples, order, plan.num_steps, settings.micro_batch_tokens, **held)


def _work(job: Job) -> Work:
    """What a run sends through the model with its adapter."""
    state = job.state
    with attached(job.base, state.adapter):
        return work_of(job.base, state.plan, state.settings, job.rows.train.examples, job.evaluated, state.parts)


def computed(job: Job) -> tuple[int, int]:
    """(the tokens of the rows of a run's first steps, how many of them go through the model)."""
    base, done = job.base, _work(job)
    return sum(base.spec.num_tokens(part.rows) for part in done.parts), sum(part.tokens for part in done.parts)


def measured(job: Job, budget: Budget, deadline: float | None) -> tuple[Forecast, Forecast]:
    """(what the run was foreseen to take, and will by what its batches took); the run then keeps to its bounds.

    Nothing of the run changes by being measured.

    **Arguments:**

    - `deadline`: when it is to be done, by the clock of `time.monotonic`.

    **Raises:**

    - `CapacityError`: a row of it does not fit into the memory that there is.
    """
    base, state = job.base, job.state
    done = _work(job)
    epochs = state.plan.num_steps * state.plan.batch_size / len(job.rows.train.examples)
    taken = _taken(_outlined(base), state.method, base.scheme, state.settings.recompute)
    release_freed_blocks()
    held = _Held(budget)
    _check_row(job, held, float(rss_bytes()), lambda part: taken(part).heap_bytes)
    program = rss_bytes() - needs.base_bytes(base, base.scheme)  # its pages were read when it was checked
    how: dict[str, Any] = {"epochs": epochs, "scheme": base.scheme, "taken": taken(done.longest), "program": program}
    first = foresee.foresee(base, state.method, job.rows.train, done, **how)
    check_disk(budget, first)
    with attached(base, state.adapter):
        of, recompute = (state.adapter.name, state.generator), state.settings.recompute
        found = measure(base, *of, done, held.left, lambda part: taken(part).heap_bytes, recompute=recompute)
    then = foresee.corrected(first, found, done)
    job.forecast, job.bounds = then, Bounds(_watch(job, found, held, then), deadline)
    return first, then


def split_note(job: Job) -> str:
    """What there is to say of a run that was measured where its micro-batches will be split."""
    forecast, watch = job.forecast, job.bounds.watch
    if forecast is None or watch is None or forecast.memory_bytes <= watch.limit_bytes:
        return ""
    return (
        f"micro-batches will be split where they would hold more than {size(watch.limit_bytes)} ({watch.why}): sums then "
        "differ in their last bits from those of a run with more memory"
    )


class _Held:
    """What this process holds of the memory that it may hold.

    What a control group or `ulimit` leaves is asked for anew each time: pages of files that it has dropped are room by then.
    What other programs take of the machine is not: the run would not be the same twice.
    """

    def __init__(self, budget: Budget):
        left = room()
        self._is_fixed = left.why == FREE
        self.limit_bytes, self.why = rss_bytes() + left.num_bytes, left.why
        self._all = self.limit_bytes
        if budget.memory_bytes is not None and budget.memory_bytes < self.limit_bytes:
            self.limit_bytes, self.why = budget.memory_bytes, "--memory"

    def now(self) -> int:
        """As much does it hold, or is lost to it."""
        return rss_bytes() if self._is_fixed else max(rss_bytes(), self._all - room().num_bytes)

    def left(self) -> int:
        """As much more may it hold."""
        return self.limit_bytes - self.now()


def _outlined(base: Base) -> Base:
    """An outline of a base that is loaded."""
    return outline(base.original or base.checkpoint, base.spec, base.labels, base.dtype, base.tokenizer)


def _taken(base: Base, method: Method, scheme: str | None, recompute: bool) -> Callable[[run_work.Part], needs.Taken]:
    """What micro-batches take with the base of an outline: counted where that can be."""
    made = None
    with contextlib.suppress(Exception):  # any model's code may refuse in any way; it is estimated then
        made = counted.stand_in(base, method, scheme)

    def taken(part: run_work.Part) -> needs.Taken:
        found = None if made is None else counted.counted(made, part.rows, recompute)
        return needs.about(base, part) if found is None else needs.Taken(found.heap_bytes, found.num_products)

    return taken


def _check_row(job: Job, held: _Held, floor: float, taken: Callable[[run_work.Part], float]) -> None:
    """Refuse a run whose longest row does not fit.

    **Arguments:**

    - `floor`: what the process holds beside a micro-batch; `taken`: what one takes.
    """
    base = job.base
    longest = max(job.rows.train.examples, key=lambda row: base.spec.num_tokens([row]))
    needed = floor + taken(part_of(base, [longest]))
    if needed > held.limit_bytes:
        raise CapacityError(
            explain(
                "the longest row of this run does not fit into the memory that there is",
                found=f"about {size(needed)} are needed, {size(held.limit_bytes)} are there ({held.why})",
                do=f"--memory {above(math.ceil(needed))}, a smaller --max-length, or --quantize nf4",
            )
        )


def _watch(job: Job, found: Measured, held: _Held, forecast: Forecast) -> Watch:
    """What keeps the run below its limit, and to its forecast; a row that can't be is refused."""
    base = job.base
    floor = found.floor_bytes + needs.MOMENTS_BYTES_PER_WEIGHT * forecast.trainable_parameters
    _check_row(job, held, floor, lambda part: found.fixed_bytes + found.bytes_per_token * part.tokens)
    return Watch(
        held.limit_bytes,
        held.why,
        floor,
        found.bytes_per_token,
        lambda rows: part_of(base, rows).tokens,
        fixed_bytes=found.fixed_bytes,
        expected_bytes=forecast.memory_bytes,
        held=held.now,
    )


class Planned(NamedTuple):
    """A run that was planned over an outline of its base."""

    rows: RunRows
    plan: Plan
    method: Method
    asked: Forecast
    """What it takes as its settings have it."""
    way: Way
    settings: Settings
    forecast: Forecast
    """The way that keeps to its budget, the settings that make it so, and what it takes then."""


def planned(
    base: Base,
    source: Source | Data[Any],
    method: Method,
    settings: Settings,
    budget: Budget,
    *,
    eval_data: Source | None = None,
    quantize: str | None = None,
    doing: Doing = unheard,
) -> Planned:
    """A run planned over an outline of its base, `inlay.planning.outline`: no weight is read.

    **Arguments:**

    - `quantize`: how the base is to be quantised, where that was asked for.

    **Raises:** what `inlay.training.job.prepare` does for its rows and settings; and

    - `CapacityError`: no way to run it keeps to the budget; the message names the smallest that would.
    """
    virtual = getattr(method, "num_virtual_tokens", 0)
    rows = run_rows.read(base, source, eval_data, settings, virtual, doing, check="off")
    chosen = plan(settings, len(rows.train.examples), base.model.config, method)
    foreseen = _foreseen(base, rows, chosen, method, settings)
    doing("foreseeing what it takes", 0, None)
    is_plain = not (base.checkpoint.packed or base.checkpoint.config.get("quantization_config"))
    asked = Way(quantize, settings.micro_batch_tokens, settings.recompute)
    way, forecast = choose(budget, asked, foreseen, can_quantize=is_plain)
    return Planned(rows, chosen, method, foreseen(asked), way, _over(settings, way), forecast)


def _over(settings: Settings, way: Way) -> Settings:
    return dataclasses.replace(settings, micro_batch_tokens=way.micro_batch_tokens, recompute=way.recompute)


def _foreseen(base: Base, rows: RunRows, plan: Plan, method: Method, settings: Settings) -> Callable[[Way], Forecast]:
    """What each way to run takes; of one that was asked for before it is known."""
    evaluated = rows.evaluated(settings.eval_rows)
    epochs = plan.num_steps * plan.batch_size / len(rows.train.examples)
    taken = functools.cache(functools.partial(_taken, base, method))

    @functools.cache
    def foreseen(way: Way) -> Forecast:
        done = work_of(base, plan, _over(settings, way), rows.train.examples, evaluated, rows.parts)
        program = rss_bytes() + needs.PROGRAM_BYTES
        about = {"scheme": way.quantize, "taken": taken(way.quantize, way.recompute)(done.longest), "program": program}
        return foresee.foresee(base, method, rows.train, done, epochs=epochs, **about)

    return foreseen
