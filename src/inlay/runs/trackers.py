"""Other programs that log a run, each through its own library, where that is installed: `--log wandb`.

Where their logs go, and under whose name, is what each library reads from its environment (`WANDB_MODE=offline`,
`MLFLOW_TRACKING_URI`, ...). Runs stand in the project, or experiment, `inlay`.
"""

import abc
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from inlay.errors import MissingExtraError, explain
from inlay.runs.record import DONE, Run

PROJECT = "inlay"

Name = Literal["tensorboard", "trackio", "wandb", "mlflow"]


class Tracker(abc.ABC):
    """One of them, from the beginning of a run to its end."""

    name: str
    module: str
    """What is imported."""
    package: str
    """What pip installs."""

    def __init__(self, library: Any):
        self.library = library

    @abc.abstractmethod
    def begin(self, run: Run, output: Path) -> None:
        """A run begins that will write `output`."""

    @abc.abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """What is known after a step."""

    @abc.abstractmethod
    def end(self, run: Run) -> None:
        """The run is over."""


class TensorBoard(Tracker):
    """Event files in `tensorboard/NAME` beside the output: `tensorboard --logdir tensorboard` lays runs beside each other."""

    name, module, package = "tensorboard", "torch.utils.tensorboard", "tensorboard"

    def begin(self, run: Run, output: Path) -> None:
        self.writer = self.library.SummaryWriter(log_dir=str(output.absolute().parent / "tensorboard" / output.name))
        for key, value in settings(run).items():
            self.writer.add_text(key, str(value), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def end(self, run: Run) -> None:
        for key, value in scores(run).items():
            self.writer.add_scalar(f"end/{key}", value, 0)
        self.writer.close()


class Trackio(Tracker):
    """Trackio, which keeps runs on this machine: `trackio show`."""

    name, module, package = "trackio", "trackio", "trackio"

    def begin(self, run: Run, output: Path) -> None:
        self.library.init(project=PROJECT, name=output.name, config=settings(run))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.library.log(dict(values), step=step)

    def end(self, run: Run) -> None:
        self.library.log({f"end/{key}": value for key, value in scores(run).items()})
        self.library.finish()


class Wandb(Tracker):
    """Weights & Biases."""

    name, module, package = "wandb", "wandb", "wandb"

    def begin(self, run: Run, output: Path) -> None:
        self.under_way = self.library.init(project=PROJECT, name=output.name, config=settings(run))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.under_way.log(dict(values), step=step)

    def end(self, run: Run) -> None:
        self.under_way.summary.update(scores(run))
        self.under_way.finish(exit_code=0 if run.outcome == DONE else 1)


class Mlflow(Tracker):
    """MLflow."""

    name, module, package = "mlflow", "mlflow", "mlflow"

    def begin(self, run: Run, output: Path) -> None:
        self.library.set_experiment(PROJECT)
        self.library.start_run(run_name=output.name)
        self.library.log_params(settings(run))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.library.log_metrics(dict(values), step=step)

    def end(self, run: Run) -> None:
        self.library.log_metrics({f"end/{key}": value for key, value in scores(run).items()})
        self.library.end_run(status="FINISHED" if run.outcome == DONE else "FAILED")


TRACKERS: dict[str, type[Tracker]] = {cls.name: cls for cls in (TensorBoard, Trackio, Wandb, Mlflow)}


def find(name: str) -> Tracker:
    """The tracker of that name, its library imported.

    **Raises:**

    - `MissingExtraError`: it is not installed.
    """
    cls = TRACKERS[name]
    try:
        return cls(importlib.import_module(cls.module))
    except ImportError as error:
        found = f"--log {name} needs it ({error})"
        raise MissingExtraError(
            explain(f"{cls.package} is not installed", found=found, do=f"pip install {cls.package}")
        ) from None


def settings(run: Run) -> dict[str, Any]:
    """What a run was told, by flat names: settings, base and data."""
    named = {"base": run.base.get("name"), "fingerprint": run.base.get("weights"), "data": run.data.get("source")}
    return {key: value for key, value in {**named, **run.settings}.items() if value is not None}


def scores(run: Run) -> dict[str, float]:
    """What came of a run, in numbers."""
    return {key: float(value) for key, value in run.scores.items() if isinstance(value, int | float)}
