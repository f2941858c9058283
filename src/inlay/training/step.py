"""One step of training.

A step's loss is the sum over all its supervised tokens divided by their number, whatever parts it is computed in:

    loss = sum over parts of cross_entropy_sum(part) / (supervised tokens of the step)

so a batch split in two, shared among processes, or of rows of unequal length gives the gradient of the whole batch. The base
stays in evaluation mode: its own dropout is off, the adapter's is on.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from inlay import process
from inlay.base.base import Base
from inlay.core.recompute import recomputing
from inlay.methods.hooks import StepHooks
from inlay.runs.watch import Watch
from inlay.training import schedule
from inlay.training.divergence import diverged
from inlay.training.state import TrainState


def step_(base: Base, state: TrainState, examples: Sequence[Any], watch: Watch | None = None) -> None:
    """Learn from these rows with the attached adapter of `state`, which is then that after one more step.

    What `Progress.losses` gets is their loss per supervised token, before the step, in nats. `watch` keeps within a memory.

    **Raises:**

    - `DivergedError`: the loss or the gradient is not finite; the state has not been changed.
    - `CapacityError`: a row does not fit into the memory that `watch` allows; nor has it then.
    """
    start = time.perf_counter()
    process.keep_freed_blocks()
    try:
        loss = _gradients_(base, state, examples, watch)
        clip_(state, loss)
        base.check_unchanged()
        move_(state)
    finally:
        state.optimizer.zero_grad(set_to_none=True)
    count_(base, state, examples, loss, time.perf_counter() - start)


def _gradients_(base: Base, state: TrainState, examples: Sequence[Any], watch: Watch | None) -> float:
    """Give every trained tensor the gradient of the loss; the loss."""
    task, settings, world = base.spec, state.settings, state.world
    total, loss_sum = task.num_targets(examples), 0.0
    own = world.shard(examples, lambda example: task.num_tokens([example]))
    world.draw_(state.generator, settings.seed, state.progress.step)
    with base.using(state.adapter.name, generator=state.generator):
        parts = task.step_parts(base, own, settings.micro_batch_tokens)
        parts = parts if watch is None or world.holds_base else watch.within(parts, partial(task.step_parts, base))
        for part, counts in world.rounds(parts):
            with recomputing(settings.recompute):
                loss = task.loss_of(base, part) * counts
            (loss / total).backward()
            loss_sum += loss.item()
    loss_sum = world.sum_([*state.trained.values()], loss_sum)
    return loss_sum / total


def clip_(state: TrainState, loss: float) -> None:
    """Add to the gradients what the method's own penalty has, and clip them to the largest norm.

    **Raises:**

    - `DivergedError`: the loss or the norm is not finite.
    """
    if isinstance(state.method, StepHooks):
        state.method.penalty(state.adapter.params).backward()
    norm = torch.nn.utils.clip_grad_norm_(state.trained.values(), state.settings.max_grad_norm)
    if not torch.isfinite(norm) or loss != loss:
        raise diverged(state, f"loss {loss:.4g}, norm of the gradient {norm.item():.4g}")


def count_(base: Base, state: TrainState, examples: Sequence[Any], loss: float, seconds: float) -> None:
    """Write down a step that is done."""
    progress = state.progress
    progress.step_seconds += seconds
    progress.step += 1
    progress.losses.append(loss)
    progress.num_tokens += base.spec.num_tokens(examples)
    progress.num_supervised += base.spec.num_targets(examples)


def move_(state: TrainState) -> None:
    """Move the tensors by their gradients."""
    done, plan, method = state.progress.step, state.plan, state.method
    rate = plan.learning_rate * schedule.factor(done, plan.num_steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    state.optimizer.step()
    if isinstance(method, StepHooks):
        method.after_step(state.adapter.params, done, plan.num_steps, state.method_state)
