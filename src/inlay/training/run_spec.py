"""What is asked of a run, before a row is read or anything is chosen."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inlay.data.sources import Source
from inlay.gate.findings import Check
from inlay.methods.contract import Method
from inlay.training.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What a run is to do with its rows."""

    output: str | Path
    """The directory that will hold the adapter; it must not exist. Its last part is the adapter's name."""

    method: Method | str | None = None
    """How to adapt, as a method or by its name; lora, or that of `from_adapter`, unless given."""

    eval_data: Source | None = None
    """Held-out rows; a part of the others unless given."""

    from_adapter: str | Path | None = None
    """An adapter of this base that the training goes on from."""

    settings: Settings = dataclasses.field(default_factory=Settings)

    resume: bool = False
    """Go on with the same run into `output` where it was stopped, if it has kept a state (`inlay.training.saves`)."""

    check: Check = "warn"
    """How strict the gate is with the rows: "warn" counts what is odd in them, "error" refuses it, "off" does not look."""

    begun: Mapping[str, Any] | None = None
    """How a command begins it, for the one that goes on."""

    @classmethod
    def among(cls, given: Mapping[str, Any]) -> "RunSpec":
        """That of the arguments of a call which have the names of these fields, and of those of `Settings`."""
        settings = Settings(**{field.name: given[field.name] for field in dataclasses.fields(Settings)})
        own = {field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given}
        return cls(**own, settings=settings)
