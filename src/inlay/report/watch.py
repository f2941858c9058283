"""What a person sees of a run: a line for every evaluation, which stays, and in a terminal a bar that names what is being
done."""

from collections.abc import Callable, Sequence
from typing import Any

from inlay import screen
from inlay.process import peak_rss_bytes
from inlay.runs.progress import Progress

LINES = 5
"""As many lines has a run without held-out rows."""


def watch(update: Callable[..., None], unit: str) -> Callable[[Progress], None]:
    """A listener that moves the bar of `inlay.screen.bar` and says the lines.

    **Arguments:**

    - `unit`: what is trained on, in a word: the rate counts them.
    """
    said, phase, unit = -1, "", "tok" if unit == "token" else f"{unit}s"

    def listen(progress: Progress) -> None:
        nonlocal said, phase
        text = "  ".join(_figures(progress, unit))
        doing = progress.doing or ("" if progress.step else "the first step")
        before, phase = phase, doing.partition(":")[0]
        shown = "  ".join(part for part in (text, _left(progress), doing) if part)
        update(progress.step, progress.num_steps, shown, now=phase != before)
        last = _last_event(progress)
        if last > said:
            said = last
            screen.say("step", f"{progress.step}/{progress.num_steps}  {text}  {_left(progress)}".rstrip())

    return listen


def each(listeners: Sequence[Callable[[Progress], object]]) -> Callable[[Progress], None]:
    """A listener that calls all of these."""

    def listen(progress: Progress) -> None:
        for listener in listeners:
            listener(progress)

    return listen


def each_step(listener: Callable[[Progress], Any]) -> Callable[[Progress], None]:
    """A listener that calls `listener` once for every step, after the step and its evaluation."""
    seen = 0

    def listen(progress: Progress) -> None:
        nonlocal seen
        if not progress.doing and progress.step > seen:
            seen = progress.step
            listener(progress)

    return listen


def _last_event(progress: Progress) -> int:
    """The step of the last thing that has a line of its own; -1 before the first."""
    if progress.num_evaluations:
        return progress.eval_losses[-1][0] if progress.eval_losses else -1
    every = max(1, progress.num_steps // LINES)
    return progress.step if progress.step and progress.step % every == 0 else -1


def _figures(progress: Progress, unit: str) -> list[str]:
    parts = [f"loss {progress.losses[-1]:.3f}"] if progress.losses else []
    if progress.eval_losses:
        step, loss = progress.eval_losses[-1]
        parts.append(f"held-out {loss:.3f}" + ("" if step else " at the start"))
    if progress.step_seconds:
        parts.append(f"{progress.num_supervised / progress.step_seconds:,.0f} {unit}/s trained")
    return [*parts, screen.size(peak_rss_bytes())] if parts else []


def _left(progress: Progress) -> str:
    seconds = progress.seconds_left
    if seconds is None:
        return ""
    hours, minutes = divmod(int(seconds) // 60, 60)
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{int(seconds) % 60:02} left"
