"""The loss curve of a run, and several methods beside each other, as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inlay.training.loop import Progress


def draw(path: Path, progress: Progress) -> None:
    """Write a PNG: the loss of every step, a running mean, and the held-out loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
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
    figure.savefig(path, dpi=120)


def compared(path: Path, results: Sequence[Any]) -> None:
    """Write a PNG of several methods: their held-out losses over their trained weights, and what each forgot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for result in results:
        left.plot(result.trainable_parameters, result.loss, "o", color="tab:blue")
        left.annotate(f" {result.method}", (result.trainable_parameters, result.loss))
    left.set_xscale("log")
    left.set_xlabel("trained weights")
    left.set_ylabel("held-out loss, nats per token")
    shown = [result for result in results if result.forgetting is not None]
    right.barh([result.method for result in shown], [result.forgetting for result in shown], color="tab:orange")
    right.set_xlabel("growth of the loss on other text, nats per token")
    figure.savefig(path, dpi=120)


def running_mean(losses: list[float], decay: float = 0.9) -> list[float]:
    """The exponential mean of a curve, without a pull towards zero at its beginning."""
    means: list[float] = []
    total = weight = 0.0
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        means.append(total / weight)
    return means
