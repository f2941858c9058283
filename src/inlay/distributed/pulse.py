"""Which process of a group is lost: each tells a store every second that it lives.

A process that was killed closes its connections, and one that was stopped, or cut off from the network, answers nothing; what a
library says of either is an address, or a timeout. Here a process whose count stands still is lost, and named. Who ends by an
error of its own says so first, and the first fault that is said is the one that all others tell.
"""

import contextlib
import os
import socket
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

EVERY_SECONDS = 1.0
"""From one sign of life to the next."""

STORE_SECONDS = 20.0
"""How long the store may take to answer."""


FAULT = "fault"
"""What the store has the first fault under."""


def opened(*, holds: bool = False, seconds: float = STORE_SECONDS) -> Any:
    """The store that the environment names, with keys of its own for each restart.

    torchrun's agent keeps one through all of them, and an address that is found there may be that of a process that is gone.

    **Arguments:**

    - `holds`: this process holds it, where no agent does.
    - `seconds`: how long an answer may take.
    """
    holds = holds and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    c10d: Any = dist  # what is made in C++ has no types
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = c10d.TCPStore(address, port, None, holds, timedelta(seconds=seconds), wait_for_workers=False)
    return c10d.PrefixStore(f"inlay/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


class Pulse:
    """The signs of life of the processes of a group."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self._store = opened()
        self._name = f"rank {rank} of {size} on {socket.gethostname()}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._store.set(f"name/{rank}", self._name)
        self._store.set(f"pulse/{rank}", "0")

    def begin(self) -> None:
        """Give signs of life, once all processes are there."""
        self._thread.start()

    def end(self) -> None:
        """Give none any more."""
        self._ended.set()

    def say(self, fault: str) -> None:
        """Tell the others what ends this process, where no fault was told before."""
        with contextlib.suppress(RuntimeError):
            self._told(f"{self._name}: {fault}")

    def fault(self, seconds: float) -> str:
        """What ended the group, in words; nothing where every process gives signs of life within these seconds."""
        try:
            if self._store.check([FAULT]):
                return self._store.get(FAULT).decode()
            silent = self._silent(seconds)
            names = [self._store.get(f"name/{rank}").decode() for rank in silent]
            return self._told(f"{', '.join(names)}: no sign of life for {seconds:g} s") if silent else ""
        except RuntimeError:
            return f"the store of the group, beside rank 0 at {os.environ['MASTER_ADDR']}: no answer"

    def _told(self, fault: str) -> str:
        return self._store.compare_set(FAULT, "", fault).decode()

    def _silent(self, seconds: float) -> list[int]:
        before = self._counts()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._store.check([FAULT]):
            time.sleep(EVERY_SECONDS / 4)
        pairs = enumerate(zip(before, self._counts(), strict=True))
        return [rank for rank, (then, now) in pairs if then == now and rank != self.rank]

    def _counts(self) -> list[bytes]:
        return self._store.multi_get([f"pulse/{rank}" for rank in range(self.size)])

    def _beat(self) -> None:
        count = 0
        with contextlib.suppress(RuntimeError):  # the store is gone: so is the run
            while not self._ended.wait(EVERY_SECONDS):
                count += 1
                self._store.set(f"pulse/{self.rank}", str(count))
