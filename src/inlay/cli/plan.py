"""Say what a run will take, before any weight is read."""

import contextlib
import dataclasses
import math
import os
from typing import Annotated, Any

from inlay import methods, screen, tasks
from inlay.base import meta_model
from inlay.base.base import Base
from inlay.base.checks import chosen_device
from inlay.base.load import default_dtype
from inlay.cli.inspect import modules
from inlay.core.product import DTYPES
from inlay.distributed import cost
from inlay.errors import InlayError
from inlay.gguf.opening import open_base, open_outline
from inlay.io.checkpoint import Checkpoint
from inlay.layout.decoder import decoder_of
from inlay.layout.layout import Layout
from inlay.options import purpose
from inlay.options.flags import Budgeted, OnBase
from inlay.options.parse import METHOD_FIELD
from inlay.options.types import Mark, found_in
from inlay.planning import foreseen, timed
from inlay.planning.outline import outline
from inlay.runs.forecast import Forecast
from inlay.screen import count, say, size
from inlay.tasks.contract import DEFAULT_TASK
from inlay.training.settings import Settings

LATENCY_SECONDS = 1e-4
"""From one machine to the next, in one room."""

BYTES_PER_WEIGHT = 16
"""Of a trained weight in float32: itself, its gradient, and the optimiser's two moments."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(OnBase, Budgeted):
    """The base's configuration and tokenizer are enough. With rows it says what a run over them takes."""

    data: Annotated[str | None, Mark(is_positional=True, metavar="DATA")] = None
    """The rows, as for train; without them, what the adapter alone is."""

    task: Annotated[str, found_in(tasks.TABLE)] = DEFAULT_TASK
    """What to learn."""

    method: Annotated[str, found_in(methods.TABLE)] = "lora"
    """How to adapt."""

    eval_data: str | None = None
    """Held-out rows; without it, a part of the data is held out."""

    nodes: int = 1
    """As many machines like this one share the run, by torchrun; each step's rows are divided among them."""

    gigabits: float = 10.0
    """What travels from one machine to the next in a second."""

    settings: Settings
    """How to train."""

    def run(self) -> int:
        """Count and print."""
        method = getattr(self, METHOD_FIELD)
        if self.data is None:
            return self._alone(method)
        with screen.bar("planning") as update:
            base, found = planned(self, method, screen.doing(update))
        say("base", f"{base.checkpoint.name} · {count(base.num_weights)} weights")
        say("data", f"{self.data} · {found.rows.train.num_rows:,} rows of {found.rows.train.form}")
        say("steps", str(found.plan))
        for label, text in lines(found.forecast, base.spec.unit):
            say(label, text)
        say_choice(found)
        within = self._within(base, found)
        shared = self._shared(found)
        if self.json:
            way = dataclasses.asdict(found.way)
            said = {**found.forecast.as_dict(), "num_steps": within, "method": methods.name_of(method), **way}
            screen.emit(said | ({} if shared is None else {"nodes": dataclasses.asdict(shared)}))
        return 0

    def _within(self, base: Base, found: foreseen.Planned) -> int:
        """How many steps it takes within its time; it says so where they are fewer than all."""
        every, seconds = found.plan.num_steps, self.budget.seconds
        fitting = every if seconds is None else timed.num_steps_within(found, base.model.config, seconds)
        if fitting < every:
            rate = "the learning rate would come to 0 with them"
            say(
                "within",
                f"{self.time}: {fitting:,} of {every:,} steps, as far as can be said before one is measured; {rate}",
            )
        return fitting

    def _shared(self, found: foreseen.Planned) -> cost.Cost | None:
        """What a step takes that several machines share; None where there is one."""
        if self.nodes == 1:
            return None
        rows, forecast = found.plan.batch_size, found.forecast
        alone = forecast.seconds_per_epoch * rows / forecast.num_rows
        link = cost.Link(bytes_per_second=self.gigabits * 1e9 / 8, latency_seconds=LATENCY_SECONDS)
        step = cost.Step(seconds=alone, rows=rows, num_weights=forecast.trainable_parameters)
        shared = step.shared(self.nodes, link)
        whole = duration(forecast.seconds * shared.step_seconds / alone)
        say(
            "nodes",
            f"{self.nodes} over {self.gigabits:g} Gbit/s: a step of {shared.step_seconds:.3g} s in place of {alone:.3g} s, "
            f"about {whole} in all; {size(shared.gradient_bytes)} of gradients a step, "
            f"{100 * shared.efficiency:.0f} % of {self.nodes} times the work",
        )
        return shared

    def _alone(self, method: Any) -> int:
        checkpoint = open_outline(self.model)
        model = meta_model.meta(checkpoint)
        layout = Layout(model, lambda: decoder_of(model, None))
        shapes = layout.wanted(method)
        total, trained = sum(parameter.numel() for parameter in model.parameters()), layout.count(method)
        say("base", f"{checkpoint.name} · {count(total)} weights")
        where = modules(path for path in shapes if path) or "rows"
        say("adapter", f"{methods.name_of(method)} {method.describe()} on {where}")
        say("trained", f"{trained:,} weights ({100 * trained / total:.2g} % of the base)")
        say("file", size(4 * sum(math.prod(shape) for own in shapes.values() for shape in own.values())))
        say("memory", f"{size(BYTES_PER_WEIGHT * trained)} to train them, beside the base and its activations")
        if self.json:
            screen.emit({"trainable_parameters": trained, "base_parameters": total, "method": methods.name_of(method)})
        return 0


def planned(given: Any, method: Any, doing: screen.Doing) -> tuple[Base, foreseen.Planned]:
    """(an outline of its base, the run) of a command with the flags of a `Plan`."""
    checkpoint = _opened(given.model)
    chosen = purpose.choose(tasks.find(given.task), checkpoint, given.data)
    dtype = DTYPES[given.dtype] if given.dtype else default_dtype(checkpoint, chosen_device(given.device))
    base = outline(checkpoint, chosen.spec, chosen.labels, dtype)
    how: dict[str, Any] = {"eval_data": given.eval_data, "quantize": given.quantize, "doing": doing}
    return base, foreseen.planned(base, chosen.data or given.data, method, given.settings, given.budget, **how)


def _opened(model: str) -> Checkpoint:
    """What a base is made of: with the headers of its weights where they lie here, and never more than that."""
    if os.path.exists(os.path.expanduser(model)):
        with contextlib.suppress(InlayError):
            return open_base(model)
    return open_outline(model, whole=True)


def lines(forecast: Forecast, unit: str) -> list[tuple[str, str]]:
    """A forecast as labelled lines."""
    left_out = [
        f"{number:,} rows longer than a row may be {what}"
        for number, what in ((forecast.num_dropped, "left out"), (forecast.num_windowed, "cut into windows"))
        if number
    ]
    targets = f"{count(forecast.supervised_per_epoch)} {'of them' if unit == 'token' else f'{unit}s'} trained on"
    tokens = [f"{count(forecast.tokens_per_epoch)} an epoch", targets, *left_out]
    device = f" · {size(forecast.device_bytes)} of the device" if forecast.device_bytes else ""
    return [
        ("trained", f"{forecast.trainable_parameters:,} weights · file {size(forecast.adapter_bytes)}"),
        ("tokens", " · ".join(tokens)),
        ("memory", f"about {size(forecast.memory_bytes)} at most{device}"),
        ("disk", f"{size(forecast.disk_bytes)} at most"),
        ("time", f"{_about(forecast)}, {duration(forecast.seconds_per_epoch)} an epoch, by {forecast.measured_on}"),
    ]


def needs(first: Forecast, then: Forecast) -> str:
    """What a run needs, as its batches say, and as was foreseen without them."""
    device = f" · {size(then.device_bytes)} of the device" if then.device_bytes else ""
    return (
        f"{size(then.memory_bytes)} memory{device} · {_about(then)} "
        f"(measured on {then.measured_on}; {size(first.memory_bytes)} and {duration(first.seconds)} were foreseen)"
    )


def _about(forecast: Forecast) -> str:
    return f"about {duration(forecast.seconds)}"


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say_choice(found: foreseen.Planned) -> None:
    """What was chosen so that a run keeps to its budget, and what that costs; nothing where it is as it was asked for."""
    if found.forecast is found.asked:
        return
    way, then, asked = found.way, found.forecast, found.asked
    flags = [f"--micro-batch-tokens {way.micro_batch_tokens}"] * (way.micro_batch_tokens is not None)
    flags += ["--recompute"] * way.recompute
    flags += [f"--quantize {way.quantize}"] * (way.quantize is not None)
    say(
        "chosen",
        f"{' '.join(flags)}: about {size(then.memory_bytes)} in place of {size(asked.memory_bytes)}, "
        f"{duration(then.seconds)} in place of {duration(asked.seconds)}; a step still sees {found.plan.batch_size} rows",
    )


Command = Plan
