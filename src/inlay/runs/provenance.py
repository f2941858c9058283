"""What a run is made with: versions, the machine, the process."""

import contextlib
import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from inlay import __version__
from inlay.core import float32


def versions() -> dict[str, str]:
    """The versions that decide what a run comes to."""
    others = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), "inlay": __version__, **others}


def products() -> dict[str, str]:
    """What decides the last bits of products here."""
    return {"processor": _processor(), "float32 products": float32.chosen()}


def multiply_like_(before: Mapping[str, Any]) -> None:
    """Multiply from now on as a run did for which `products` said this, where it was on this processor."""
    if before.get("processor") in (None, _processor()):
        float32.use_(before.get("float32 products", float32.BLAS))  # what says nothing had no other


def machine() -> dict[str, Any]:
    """The computer: its processor, cores that this process may use, memory, system, and its name."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "host": platform.node(),
    }


def process() -> dict[str, Any]:
    """This process, so that another one can tell whether it still runs: a number may be used again, with another beginning."""
    return {"pid": os.getpid(), "began": psutil.Process().create_time(), "host": platform.node()}


def is_first() -> bool:
    """This process is the first of those that share a run, as torchrun numbers them; alone it is."""
    return os.environ.get("RANK", "0") == "0"


def is_gone(process: dict[str, Any]) -> bool:
    """That process, of this computer, runs no more; of another computer's nothing is known, and it counts as running."""
    if process.get("host") != platform.node():
        return False
    with contextlib.suppress(psutil.Error, KeyError, TypeError):
        found = psutil.Process(process["pid"])
        return abs(found.create_time() - process["began"]) > 1 or found.status() == psutil.STATUS_ZOMBIE
    return True


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
