"""A run that ends early: its held-out loss has got no better for as many evaluations as was said."""

from inlay.errors import ConfigError, explain
from inlay.runs.progress import Progress


def ends_(progress: Progress, patience: int | None) -> bool:
    """Whether so many evaluations were no better than the best before them, that of the start among those, and steps are left:
    the run ends here, and is marked so."""
    losses = [loss for _, loss in progress.eval_losses]
    if patience is None or not losses or progress.step == progress.num_steps:
        return False
    progress.stopped_early = len(losses) - 1 - losses.index(min(losses)) >= patience
    return progress.stopped_early


def check(patience: int | None, num_held_out: int, needed: int) -> None:
    """Refuse to end a run by evaluations of fewer than `needed` rows, which say little.

    **Raises:**

    - `ConfigError`: there are fewer.
    """
    if patience is not None and num_held_out < needed:
        wrong = "so few held-out rows can't tell when to stop"
        found = f"--patience {patience}, {num_held_out} rows are evaluated, {needed} are needed"
        raise ConfigError(
            explain(wrong, found=found, do="--eval-data FILE with more rows, or a larger --eval-fraction")
        )
