"""One step of several runs on one base: their rows go through the model together, and each row names its adapter.

    loss = sum over runs i of loss_i / targets_i        loss_i of the rows of run i alone, targets_i as many as it is taken on

The tensors of two runs are apart, so the gradient of this sum is, for the tensors of a run, that of its own loss: each then
clips it, moves and decays by its own settings, as `inlay.training.step` does. What a pass has in common is the base: its
weights are read, and dequantised, once for all.

A run's step is divided into parts as it would be alone, and a pass takes at most one part of each run, so that dropout draws
the same numbers, from the run's own generator. A pass takes no more tokens than one part of a run may have, and no more memory
therefore. Large batches fill their passes by themselves: they gain nothing, and lose nothing.

What fails in a pass of several is tried again alone, so that a run that diverges, or that finds no memory, does no harm to the
others: NaN of one row reaches other rows where a layer's attention has a mask over all of them.
"""

import time
from collections.abc import Iterator, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch

from inlay import process
from inlay.base.base import Base
from inlay.core.recompute import recomputing
from inlay.errors import CompatibilityError, DivergedError
from inlay.methods import hooks
from inlay.tasks import micro_batch_tokens
from inlay.tasks.causal_lm import unpacked_because
from inlay.training.state import TrainState
from inlay.training.step import clip_, count_, move_, step_

UNCLEAR = Exception("a pass of several runs failed")
"""Stands for what kept a step from being made until the run is tried alone; it is never raised."""


class Due(NamedTuple):
    """A run, and the rows of its next step."""

    state: TrainState
    examples: Sequence[Any]


class Passes:
    """The passes of runs on one base.

    **Attributes:**

    - `apart`: why each run has passes of its own; empty where they are shared.
    """

    def __init__(self, base: Base):
        self.base = base
        self.apart = "" if base.spec.losses_of else f"the task {base.task} says only the loss of all rows of a pass"

    def steps_(self, due: Sequence[Due]) -> list[Exception | None]:
        """Make a step of each of these runs, whose adapters are attached; what kept it from being made, or None.

        A run that made none is as it was before.
        """
        if len(due) == 1 or self.apart:
            return [self._alone_(one) for one in due]
        start, drawn = time.perf_counter(), [one.state.generator.get_state() for one in due]
        process.keep_freed_blocks()
        try:
            problems = self._together_(due, start)
        finally:
            for one in due:
                one.state.optimizer.zero_grad(set_to_none=True)
        unclear = [number for number, problem in enumerate(problems) if problem is UNCLEAR]
        for number in unclear:
            due[number].state.generator.set_state(drawn[number])
            problems[number] = self._alone_(due[number])
        return problems

    def _alone_(self, one: Due) -> Exception | None:
        try:
            step_(self.base, one.state, one.examples)
        except Exception as error:
            return error
        return None

    def _together_(self, due: Sequence[Due], start: float) -> list[Exception | None]:
        """Move every run whose gradient is finite; why the others are not, `UNCLEAR` where it may be another run's fault."""
        try:
            losses = self._gradients_(due)
            self.base.check_unchanged()
        except CompatibilityError as error:
            self.apart = error.wrong
            return [UNCLEAR for _ in due]
        except Exception:
            return [UNCLEAR for _ in due]
        problems = [self._moved_(one, loss, start) for one, loss in zip(due, losses, strict=True)]
        diverged = [isinstance(problem, DivergedError) for problem in problems]
        return [
            UNCLEAR if is_so and sum(diverged) > 1 else problem
            for is_so, problem in zip(diverged, problems, strict=True)
        ]

    def _moved_(self, one: Due, loss: float, start: float) -> Exception | None:
        try:
            clip_(one.state, loss)
            move_(one.state)
        except Exception as error:
            return error
        count_(self.base, one.state, one.examples, loss, time.perf_counter() - start)
        return None

    def _gradients_(self, due: Sequence[Due]) -> list[float]:
        """Give the trained tensors of all runs their gradients; the loss of each run."""
        base, task = self.base, self.base.spec
        assert task.losses_of is not None, "runs of other tasks have passes of their own"
        totals, sums = [task.num_targets(one.examples) for one in due], [0.0] * len(due)
        for taken in self._passes(due):
            states = [due[number].state for number, _ in taken]
            rows = [state.adapter.name for state, (_, part) in zip(states, taken, strict=True) for _ in part]
            with base.using(rows, generator={state.adapter.name: state.generator for state in states}):
                with recomputing(any(state.settings.recompute for state in states)):
                    losses = task.losses_of(base, [part for _, part in taken])
                torch.autograd.backward([loss / totals[n] for loss, (n, _) in zip(losses, taken, strict=True)])
            for loss, (number, _) in zip(losses, taken, strict=True):
                sums[number] += loss.item()
        return [loss / total for loss, total in zip(sums, totals, strict=True)]

    def _passes(self, due: Sequence[Due]) -> Iterator[list[tuple[int, list[Any]]]]:
        """What goes through the model at a time: parts of steps, each with the number of its run."""
        base, task = self.base, self.base.spec
        waiting = [[*task.step_parts(base, one.examples, one.state.settings.micro_batch_tokens)] for one in due]
        most = max(one.state.settings.micro_batch_tokens or micro_batch_tokens(base) for one in due)
        only_same = self._draws_by_padding(due)
        while any(waiting):
            taken: list[tuple[int, list[Any]]] = []
            room = most
            for number, parts in enumerate(waiting):
                if not parts or (taken and only_same and not _are_same(parts[0], taken[0][1])):
                    continue
                size = task.num_tokens(parts[0])
                if not taken or size <= room:
                    taken.append((number, parts.pop(0)))
                    room -= size
            yield taken

    def _draws_by_padding(self, due: Sequence[Due]) -> bool:
        """Dropout draws for padding too, so that only parts of the same rows, with the same padding, go together."""
        is_padded = not self.base.spec.continues or unpacked_because(self.base) is not None
        return is_padded and any(hooks.input_dropout(one.state.method) for one in due)


def _are_same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))
