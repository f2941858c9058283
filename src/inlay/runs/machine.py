"""What this machine has left for a run, and how fast it multiplies.

    room = min(free memory, ulimit -v less the addresses taken, each limit of a control group less what its processes hold)

A control group's files may be dropped, and count as free. A rate is measured in some milliseconds, with the products that a
step is made of.
"""

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from inlay.core import product
from inlay.process import virtual_bytes

TOKENS, WIDTH, ROUNDS = 512, 1024, 3
"""Of the product whose rate is measured, and how often: the fastest counts."""

FREE = "free memory of this machine"
"""What limits a process that nothing else does."""

ENOUGH = 1 << 50
"""What a limit is called where it is none: some systems write a huge number for that."""


class Room(NamedTuple):
    """How much more a process may take."""

    num_bytes: int
    why: str
    """What limits it, in a few words."""


def room(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Room:
    """The tightest limit of this process's memory.

    **Arguments:**

    - `groups`, `own`: where the system shows control groups, and says which this process is in.
    """
    rooms = [Room(psutil.virtual_memory().available, FREE), *_of_addresses()]
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text("utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds or "memory" in kinds.split(","):
                rooms += _of_groups(groups / ("memory" if kinds else ""), path, is_new=not kinds)
    return min(rooms)


def _of_addresses() -> list[Room]:
    with contextlib.suppress(ImportError, OSError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            return [Room(max(0, limit - virtual_bytes()), "ulimit -v")]
    return []


def _of_groups(root: Path, path: str, is_new: bool) -> list[Room]:
    """The room in a control group and in those around it."""
    most, now = ("memory.max", "memory.current") if is_new else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    found, folder = [], root / path.strip("/")
    for group in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            limit, taken = int((group / most).read_text("utf-8")), int((group / now).read_text("utf-8"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines())
            droppable = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            if limit < ENOUGH:
                found.append(Room(max(0, limit - taken + droppable), "the memory limit of its control group"))
        if group == root:
            break
    return found


def products_per_second(dtype: torch.dtype, stored: torch.dtype) -> float:
    """Multiplications and additions per second of this machine, in products of many tokens with a weight.

    **Arguments:**

    - `dtype`: what is multiplied in; `stored`: what the weight lies in.
    """
    x, weight = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=stored)
    best = float("inf")
    for _ in range(ROUNDS + 1):  # the first one warms up
        start = time.perf_counter()
        product.linear(x, weight, None)
        best = min(best, time.perf_counter() - start)
    return 2 * TOKENS * WIDTH * WIDTH / max(best, 1e-9)
