"""The loop around the training step: from where a run stands to its last step, with the evaluations that are due."""

import time
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from inlay.base.base import Base
from inlay.errors import DivergedError
from inlay.evaluation.loss import evaluate
from inlay.methods import hooks
from inlay.model.batch import Rows
from inlay.runs import patience
from inlay.runs.bounds import Bounds
from inlay.runs.progress import Progress
from inlay.runs.stop import Stop
from inlay.runs.watch import Watch
from inlay.training import schedule
from inlay.training.attaching import attached
from inlay.training.divergence import check_finite, check_loss, diverged, has_learned, is_finite, located
from inlay.training.saves import Saves
from inlay.training.state import TrainState
from inlay.training.step import step_

Answer = TypeVar("Answer")

PATIENCE_SECONDS = 5.0
"""The longest evaluation after a system has asked for an end: some kill a process ten seconds after that."""


Steps = Generator[Sequence[Any], None, Answer]
"""A run that hands out the rows of its next step, and goes on once that is made; what the step raises is thrown into it."""


def alone(base: Base, state: TrainState, run: Steps[Answer], stop: Stop, watch: Watch | None = None) -> Answer:
    """Make the steps of a run one after the other, within the memory of `watch`; what it comes to."""
    error: BaseException | None = None
    while True:
        try:
            examples = next(run) if error is None else run.throw(error)
        except StopIteration as end:
            answer: Answer = end.value
            return answer
        try:
            error = None
            with stop.may_cut():
                step_(base, state, examples, watch)
        except BaseException as problem:  # the run knows what to do
            error = problem


def steps(
    base: Base,
    state: TrainState,
    examples: Sequence[Any],
    held_out: Sequence[Any],
    *,
    stop: Stop,
    listener: Callable[[Progress], None] = lambda progress: None,
    saves: Saves | None = None,
    bounds: Bounds | None = None,
) -> Steps[Progress]:
    """Attach the adapter of a run and go through the steps that are left; it then has the tensors of the best evaluation, or of
    the last step.

    The best is chosen where at least `MIN_ROWS_TO_CHOOSE` rows are held out. Ctrl-C, or a request to end, ends the run after
    the step under way, and the adapter is evaluated once more; a second one ends it at once, with the tensors of the last
    step. So does whatever fails after the first step: it is kept as `Progress.failure`.

    **Arguments:**

    - `examples`: the rows to learn from; `held_out`: those that are evaluated.
    - `stop`: what hears the requests to end.
    - `listener`: hears of every step with its evaluation, once; before, of each thing that is being done (`Progress.doing`).
    - `saves`: what keeps the state of the run as it goes, to go on from.
    - `bounds`: the memory and the time that it keeps to; where its time is up, it ends as it does at a request.

    **Raises:** with nothing learned, and the base as it was:

    - `DivergedError`: the loss is not finite any more, and no evaluation had been better than the start.
    - what `inlay.model.adapter_set.AdapterSet.put` raises.
    """
    with attached(base, state.adapter, stays=True):
        yield from _Run(base, state, held_out, listener, stop, saves, bounds=bounds or Bounds()).learn(examples)
    return state.progress


def run(
    base: Base,
    state: TrainState,
    examples: Sequence[Any],
    held_out: Sequence[Any],
    *,
    stop: Stop | None = None,
    **how: Any,
) -> Progress:
    """`steps`, each made by itself."""
    stop = stop or Stop()
    with stop.heard():
        return alone(base, state, steps(base, state, examples, held_out, stop=stop, **how), stop)


class _Run:
    """A run under way: its state, and what it is about."""

    def __init__(
        self,
        base: Base,
        state: TrainState,
        held_out: Sequence[Any],
        listener: Callable[[Progress], None],
        stop: Stop,
        saves: Saves | None,
        *,
        bounds: Bounds,
    ):
        self.base, self.state, self.held_out, self.listener, self.stop = base, state, held_out, listener, stop
        self.saves, self.bounds = saves, bounds
        self.progress = state.progress

    def learn(self, examples: Sequence[Any]) -> Steps[None]:
        """All steps and evaluations; afterwards the adapter holds what is kept."""
        state, progress = self.state, self.progress
        held = {id(tensor) for tensor in state.adapter.tensors()}
        assert held >= {id(tensor) for tensor in state.trained.values()}, "the optimiser moves what is attached"
        try:
            yield from self._steps(examples)
        except DivergedError as error:
            if not progress.step:  # it may be the base that is at fault, which then says so
                self._measure_start()
            if not (state.best.step or (is_finite(state) and has_learned(progress))):
                raise
            warnings.warn(f"{error.wrong}: {'; '.join(error.found)}", stacklevel=2)
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
        if self.bounds.watch is not None:  # for what comes at the end
            self.bounds.watch.make_room()
        self._keep()
        state.adapter.finish_()

    def _steps(self, examples: Sequence[Any]) -> Steps[None]:
        state, plan, progress = self.state, self.state.plan, self.progress
        if state.goes_on and not progress.eval_losses:
            self._measure_start()
        self._catch_up()
        self._say("")
        if patience.ends_(progress, state.settings.patience):  # it was killed before it could end
            return
        num_rows, seed = len(examples), state.settings.seed
        order = schedule.order(num_rows, plan.batch_size, plan.num_steps, seed, progress.step, parts=state.parts)
        for numbers in order:
            rows = [examples[i] for i in numbers]
            try:
                yield rows
            except DivergedError as error:
                raise located(self.base, state, rows, error) from None
            check_loss(state)
            is_over = state.world.any(self.stop.asked or self.bounds.is_late(progress))
            if self.saves is not None:
                self.saves.offer(state, now=is_over)
            if progress.step == 1 and not state.goes_on:
                self._measure_start()
            stopped = (is_over or state.world.any(self.stop.asked)) and progress.step < plan.num_steps
            if self._has_time() if stopped else plan.evaluates_at(progress.step):
                self._evaluate()
            self._say("")
            if stopped:
                progress.interrupted = True
                break
            if patience.ends_(progress, state.settings.patience):
                break
        check_finite(state)

    def _catch_up(self) -> None:
        """What was due after the last step, where the run was stopped before it was done."""
        step, evaluated = self.progress.step, dict(self.progress.eval_losses)
        if step and 0 not in evaluated:
            self._measure_start()
        if step and step not in evaluated and self.state.plan.evaluates_at(step):
            self._evaluate()

    def _keep(self) -> None:
        """Put back what was best, where that is to be kept."""
        state, progress, best = self.state, self.progress, self.state.best
        evaluated = bool(progress.eval_losses) and progress.eval_losses[-1][0] == progress.step
        chosen = best.by_loss and evaluated and progress.failure is None
        if chosen or (best.step and (progress.diverged or not is_finite(state))):
            best.restore_(state.trained)
            progress.best_step = best.step
        else:
            progress.best_step = progress.step

    def _measure_start(self) -> None:
        """The held-out loss of the start. Where that is the base's it is known after the first step, and delays nothing."""
        state = self.state
        if self.held_out:
            loss = self._measured(state.adapter.name if state.goes_on else None)
            self.progress.eval_losses.append((0, loss))
            if state.goes_on or not (hooks.changes_at_start(state.method) or self.base.fresh_heads):
                state.best.loss = loss

    def _evaluate(self) -> None:
        """The held-out loss of the adapter as it is, where there are such rows."""
        state, step = self.state, self.progress.step
        if not self.held_out:
            return
        check_finite(state)
        try:
            loss = self._measured(state.adapter.name)
        except DivergedError:
            raise diverged(state, f"the held-out loss after {step} steps is not finite") from None
        self.progress.eval_losses.append((step, loss))
        state.best.offer(loss, step, state.trained)

    def _measured(self, rows: Rows) -> float:
        start, what = time.perf_counter(), "evaluating" if rows else "evaluating the base"
        with self.stop.may_cut():
            loss = evaluate(
                self.base,
                rows,
                self.held_out,
                self.state.settings.micro_batch_tokens,
                lambda done: self._evaluating(f"{what}: {done}/{len(self.held_out)} rows"),
                world=self.state.world,
            )
        self.progress.eval_seconds += time.perf_counter() - start
        return loss

    def _evaluating(self, doing: str) -> None:
        if self.bounds.watch is not None:
            self.bounds.watch.make_room()
        self._say(doing)

    def _has_time(self) -> bool:
        """An end was asked for, and the last evaluation is not likely to take longer than whoever asked waits."""
        progress = self.progress
        seconds = progress.eval_seconds / max(1, len(progress.eval_losses))
        hurry = self.stop.cut or (self.stop.by_system and seconds > PATIENCE_SECONDS)
        return not self.state.world.any(hurry)

    def _say(self, doing: str) -> None:
        self.progress.doing = doing
        self.listener(self.progress)
