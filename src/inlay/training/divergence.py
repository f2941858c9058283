"""A run whose numbers leave all bounds: how it is seen, and what is said of it."""

from collections.abc import Sequence
from typing import Any

import torch

from inlay.base.base import Base
from inlay.errors import DivergedError, explain, few
from inlay.methods import hooks
from inlay.runs.progress import Progress
from inlay.training.state import TrainState

WINDOW = 10
"""Steps over whose mean loss a run is judged: the first ones, and the last."""


def diverged(state: TrainState, found: str) -> DivergedError:
    """The error of a run whose numbers are out of bounds."""
    rate, method = state.plan.learning_rate, state.method
    if state.settings.learning_rate is None and isinstance(method, hooks.Rates):  # a given one has other factors
        rate *= min([default / given for given, default in method.rates.values() if given], default=1.0)
    return DivergedError(explain("the training diverged", found=found, do=f"--learning-rate {rate / 3:.1g}"))


def is_finite(state: TrainState) -> bool:
    """No tensor that is trained holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.trained.values())


def check_finite(state: TrainState) -> None:
    """Refuse tensors that a last step has thrown out of bounds: a step sees only what they were before.

    **Raises:**

    - `DivergedError`: a tensor holds NaN or infinity.
    """
    if not is_finite(state):
        raise diverged(state, "the adapter's tensors are not finite")


def check_loss(state: TrainState) -> None:
    """Refuse a loss that explodes: over the last steps it is more than twice that of the first ones, and more by a nat.

    What is finite may be as lost as what is not: gradients are clipped, so that too large a rate ends in noise and not in NaN.

    **Raises:**

    - `DivergedError`: it does.
    """
    first, last = _means(state.progress)
    if last > 2 * first + 1:
        raise diverged(state, f"loss {first:.3g} over the first {WINDOW} steps, {last:.3g} over the last {WINDOW}")


def has_learned(progress: Progress) -> bool:
    """The loss of the last steps is lower than that of the first ones; a run that was too short for both has not."""
    first, last = _means(progress)
    return last < first


def located(base: Base, state: TrainState, examples: Sequence[Any], error: DivergedError) -> DivergedError:
    """The error of a step, with its number and its rows: those whose loss alone is not finite, where there are such."""
    rows = [example for example in examples if not _is_finite_alone(base, state, example)] or examples
    found = [*error.found, f"step {state.progress.step + 1}: {', '.join(few([row.source for row in rows]))}"]
    return DivergedError(explain(error.wrong, found=found, do=error.hint))


def _is_finite_alone(base: Base, state: TrainState, example: Any) -> bool:
    with base.using(state.adapter.name), torch.no_grad():
        return bool(torch.isfinite(base.spec.loss_of(base, [example])))


def _means(progress: Progress) -> tuple[float, float]:
    """The mean loss of the first and of the last steps; alike where they are the same ones."""
    losses = progress.losses
    if len(losses) < 2 * WINDOW:
        return 0.0, 0.0
    return sum(losses[:WINDOW]) / WINDOW, sum(losses[-WINDOW:]) / WINDOW
