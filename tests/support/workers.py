"""Groups of processes for tests, started as torchrun starts them, but forked."""

import os
import socket
import time

from tests.support import forks


def started(size, code, *arguments, **environment):
    """Processes that run the same code as ranks of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **environment,
    }
    return [
        forks.Process(
            code, *arguments, stdout=-1, stderr=-1, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(size)
    ]


def ended(processes, timeout=60, stopped=()):
    """[(status, standard output, standard error)] of processes, by rank; `stopped` are killed once the others have ended."""
    end = time.monotonic() + timeout
    others = [process for rank, process in enumerate(processes) if rank not in stopped]
    try:
        for process in others:
            process.wait(max(0.1, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
        said = [process.communicate() for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def run(size, code, *arguments, timeout=60, stopped=(), **environment):
    """The same of a group to its end."""
    return ended(started(size, code, *arguments, **environment), timeout, stopped)
