"""Inlay fine-tunes, merges and swaps LoRA adapters on the machine you have.

    base = inlay.load("Qwen/Qwen3-0.6B")
    inlay.train(base, "rows.jsonl", method=inlay.Lora(r=16), output="mine")
    base.generate(["one", "two"], adapters=["mine", None])

Names are looked up when they are used: importing the package imports neither torch nor transformers. Every adapter method
is here under its class's name: `inlay.Lora` is the class in `inlay/methods/lora.py`.
"""

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.base.attach import attach
    from inlay.base.base import Base
    from inlay.base.load import load
    from inlay.export.merge import merge
    from inlay.methods.lora import Lora
    from inlay.training.job import train

__version__ = "0.1.0"
"""The version of the package."""

__all__ = ["Base", "Lora", "__version__", "attach", "load", "merge", "train"]

_HOMES = {
    "Base": "inlay.base.base",
    "attach": "inlay.base.attach",
    "load": "inlay.base.load",
    "merge": "inlay.export.merge",
    "train": "inlay.training.job",
}


def __dir__() -> list[str]:
    """The public names: those of `__all__` and the classes of the methods, read from their files without importing them."""
    files = (Path(__file__).parent / "methods").glob("[!_]*.py")
    methods = (file for file in files if file.stem not in ("contract", "hooks"))
    classes = (re.findall(r"^class ([A-Z]\w*)", file.read_text("utf-8"), re.MULTILINE) for file in methods)
    return sorted({*__all__, *(name for names in classes for name in names)})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if not name.startswith("_") and name[:1].isupper():
        methods = importlib.import_module("inlay.methods")
        for _, method in methods.TABLE.own():
            if method.__name__ == name:
                return method
    raise AttributeError(f"module 'inlay' has no attribute {name!r}")
