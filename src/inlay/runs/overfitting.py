"""Whether a run learns its rows by heart: the held-out loss rises while that of training falls."""

from inlay.runs.progress import Progress

CLEARLY = 0.02
"""Part of the lowest held-out loss by which a later one is higher, and no accident of a few rows."""


def note(progress: Progress) -> str:
    """What there is to say of a run that overfits, in plain words; nothing of one that does not.

    The best evaluation is compared with the last one, and the mean training loss of the steps before the best, from the
    evaluation before it on, with that of the steps since.
    """
    evaluated = [(step, loss) for step, loss in progress.eval_losses if step]
    if len(evaluated) < 2:
        return ""
    (best, lowest), (last, now) = min(evaluated, key=lambda pair: pair[1]), evaluated[-1]
    before = max((step for step, _ in progress.eval_losses if step < best), default=0)
    early, late = progress.losses[before:best], progress.losses[best:last]
    if now <= lowest * (1 + CLEARLY) or not early or not late:
        return ""
    first, since = sum(early) / len(early), sum(late) / len(late)
    if since >= first:
        return ""
    return (
        f"this run overfits: since step {best} the held-out loss rose from {lowest:.3f} to {now:.3f} while the training loss "
        f"fell from {first:.3f} to {since:.3f}. It learns its rows by heart; more rows, fewer --epochs, a smaller --r or "
        "--patience 2 help"
    )
