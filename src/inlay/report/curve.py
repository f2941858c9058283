"""The loss curve of a run, and several methods beside each other, as pictures to show around."""

import math
from collections.abc import Sequence
from typing import Any

from inlay.picture import figure
from inlay.report.svg import banded, perplexity
from inlay.runs.progress import Progress

MOST_LABELS = 24
"""As many names fit beside a picture; of more methods those of the lowest loss are named."""


def draw(progress: Progress, title: str, unit: str) -> bytes:
    """A PNG: the held-out loss with its first and its last value, the losses of the steps as a band, the best step's number.

    **Arguments:**

    - `title`: whose losses these are; behind it stands the held-out loss before, and that of the step that was kept.
    - `unit`: what a loss is per. That of tokens has its perplexity on the right.
    """
    with figure(7.5) as (drawn, png):
        axes = drawn.add_subplot()
        _draw(axes, progress)
        held, kept = dict(progress.eval_losses), progress.best_step
        learned = f": {held[0]:.2f} → {held[kept]:.2f}" if kept and {0, kept} <= {*held} else ""
        axes.set_title(title + learned, loc="left", fontsize="medium", parse_math=False)
        axes.set_xlabel("step")
        axes.set_ylabel(f"loss, nats per {unit}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.legend(frameon=False, loc="upper right", fontsize="small")
        if unit == "token":
            right = axes.secondary_yaxis("right", functions=(lambda loss: loss, lambda loss: loss))
            right.yaxis.set_major_formatter(lambda loss, _: perplexity(loss))
            right.set_ylabel("perplexity")
            right.spines["right"].set_visible(False)
        if minutes := (progress.step_seconds + progress.eval_seconds) / 60 / max(1, progress.step):
            below = axes.secondary_xaxis(-0.18, functions=(lambda step: step * minutes, lambda time: time / minutes))
            below.set_xlabel("minutes")
            below.spines["bottom"].set_visible(False)
    return png.getvalue()


def compared(results: Sequence[Any]) -> bytes:
    """A PNG of several methods: the held-out loss of each over the minutes that it took, its file as the area of its point, and
    what each forgot where that is known. A line leads along those that nothing is both faster and better than."""
    shown = [result for result in results if result.forgetting is not None]
    with figure(10 if shown else 7, 4.5) as (drawn, png):
        left, *right = drawn.subplots(1, 2 if shown else 1, squeeze=False, width_ratios=[3, 2] if shown else [1])[0]
        _scattered(left, results)
        for axes in right:
            ordered = sorted(shown, key=lambda result: -result.forgetting)
            bars = axes.barh([r.method for r in ordered], [r.forgetting for r in ordered], color="tab:orange")
            axes.bar_label(bars, fmt="%.3f", padding=3, fontsize="small")
            axes.margins(x=0.15)
            axes.set_title("Growth of the loss on other text", loc="left", fontsize="medium")
            axes.set_xlabel("nats per token")
            axes.spines[["top", "right"]].set_visible(False)
    return png.getvalue()


def _draw(axes: Any, progress: Progress) -> None:
    """The band, the held-out line, the best step."""
    if bands := banded([*enumerate(progress.losses, 1)]):
        steps, low, mean, high = zip(*bands, strict=True)
        axes.fill_between(steps, low, high, color="tab:blue", alpha=0.15, linewidth=0)
        axes.plot(steps, mean, color="tab:blue", alpha=0.6, linewidth=1, label="training: mean, least, most")
    if not progress.eval_losses:
        return
    evaluated, losses = zip(*progress.eval_losses, strict=True)
    axes.plot(evaluated, losses, "o-", color="tab:orange", linewidth=2.5, markersize=4, label="held out")
    first, last = progress.eval_losses[0], progress.eval_losses[-1]
    near: dict[str, Any] = {"textcoords": "offset points", "color": "tab:orange", "weight": "bold"}
    axes.annotate(f"{first[1]:.3f}", first, (8, 4), **near)
    if last[0] > first[0]:
        axes.annotate(f"{last[1]:.3f}", last, (0, 9), **near, ha="right")
    best = min(progress.eval_losses, key=lambda pair: (math.isnan(pair[1]), pair[1]))
    if best[0] != last[0]:
        axes.axvline(best[0], color="tab:orange", linewidth=0.8, linestyle=":")
        text, across = f"best: step {best[0]:,}, {best[1]:.3f}", ("data", "axes fraction")
        up: dict[str, Any] = {"rotation": 90, "ha": "right", "va": "center", "fontsize": "small"}
        axes.annotate(text, (best[0], 0.6), (-4, 0), xycoords=across, textcoords="offset points", **up)


def _scattered(axes: Any, results: Sequence[Any]) -> None:
    """A point for each, and its name on the right, as high as it where there is room."""
    axes.set_title("Held-out loss over time; area: size of the file", loc="left", fontsize="medium")
    axes.set_xlabel("minutes")
    axes.set_ylabel("nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    if not results:
        return
    ordered = sorted(results, key=lambda result: result.loss)
    most = max(result.adapter_bytes for result in results)
    front = [r for r in ordered if all(r.seconds <= o.seconds or r.loss < o.loss for o in results)]
    axes.plot([r.seconds / 60 for r in front], [r.loss for r in front], color="0.8", linewidth=1.5, zorder=1)
    areas = [20 + 500 * r.adapter_bytes / most for r in ordered]
    axes.scatter([r.seconds / 60 for r in ordered], [r.loss for r in ordered], areas, alpha=0.6, zorder=2)
    axes.margins(x=0.1, y=0.12)
    low, high = axes.get_ylim()
    named = ordered[:MOST_LABELS]
    heights = spread([(result.loss - low) / (high - low) for result in named], 0.9 / MOST_LABELS)
    line = {"arrowstyle": "-", "color": "0.85", "linewidth": 0.8}
    for result, height in zip(named, heights, strict=True):
        text, place = f"{result.method}  {result.loss:.3f}", (result.seconds / 60, result.loss)
        axes.annotate(
            text, place, (1.03, height), textcoords="axes fraction", va="center", fontsize="small", arrowprops=line
        )


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Ascending heights in 0 to 1, moved so that neighbours are at least so far apart, as long as there is room for all."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + apart) if found else height)
    highest = 1.0
    for place in reversed(range(len(found))):
        found[place] = min(found[place], highest)
        highest = found[place] - apart
    return found


def running_mean(losses: list[float], decay: float = 0.9) -> list[float]:
    """The exponential mean of a curve, without a pull towards zero at its beginning."""
    means: list[float] = []
    total = weight = 0.0
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        means.append(total / weight)
    return means
