"""Inlay fine-tunes, merges and swaps LoRA adapters on the machine you have.

    base = inlay.load("Qwen/Qwen3-0.6B")
    inlay.train(base, "rows.jsonl", method=inlay.Lora(r=16), output="mine")
    base.generate(["one", "two"], adapters=["mine", None])

The public names are those of `__all__`: functions, what they take and return, every adapter method under its class's name, and
the errors. Other names of the package may change with any version, but for the contracts that `docs/guides/extend.md` names.

Names are looked up when they are used: importing the package imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from inlay.errors import (
    CapacityError,
    CompatibilityError,
    ConfigError,
    DataError,
    DivergedError,
    FormatError,
    InlayError,
    MissingExtraError,
    OutputError,
    ShapeError,
    TargetError,
    TransferError,
    TrustError,
    UnknownNameError,
    UsageError,
    WorkerError,
)

if TYPE_CHECKING:  # what an editor reads; `_HOMES` says the same when the program runs
    from inlay.base.attach import attach
    from inlay.base.base import Base
    from inlay.base.load import load
    from inlay.export.agreement import Comparison
    from inlay.export.merge import merge
    from inlay.methods.adalora import Adalora
    from inlay.methods.bitfit import Bitfit
    from inlay.methods.bottleneck import Bottleneck
    from inlay.methods.dora import Dora
    from inlay.methods.full import Full
    from inlay.methods.ia3 import Ia3
    from inlay.methods.ln_tuning import LnTuning
    from inlay.methods.loha import Loha
    from inlay.methods.lokr import Lokr
    from inlay.methods.lora import Lora
    from inlay.methods.oft import Oft
    from inlay.methods.p_tuning import PTuning
    from inlay.methods.prefix import Prefix
    from inlay.methods.prompt import Prompt
    from inlay.methods.vera import Vera
    from inlay.model.adapter import Adapter
    from inlay.model.adapter_set import AdapterSet
    from inlay.planning.train import train
    from inlay.report.outcome import Report
    from inlay.runs.progress import Progress
    from inlay.sweeps.sweep import sweep
    from inlay.sweeps.table import Sweep
    from inlay.training.settings import Settings

__version__ = "0.1.0"
"""The version of the package."""

__all__ = [
    "Adalora",
    "Adapter",
    "AdapterSet",
    "Base",
    "Bitfit",
    "Bottleneck",
    "CapacityError",
    "Comparison",
    "CompatibilityError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "Dora",
    "FormatError",
    "Full",
    "Ia3",
    "InlayError",
    "LnTuning",
    "Loha",
    "Lokr",
    "Lora",
    "MissingExtraError",
    "Oft",
    "OutputError",
    "PTuning",
    "Prefix",
    "Progress",
    "Prompt",
    "Report",
    "Settings",
    "ShapeError",
    "Sweep",
    "TargetError",
    "TransferError",
    "TrustError",
    "UnknownNameError",
    "UsageError",
    "Vera",
    "WorkerError",
    "attach",
    "load",
    "merge",
    "sweep",
    "train",
]

_HOMES = {
    "Adalora": "inlay.methods.adalora",
    "Bitfit": "inlay.methods.bitfit",
    "Bottleneck": "inlay.methods.bottleneck",
    "Dora": "inlay.methods.dora",
    "Full": "inlay.methods.full",
    "Ia3": "inlay.methods.ia3",
    "LnTuning": "inlay.methods.ln_tuning",
    "Loha": "inlay.methods.loha",
    "Lokr": "inlay.methods.lokr",
    "Lora": "inlay.methods.lora",
    "Oft": "inlay.methods.oft",
    "PTuning": "inlay.methods.p_tuning",
    "Prefix": "inlay.methods.prefix",
    "Prompt": "inlay.methods.prompt",
    "Vera": "inlay.methods.vera",
    "Adapter": "inlay.model.adapter",
    "AdapterSet": "inlay.model.adapter_set",
    "Base": "inlay.base.base",
    "Comparison": "inlay.export.agreement",
    "Progress": "inlay.runs.progress",
    "Report": "inlay.report.outcome",
    "Settings": "inlay.training.settings",
    "Sweep": "inlay.sweeps.table",
    "attach": "inlay.base.attach",
    "load": "inlay.base.load",
    "merge": "inlay.export.merge",
    "sweep": "inlay.sweeps.sweep",
    "train": "inlay.planning.train",
}
"""Public name -> the module that defines it."""


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:  # to an editor a name that is not above is none

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'inlay' has no attribute {name!r}")
