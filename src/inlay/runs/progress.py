"""Where a run stands, in plain values: what its listeners hear, and what is drawn and kept of it."""

import dataclasses


@dataclasses.dataclass
class Progress:
    """Where a run stands; handed to the listener after every step and evaluation."""

    num_steps: int
    step: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)
    """Loss per supervised token of every step, in nats."""
    eval_losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    """(steps done, held-out loss) of every evaluation, from (0, the base's own)."""
    num_tokens: int = 0
    num_supervised: int = 0
    step_seconds: float = 0.0
    """Time spent in steps alone."""
    num_evaluations: int = 0
    """As many evaluations as the run makes, that of the start among them."""
    eval_seconds: float = 0.0
    """Time spent in evaluations."""
    doing: str = ""
    """What is being done, where that is no step."""
    best_step: int = 0
    """The step whose tensors are kept."""
    interrupted: bool = False
    """Ctrl-C, or the system, ended the run before its last step."""
    stopped_early: bool = False
    """The held-out loss got no better for as many evaluations as was asked."""
    diverged: bool = False
    """The loss left all bounds; the adapter is that of the best evaluation, or of the last step whose loss was in them."""
    failure: Exception | None = None
    """What ended the run before its last step, or in an evaluation; the adapter is that of the last step."""

    @property
    def seconds_left(self) -> float | None:
        """How long the steps and evaluations that are to come will take, by those that were; None before the first step."""
        if not self.step:
            return None
        evaluation = self.eval_seconds / max(1, len(self.eval_losses))
        evaluations = max(0, self.num_evaluations - len(self.eval_losses))
        return self.step_seconds / self.step * (self.num_steps - self.step) + evaluation * evaluations
