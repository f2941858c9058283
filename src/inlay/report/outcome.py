"""What a run came to: figures for a program, a page for a notebook, the steps for a data frame."""

import dataclasses
from typing import TYPE_CHECKING, Any

from inlay import extras
from inlay.errors import ConfigError, explain
from inlay.report import page
from inlay.runs.record import Run

if TYPE_CHECKING:  # a run needs no pandas
    import pandas


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run did; the keys of `inlay train --json`. A notebook shows it as the beginning of the run's page."""

    steps: int
    loss: float
    """Loss of the last step per supervised token, in nats."""
    eval_loss_before: float | None
    eval_loss: float | None
    """Held-out loss of the base, and of the adapter that was kept."""
    best_step: int
    seconds: float
    tokens: int
    supervised_tokens: int
    tokens_per_second: float
    """Real tokens over the steps alone."""
    trainable_parameters: int
    peak_rss_bytes: int
    adapter_bytes: int
    base_fingerprint: str
    interrupted: bool
    stopped_early: bool
    diverged: bool
    output: str
    scores: dict[str, float] | None = None
    """Of the adapter on the held-out rows, where the task has scores of its own."""
    run: Run | None = dataclasses.field(default=None, repr=False, compare=False)
    """The record of the run; None where another process keeps it, or another call has made the run."""

    def as_dict(self) -> dict[str, Any]:
        """The keys of `inlay train --json`; scores only where there are any."""
        values = dataclasses.asdict(dataclasses.replace(self, run=None))
        return {key: value for key, value in values.items() if key != "run" and (key, value) != ("scores", None)}

    def to_pandas(self) -> "pandas.DataFrame":
        """The steps of the run as a data frame, a row each.

        **Returns:** the index `step` from 0, which is the base before the first step, and the columns `loss`, per supervised
        token in nats; `eval_loss`, the held-out loss, NaN where nothing was evaluated; `seconds` of steps and evaluations and
        `tokens`, both since the beginning, and missing for the steps before the one that a run was resumed at.

        **Raises:**

        - `MissingExtraError`: pandas is not installed.
        - `ConfigError`: the report has no record of its steps; see `run`.
        """
        extras.need("pandas", "a data frame of the steps")
        import pandas

        if self.run is None:
            found = f"{self.output}: another process or an earlier call has made the run"
            do = f'"losses" and "eval_losses" in {self.output}/inlay.json are its curve'
            raise ConfigError(explain("the report has no record of its steps", found=found, do=do))
        columns = ["step", "loss", "eval_loss", "seconds", "tokens"]
        frame = pandas.DataFrame(sorted(self.run.curve), columns=columns)
        return frame.set_index("step").astype({"loss": float, "eval_loss": float, "seconds": float, "tokens": "Int64"})

    def _repr_html_(self) -> str | None:
        """What a notebook shows; without a record that is the text."""
        return None if self.run is None else page.part(self.run)
