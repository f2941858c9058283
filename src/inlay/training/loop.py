"""The training step and the loop around it.

A step's loss is the sum over all its supervised tokens divided by their number, whatever parts it is computed in:

    loss = sum over parts of cross_entropy_sum(part) / (supervised tokens of the step)

so a batch split in two, or rows of unequal length, give the gradient of the whole batch. The base stays in evaluation mode:
its own dropout is off, the adapter's is on.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inlay.errors import DivergedError, explain
from inlay.io.output import STOPPING
from inlay.model.adapter import Adapter
from inlay.model.attach import Rows
from inlay.model.base import Base
from inlay.training import batch, memory, schedule, tasks
from inlay.training.settings import Plan, Settings


@dataclass
class Progress:
    """Where a run stands; handed to the listener after every step and evaluation."""

    num_steps: int
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Loss per supervised token of every step, in nats."""
    eval_losses: list[tuple[int, float]] = field(default_factory=list)
    """(steps done, held-out loss) of every evaluation, from (0, the base's own)."""
    num_tokens: int = 0
    num_supervised: int = 0
    step_seconds: float = 0.0
    """Time spent in steps alone."""
    best_step: int = 0
    interrupted: bool = False
    """Ctrl-C, or the system, ended the run before its last step."""
    diverged: bool = False
    """The loss became infinite after some evaluation; the adapter is that of the best one."""


class Stepper:
    """The optimiser and the adapter that it moves: one call, one step."""

    def __init__(self, base: Base, adapter: str, settings: Settings, learning_rate: float, num_steps: int = 1):
        self.base = base
        self.task = tasks.of(base)
        self.adapter = adapter
        self.settings = settings
        self.learning_rate = learning_rate
        memory.keep_freed_blocks()
        held = base.get(adapter)
        self.tensors = held.train_()
        self.params = held.params
        self.method = held.method
        self.optimizer = torch.optim.AdamW(
            _groups(held), lr=learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.num_steps, self._done = num_steps, 0
        self._state: dict[str, Any] = {}

    def step(self, examples: Sequence[Any], rate_factor: float = 1.0) -> float:
        """Learn from these rows; returns their loss per supervised token, before the step, in nats.

        **Raises:**

        - `DivergedError`: the loss or the gradient is not finite; the adapter has not been changed.
        """
        total = self.task.num_targets(examples)
        loss_sum = 0.0
        with self.base.using(self.adapter):
            for part in self.task.step_parts(self.base, examples, self.settings.micro_batch_tokens):
                loss = self.task.loss_of(self.base, part)
                (loss / total).backward()
                loss_sum += loss.item()
            penalty = self.method.penalty(self.params)
            if penalty is not None:
                penalty.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.tensors, self.settings.max_grad_norm)
        if not torch.isfinite(norm) or loss_sum != loss_sum:
            raise self._diverged(f"loss {loss_sum / total:.4g}, norm of the gradient {norm.item():.4g}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_factor * group["rate"]
        self.optimizer.step()
        self.method.after_step(self.params, self._done, self.num_steps, self._state)
        self._done += 1
        self.optimizer.zero_grad(set_to_none=True)
        return loss_sum / total

    def check_finite(self) -> None:
        """Refuse tensors that a last step has thrown out of bounds: `step` sees only what they were before.

        **Raises:**

        - `DivergedError`: a tensor holds NaN or infinity.
        """
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors):
            raise self._diverged("the adapter's tensors are not finite")

    def _diverged(self, found: str) -> DivergedError:
        return DivergedError(
            explain("the training diverged", found=found, do=f"--learning-rate {self.learning_rate / 3:.1g}")
        )


@torch.no_grad()
def evaluate(base: Base, rows: Rows, examples: Sequence[Any], max_tokens: int | None = None) -> float:
    """The loss per supervised token of some rows, in nats, with these adapters.

    **Raises:**

    - `DivergedError`: it is not finite.
    """
    task = tasks.of(base)
    with base.using(rows):
        total = sum(task.loss_of(base, part).item() for part in task.parts(base, examples, max_tokens))
    if not math.isfinite(total):
        raise DivergedError(
            explain(
                "the loss is not finite",
                found=f"{total} over {len(examples)} rows with {rows or 'the plain base'}",
                do="fetch base and adapter again: their weights may hold NaN; or --dtype float32",
            )
        )
    return total / task.num_targets(examples)


def run(
    base: Base,
    adapter: str,
    examples: Sequence[Any],
    held_out: Sequence[Any],
    settings: Settings,
    plan: Plan,
    listener: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Train an attached adapter; afterwards it holds the tensors of the best evaluation, or of the last step.

    Ctrl-C, or a request to end, ends the run after the step under way and keeps what was learned; a second one ends it at
    once.

    **Raises:**

    - `DivergedError`: the loss is not finite any more, and no evaluation had been better than the start.
    """
    torch.manual_seed(settings.seed)
    stepper = Stepper(base, adapter, settings, plan.learning_rate, plan.num_steps)
    progress = Progress(plan.num_steps)
    best = _Best(stepper.tensors, not (stepper.method.changes_at_start or base.fresh_heads))
    order = batch.order(len(examples), plan.batch_size, plan.num_steps, settings.seed)
    with _interruptible(progress):
        try:
            for numbers in order:
                if progress.interrupted:
                    break
                _step(stepper, [examples[i] for i in numbers], progress)
                if progress.step == 1:
                    _measure_start(base, held_out, settings, progress, best)
                listener(progress)
                if progress.step % plan.eval_every == 0 or progress.step == plan.num_steps:
                    stepper.check_finite()
                    _evaluate(stepper, held_out, progress, best, listener)
        except DivergedError:
            if not progress.step:  # it may be the base that is at fault, which then says so
                _measure_start(base, held_out, settings, progress, best)
            if not best.step:
                raise
            progress.diverged = True
    if held_out and (best.step or not progress.interrupted):
        best.restore_(stepper.tensors)
        progress.best_step = best.step
    else:
        progress.best_step = progress.step
    base.get(adapter).finish_()
    return progress


def _groups(adapter: Adapter) -> list[dict[str, Any]]:
    """What is trained, by what the method multiplies its learning rate by."""
    groups: dict[float, list[Tensor]] = {}
    for params in adapter.params.values():
        for name, tensor in params.items():
            groups.setdefault(adapter.method.rate(name), []).append(tensor)
    return [{"params": tensors, "rate": rate} for rate, tensors in groups.items() if rate]


class _Best:
    """The tensors of the lowest held-out loss so far; at first those of the start."""

    def __init__(self, tensors: Sequence[Tensor], starts_as_base: bool):
        self.loss = float("inf")
        self.step = 0
        self.starts_as_base = starts_as_base
        self._tensors = [tensor.detach().clone() for tensor in tensors]

    def offer(self, loss: float, step: int, tensors: Sequence[Tensor]) -> None:
        if loss < self.loss:
            self.loss, self.step = loss, step
            for kept, tensor in zip(self._tensors, tensors, strict=True):
                kept.copy_(tensor.detach())

    @torch.no_grad()
    def restore_(self, tensors: Sequence[Tensor]) -> None:
        for kept, tensor in zip(self._tensors, tensors, strict=True):
            tensor.copy_(kept)


def _step(stepper: Stepper, examples: Sequence[Any], progress: Progress) -> None:
    start = time.perf_counter()
    loss = stepper.step(examples, schedule.factor(progress.step, progress.num_steps))
    progress.step_seconds += time.perf_counter() - start
    progress.step += 1
    progress.losses.append(loss)
    progress.num_tokens += stepper.task.num_tokens(examples)
    progress.num_supervised += stepper.task.num_targets(examples)


def _measure_start(base: Base, held_out: Sequence[Any], settings: Settings, progress: Progress, best: _Best) -> None:
    """The held-out loss of the base, where most adapters start: known after the first step, it delays nothing."""
    if held_out:
        loss = evaluate(base, None, held_out, settings.micro_batch_tokens)
        progress.eval_losses.append((0, loss))
        best.loss = loss if best.starts_as_base else best.loss


def _evaluate(
    stepper: Stepper,
    held_out: Sequence[Any],
    progress: Progress,
    best: _Best,
    listener: Callable[[Progress], None],
) -> None:
    if not held_out:
        return
    loss = evaluate(stepper.base, stepper.adapter, held_out, stepper.settings.micro_batch_tokens)
    progress.eval_losses.append((progress.step, loss))
    best.offer(loss, progress.step, stepper.tensors)
    listener(progress)


@contextlib.contextmanager
def _interruptible(progress: Progress) -> Iterator[None]:
    """Turn the first Ctrl-C, or request to end, into a flag, so that no step is cut in half."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}

    def stop(number: int, frame: object) -> None:
        progress.interrupted = True
        signal.signal(number, before[signal.Signals(number)])

    for number in STOPPING:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
