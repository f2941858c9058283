"""What a run keeps beside its output while it is under way: after a kill it goes on from there, to the same bytes.

    OUTPUT.run/run.json             how the command began it, as a configuration file says it
    OUTPUT.run/state.safetensors    `TrainState` between two steps: its tensors, and in the metadata its values

A state takes the place of the one before it whole, synced, so that one of the two is there whatever happens. The directory
goes when the adapter has been written. A lock, which ends with its process, keeps a second run away.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from inlay.errors import DivergedError, FormatError, OutputError, UnknownNameError, explain
from inlay.io import json_files, output, records, safetensors
from inlay.runs.pace import Pace
from inlay.training.state import TrainState

BEGUN, STATE = "run.json", "state.safetensors"

VALUES = "state"
"""Under which the metadata of the file has the values, as JSON."""

FEWEST_SECONDS = 10.0
"""From one state to the next, where no number of steps is asked for: a kill costs no more than this and a step."""


def place(path: Path) -> Path:
    """Where the run into `path` keeps its state."""
    return Path(f"{os.path.abspath(path)}.run")


def begun(path: Path) -> dict[str, Any]:
    """How the run into `path` was begun; what is said of the output is where it lies now.

    **Raises:**

    - `UnknownNameError`: there is nothing to go on from.
    """
    for directory in (place(path), Path(os.path.abspath(path))):  # that place itself may be named
        if (directory / BEGUN).is_file():
            return json_files.read_json(directory / BEGUN) | {"output": str(directory).removesuffix(".run")}
    wrong, do = "no run that could go on has written here", "--resume with the directory of --output"
    if (place(path) / STATE).is_file():
        wrong, do = "this run was begun from Python, and goes on there", "inlay.train(..., resume=True) as before"
    elif path.is_dir() and "training" in records.read(path) and not was_stopped(path):
        wrong, do = "this run is finished", "--from to train its adapter further"
    raise UnknownNameError(explain(wrong, found=str(path), do=do))


def was_stopped(path: Path) -> bool:
    """`path` holds what a run has written that was stopped before its last step."""
    with contextlib.suppress(FormatError):  # a record that can't be read is somebody else's
        return path.is_dir() and bool(records.read(path).get("training", {}).get("interrupted"))
    return False


class Saves:
    """The states that the run into `path` keeps.

    **Attributes:**

    - `every`: steps from one to the next; None: as often as it costs little time (`inlay.runs.pace`).
    """

    def __init__(self, path: Path, every: int | None = None):
        self.path, self.every = place(path), every
        self._output = path
        self._pace = Pace(FEWEST_SECONDS)

    def check(self, resume: bool) -> None:
        """Refuse to begin or, with `resume`, to go on where something of value would be lost.

        **Raises:**

        - `OutputError`: another run is under way there, or was stopped; or there is an output that is not that of a stopped
          run.
        """
        if not (resume and was_stopped(self._output)):
            output.check_free(self._output)
        if not self.path.is_dir():
            return
        with output.locked(self.path):
            if not resume and (self.path / STATE).exists():
                wrong = "a run that was stopped has left its state for this output"
                do = f"inlay train --resume {self._output}, or remove {self.path.name}"
                raise OutputError(explain(wrong, found=str(self.path), do=do))

    @contextlib.contextmanager
    def kept(self, how: Mapping[str, Any] | None) -> Iterator[None]:
        """Within the block this process alone keeps states there; `how` it was begun is written first, where it is known.

        Nothing stays of a run that fails before its first state, nor of one that diverges, which it would again.
        """
        with output.refusals(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with output.locked(self.path):
            try:
                if how is not None:
                    output.write_file(self.path / BEGUN, json.dumps(how, indent=1).encode())
                self._pace.begin()
                yield
            except BaseException as error:
                if isinstance(error, DivergedError) or not (self.path / STATE).exists():
                    self.remove()
                raise

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and values of the last state; None before the first.

        **Raises:**

        - `FormatError`: the file is damaged.
        """
        path = self.path / STATE
        if not path.is_file():
            return None
        try:
            values = json.loads(safetensors.read_header(path).metadata[VALUES])
        except (KeyError, ValueError):
            wrong = "this is not the state of a run"
            raise FormatError(explain(wrong, found=str(path), do="remove it: the run begins anew")) from None
        return safetensors.read_tensors(path), values

    def offer(self, state: TrainState, *, now: bool = False) -> None:
        """Keep the state after a step where one is due, or `now`. What fails there is a warning."""
        due = self._pace.is_due if self.every is None else not state.progress.step % self.every
        if not (due or now):
            return
        with self._pace.spending():
            try:
                with output.new_file(self.path / STATE) as partial:
                    safetensors.write_tensors(partial, state.tensors(), {VALUES: json.dumps(state.values())})
            except Exception as error:
                warnings.warn(f"the state of step {state.progress.step} was not kept: {error}", stacklevel=2)

    def remove(self) -> None:
        """Leave nothing: the run is over."""
        for name in (STATE, BEGUN):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of somebody else's is in it
            self.path.rmdir()
