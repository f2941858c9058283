"""The training step and the loop around it.

A step's loss is the sum over all its supervised tokens divided by their number, whatever parts it is computed in:

    loss = sum over parts of cross_entropy_sum(part) / (supervised tokens of the step)

so a batch split in two, or rows of unequal length, give the gradient of the whole batch. The base stays in evaluation mode:
its own dropout is off, the adapter's is on.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inlay import process
from inlay.base.base import Base
from inlay.errors import DivergedError, explain
from inlay.methods import hooks
from inlay.model.adapter import Adapter
from inlay.model.attach import Rows
from inlay.training import schedule
from inlay.training.settings import Plan, Settings
from inlay.training.stop import Stop

MIN_ROWS_TO_CHOOSE = 20
"""With fewer held-out rows the last adapter is kept, not the best one: the mean loss of n rows is uncertain by the spread
between rows over the root of n, more than a fifth of it, and the evaluations of a run that goes well differ by less. Choosing
among them would be drawing lots, and steps thrown away."""

PATIENCE_SECONDS = 5.0
"""The longest evaluation after a system has asked for an end: some kill a process ten seconds after that."""


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
    num_evaluations: int = 0
    """As many evaluations as the run makes, that of the start among them."""
    eval_seconds: float = 0.0
    """Time spent in evaluations."""
    doing: str = ""
    """What is being done, where that is no step."""
    best_step: int = 0
    """The step whose tensors are kept."""
    interrupted: bool = False
    """Ctrl-C, or the system, ended the run before its last step."""
    diverged: bool = False
    """The loss became infinite after some evaluation; the adapter is that of the best one, or of the last."""
    failure: Exception | None = None
    """What ended the run before its last step, or in an evaluation; the adapter is that of the last step."""

    @property
    def seconds_left(self) -> float | None:
        """How long the steps and evaluations that are to come will take, by those that were; None before the first step."""
        if not self.step:
            return None
        evaluation = self.eval_seconds / max(1, len(self.eval_losses))
        evaluations = max(0, self.num_evaluations - len(self.eval_losses))
        return self.step_seconds / self.step * (self.num_steps - self.step) + evaluation * evaluations


class Stepper:
    """The optimiser and the adapter that it moves: one call, one step."""

    def __init__(self, base: Base, adapter: str, settings: Settings, learning_rate: float, num_steps: int = 1):
        self.base = base
        self.task = base.spec
        self.adapter = adapter
        self.settings = settings
        self.learning_rate = learning_rate
        process.keep_freed_blocks()
        held = base.get(adapter)
        self.tensors = held.train_()
        self.params = held.params
        self.method = held.method
        self.hooks = held.method if isinstance(held.method, hooks.StepHooks) else None
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
            if self.hooks is not None:
                self.hooks.penalty(self.params).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.tensors, self.settings.max_grad_norm)
        if not torch.isfinite(norm) or loss_sum != loss_sum:
            raise self.diverged(f"loss {loss_sum / total:.4g}, norm of the gradient {norm.item():.4g}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate_factor * group["rate"]
        self.base.check_unchanged()
        self.optimizer.step()
        if self.hooks is not None:
            self.hooks.after_step(self.params, self._done, self.num_steps, self._state)
        self._done += 1
        self.optimizer.zero_grad(set_to_none=True)
        return loss_sum / total

    def check_finite(self) -> None:
        """Refuse tensors that a last step has thrown out of bounds: `step` sees only what they were before.

        **Raises:**

        - `DivergedError`: a tensor holds NaN or infinity.
        """
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors):
            raise self.diverged("the adapter's tensors are not finite")

    def diverged(self, found: str) -> DivergedError:
        """The error of a run whose numbers are not finite."""
        return DivergedError(
            explain("the training diverged", found=found, do=f"--learning-rate {self.learning_rate / 3:.1g}")
        )


@torch.no_grad()
def evaluate(
    base: Base,
    rows: Rows,
    examples: Sequence[Any],
    max_tokens: int | None = None,
    listener: Callable[[int], None] = lambda done: None,
) -> float:
    """The loss per supervised token of some rows, in nats, with these adapters; `listener` hears how many rows are done.

    **Raises:**

    - `DivergedError`: it is not finite.
    """
    task = base.spec
    total, done = 0.0, 0
    for name, some in _by_adapter(rows, examples):
        with base.using(name):
            for part in task.parts(base, some, max_tokens):
                listener(done)
                total, done = total + task.loss_of(base, part).item(), done + len(part)
    base.check_unchanged()
    if not math.isfinite(total):
        raise DivergedError(
            explain(
                "the loss is not finite",
                found=f"{total} over {len(examples)} rows with {rows or 'the plain base'}",
                do="fetch base and adapter again: their weights may hold NaN; or --dtype float32",
            )
        )
    return total / task.num_targets(examples)


def _by_adapter(rows: Rows, examples: Sequence[Any]) -> list[tuple[str | None, list[Any]]]:
    """The rows of each adapter: they go through the model by length, not in the order in which they name one."""
    names = [rows] * len(examples) if isinstance(rows, str | None) else rows
    found: dict[str | None, list[Any]] = {}
    for name, example in zip(names, examples, strict=True):
        found.setdefault(name, []).append(example)
    return list(found.items())


def run(
    base: Base,
    adapter: str,
    examples: Sequence[Any],
    held_out: Sequence[Any],
    settings: Settings,
    plan: Plan,
    *,
    listener: Callable[[Progress], None] = lambda progress: None,
    goes_on: bool = False,
    stop: Stop | None = None,
) -> Progress:
    """Train an attached adapter; afterwards it holds the tensors of the best evaluation, or of the last step.

    The best is chosen where at least `MIN_ROWS_TO_CHOOSE` rows are held out. Ctrl-C, or a request to end, ends the run after
    the step under way, and the adapter is evaluated once more; a second one ends it at once, with the tensors of the last
    step. So does whatever fails after the first step: it is kept as `Progress.failure`.

    **Arguments:**

    - `listener`: hears of every step with its evaluation, once; before, of each thing that is being done (`Progress.doing`).
    - `goes_on`: the adapter has been trained before, so that it is the start that is to be measured, not the base.
    - `stop`: what hears the requests to end.

    **Raises:**

    - `DivergedError`: the loss is not finite any more, and no evaluation had been better than the start.
    """
    torch.manual_seed(settings.seed)
    under_way = _Run(base, adapter, held_out, settings, plan, listener=listener, goes_on=goes_on, stop=stop or Stop())
    under_way.learn(examples)
    base.get(adapter).finish_()
    return under_way.progress


def _groups(adapter: Adapter) -> list[dict[str, Any]]:
    """What is trained, by what the method multiplies its learning rate by."""
    groups: dict[float, list[Tensor]] = {}
    for params in adapter.params.values():
        for name, tensor in params.items():
            groups.setdefault(hooks.rate(adapter.method, name), []).append(tensor)
    return [{"params": tensors, "rate": rate} for rate, tensors in groups.items() if rate]


class _Best:
    """The tensors of the lowest held-out loss so far, or of the latest evaluation; at first those of the start."""

    def __init__(self, tensors: Sequence[Tensor], by_loss: bool):
        self.loss = float("inf")
        self.step = 0
        self.by_loss = by_loss
        self._tensors = [tensor.detach().clone() for tensor in tensors]

    def offer(self, loss: float, step: int, tensors: Sequence[Tensor]) -> None:
        if loss < self.loss or not self.by_loss:
            self.loss, self.step = loss, step
            for kept, tensor in zip(self._tensors, tensors, strict=True):
                kept.copy_(tensor.detach())

    @torch.no_grad()
    def restore_(self, tensors: Sequence[Tensor]) -> None:
        for kept, tensor in zip(self._tensors, tensors, strict=True):
            tensor.copy_(kept)


class _Run:
    """A run under way: what it moves, what it has measured, and how it ends."""

    def __init__(
        self,
        base: Base,
        adapter: str,
        held_out: Sequence[Any],
        settings: Settings,
        plan: Plan,
        *,
        listener: Callable[[Progress], None],
        goes_on: bool,
        stop: Stop,
    ):
        self.base, self.held_out, self.settings, self.plan = base, held_out, settings, plan
        self.stepper = Stepper(base, adapter, settings, plan.learning_rate, plan.num_steps)
        self.goes_on = goes_on
        self.starts_as_base = not (goes_on or hooks.changes_at_start(self.stepper.method) or base.fresh_heads)
        self.best = _Best(self.stepper.tensors, by_loss=len(held_out) >= MIN_ROWS_TO_CHOOSE)
        due = sum(plan.evaluates_at(step) for step in range(1, plan.num_steps + 1))
        self.progress = Progress(plan.num_steps, num_evaluations=1 + due if held_out else 0)
        self.listener, self.stop = listener, stop

    def learn(self, examples: Sequence[Any]) -> None:
        """All steps and evaluations; afterwards the adapter holds what is kept."""
        progress = self.progress
        with self.stop.heard():
            try:
                self._steps(examples)
            except DivergedError:
                if not progress.step:  # it may be the base that is at fault, which then says so
                    self._measure_start()
                if not self.best.step:
                    raise
                progress.diverged = True
            except KeyboardInterrupt:
                if not progress.step:
                    raise
                progress.interrupted = True
            except Exception as error:
                if not progress.step:
                    raise
                progress.failure = error
            progress.doing = ""
            self._keep()

    def _steps(self, examples: Sequence[Any]) -> None:
        plan, progress, settings = self.plan, self.progress, self.settings
        if self.goes_on:
            self._measure_start()
        self._say("")
        for numbers in schedule.order(len(examples), plan.batch_size, plan.num_steps, settings.seed):
            with self.stop.may_cut():
                _step(self.stepper, [examples[i] for i in numbers], progress)
            if progress.step == 1 and not self.goes_on:
                self._measure_start()
            stopped = self.stop.asked and progress.step < plan.num_steps
            if (self._has_time() if stopped else plan.evaluates_at(progress.step)) and self.held_out:
                self.stepper.check_finite()
                self._evaluate()
            self._say("")
            if stopped:
                progress.interrupted = True
                break
        self.stepper.check_finite()

    def _keep(self) -> None:
        """Put back what was best, where that is to be kept."""
        progress, best = self.progress, self.best
        evaluated = bool(progress.eval_losses) and progress.eval_losses[-1][0] == progress.step
        is_finite = all(torch.isfinite(tensor).all() for tensor in self.stepper.tensors)
        chosen = best.by_loss and evaluated and progress.failure is None
        if progress.diverged or chosen or (not is_finite and best.step):
            best.restore_(self.stepper.tensors)
            progress.best_step = best.step
        else:
            progress.best_step = progress.step

    def _measure_start(self) -> None:
        """The held-out loss of the start. Where that is the base's it is known after the first step, and delays nothing."""
        if self.held_out:
            loss = self._measured(self.stepper.adapter if self.goes_on else None)
            self.progress.eval_losses.append((0, loss))
            self.best.loss = loss if self.starts_as_base or self.goes_on else self.best.loss

    def _evaluate(self) -> None:
        try:
            loss = self._measured(self.stepper.adapter)
        except DivergedError:
            raise self.stepper.diverged(f"the held-out loss after {self.progress.step} steps is not finite") from None
        self.progress.eval_losses.append((self.progress.step, loss))
        self.best.offer(loss, self.progress.step, self.stepper.tensors)

    def _measured(self, rows: Rows) -> float:
        start, what = time.perf_counter(), "evaluating" if rows else "evaluating the base"
        with self.stop.may_cut():
            loss = evaluate(
                self.base,
                rows,
                self.held_out,
                self.settings.micro_batch_tokens,
                lambda done: self._say(f"{what}: {done}/{len(self.held_out)} rows"),
            )
        self.progress.eval_seconds += time.perf_counter() - start
        return loss

    def _has_time(self) -> bool:
        """An end was asked for, and the last evaluation is not likely to take longer than whoever asked waits."""
        progress = self.progress
        seconds = progress.eval_seconds / max(1, len(progress.eval_losses))
        return not self.stop.cut and not (self.stop.by_system and seconds > PATIENCE_SECONDS)

    def _say(self, doing: str) -> None:
        self.progress.doing = doing
        self.listener(self.progress)


def _step(stepper: Stepper, examples: Sequence[Any], progress: Progress) -> None:
    start = time.perf_counter()
    loss = stepper.step(examples, schedule.factor(progress.step, progress.num_steps))
    progress.step_seconds += time.perf_counter() - start
    progress.step += 1
    progress.losses.append(loss)
    progress.num_tokens += stepper.task.num_tokens(examples)
    progress.num_supervised += stepper.task.num_targets(examples)
