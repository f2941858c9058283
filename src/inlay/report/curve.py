"""The loss curve of a run, and several methods beside each other, as pictures."""

from collections.abc import Sequence
from typing import Any

from inlay.picture import figure
from inlay.runs.progress import Progress


def draw(progress: Progress) -> bytes:
    """A PNG: the loss of every step, a running mean, and the held-out loss."""
    with figure(7) as (drawn, png):
        _draw(drawn.add_subplot(), progress)
    return png.getvalue()


def compared(results: Sequence[Any]) -> bytes:
    """A PNG of several methods: their held-out losses over their trained weights, and what each forgot where that is known."""
    shown = [result for result in results if result.forgetting is not None]
    with figure(9 if shown else 5) as (drawn, png):
        left, *right = drawn.subplots(1, 2 if shown else 1, squeeze=False)[0]
        for result in results:
            left.plot(result.trainable_parameters, result.loss, "o", color="tab:blue")
            left.annotate(f" {result.method}", (result.trainable_parameters, result.loss))
        left.set_xscale("log")
        left.set_xlabel("trained weights")
        left.set_ylabel("held-out loss, nats per token")
        for axes in right:
            axes.barh([r.method for r in shown], [r.forgetting for r in shown], color="tab:orange")
            axes.set_xlabel("growth of the loss on other text, nats per token")
    return png.getvalue()


def _draw(axes: Any, progress: Progress) -> None:
    steps = range(1, len(progress.losses) + 1)
    axes.plot(steps, progress.losses, color="0.8", linewidth=1, label="each step")
    axes.plot(steps, running_mean(progress.losses), color="tab:blue", label="running mean")
    if progress.eval_losses:
        evaluated, losses = zip(*progress.eval_losses, strict=True)
        axes.plot(evaluated, losses, "o-", color="tab:orange", label="held out")
        axes.axvline(progress.best_step, color="tab:orange", linewidth=0.5, linestyle="--")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per supervised token")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def running_mean(losses: list[float], decay: float = 0.9) -> list[float]:
    """The exponential mean of a curve, without a pull towards zero at its beginning."""
    means: list[float] = []
    total = weight = 0.0
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        means.append(total / weight)
    return means
