"""What a run of training will take: weights, bytes, tokens and seconds, as one value of plain numbers.

`inlay.runs.needs` computes one before any weight is read; `inlay.runs.measure` corrects it by what some of its batches took.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will take; all sizes are in bytes, all times in seconds."""

    trainable_parameters: int
    adapter_bytes: int
    """Of the tensors that are written."""

    memory_bytes: int
    """The most that the process will hold in memory, mapped pages of the base among it."""
    device_bytes: int = 0
    """The most of the device's memory; 0 where the processor computes."""
    disk_bytes: int = 0
    """The most that the run adds to the disk: the adapter, the state that it keeps beside it, a base that it quantises."""

    num_rows: int = 0
    """Rows that are trained on; those that were left out, and those that were cut into windows."""
    num_dropped: int = 0
    num_windowed: int = 0
    tokens_per_epoch: int = 0
    supervised_per_epoch: int = 0
    """Targets among these: tokens, or rows where the task has one for each."""

    seconds_per_epoch: float = 0.0
    seconds: float = 0.0
    """Of the whole run: its steps and its evaluations."""

    measured_on: str = ""
    """What the times rest on, in a few words: a rate of products, or batches of the run."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)
