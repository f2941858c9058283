"""What a run under way keeps to: the memory that it may hold, and the moment by which it is done."""

import dataclasses
import time

from inlay.runs.progress import Progress
from inlay.runs.watch import Watch

CLOSING_SECONDS = 5.0
"""What is left for writing the adapter, its answers that are kept, and its picture."""


@dataclasses.dataclass
class Bounds:
    """The limits of a run; None: there is none.

    **Attributes:**

    - `deadline`: by the clock of `time.monotonic`.
    - `ended_by_time`: it has ended the run.
    """

    watch: Watch | None = None
    deadline: float | None = None
    ended_by_time: bool = False

    def is_late(self, progress: Progress) -> bool:
        """After a step: there is no time for one more, an evaluation that may follow it, and that of the end."""
        if self.deadline is None:
            return False
        evaluation = progress.eval_seconds / max(1, len(progress.eval_losses))
        needed = 1.5 * progress.step_seconds / progress.step + 2 * evaluation + CLOSING_SECONDS
        self.ended_by_time = time.monotonic() + needed >= self.deadline
        return self.ended_by_time
