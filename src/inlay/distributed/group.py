"""Many processes that share a run, over torch.distributed: `torchrun` starts them, and tells each which one it is.

Small things travel over the processors' network (gloo), gradients over that of the device where they are on one (NCCL, which no
device has confirmed). A process that waits for the others looks every `PATIENCE_SECONDS` whether they live: one that is slow is
waited for, one that is lost is an error that names it.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from inlay import errors
from inlay.distributed.pulse import Pulse, opened
from inlay.distributed.world import Alone, Kept, World
from inlay.errors import CompatibilityError, InlayError, WorkerError, explain, few

PATIENCE_SECONDS = 30.0
"""How long a process waits for the others before it looks whether they live, and how long one may give no sign of life."""

BROKEN_SECONDS = 3.0
"""The same where a connection broke, so that a process has ended already."""

LONGEST_SECONDS = 3600.0
"""The longest wait for a process that lives, or has not come yet."""

LINGER_SECONDS = 2.0
"""How much later than the others the first process ends: where no agent does, it holds the store that names who was lost."""

BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What the environment says to each process."""


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Within the block the processes that torchrun has started are one; without it, or with one process, this one is alone.

    Those that are not the first show nothing. What all raise alike is raised in the first; the others end with status 1.

    **Raises:** within the block, by what is asked of the group:

    - `WorkerError`: a process was lost.
    """
    if any(name not in os.environ for name in BY_TORCHRUN) or os.environ["WORLD_SIZE"] == "1":
        yield Alone(is_restarted())
        return
    group = _group()
    group.agreed = False
    try:
        with contextlib.nullcontext() if group.is_first else _muted():
            yield group
    except WorkerError:
        atexit.register(_leave, LINGER_SECONDS if group.is_first else 0)
        raise
    except BaseException as error:
        if not group.agreed:
            group.pulse.say(str(error).partition("\n")[0] or type(error).__name__)
        elif not group.is_first:
            sys.exit(1)
        raise


@functools.cache
def _group() -> "Group":
    """The group, which a process joins once and leaves at its end."""
    has_device = torch.cuda.is_available()
    if has_device:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = opened(holds=rank == 0, seconds=LONGEST_SECONDS)
    how: dict[str, Any] = {"store": store, "rank": rank, "world_size": size}
    longest = timedelta(seconds=LONGEST_SECONDS)
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_device else "gloo", timeout=longest, **how)
    group = Group(rank, size)
    atexit.register(dist.destroy_process_group)
    atexit.register(group.pulse.end)
    return group


def is_restarted() -> bool:
    """torchrun has started this process in the place of one that was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _leave(seconds: float) -> None:
    """End without waiting for what a lost process will never answer: the library would, for `LONGEST_SECONDS`."""
    time.sleep(seconds)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(1)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


class Group(World):
    """The processes of torch.distributed's default group.

    **Attributes:**

    - `pulse`: which of them live.
    - `agreed`: they have raised one error together.
    """

    def __init__(self, rank: int, size: int):
        self.rank, self.size, self.restarted = rank, size, is_restarted()
        self.pulse, self.agreed = Pulse(rank, size), False
        self.any(False)  # all are there
        self.pulse.begin()

    def draw_(self, generator: torch.Generator, seed: int, step: int) -> None:
        digest = hashlib.sha256(f"{seed} {step} {self.rank}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def sum_(self, tensors: Sequence[Tensor], number: float) -> float:
        grads = [tensor.grad for tensor in tensors]
        parts = [
            (torch.zeros_like(tensor) if grad is None else grad).flatten().float()
            for tensor, grad in zip(tensors, grads, strict=True)
        ]
        device = parts[0].device
        about = torch.tensor([number, *(grad is not None for grad in grads)], dtype=torch.float32, device=device)
        flat = torch.cat([about, *parts])
        self._done(dist.all_reduce(flat, async_op=True))
        sizes = [len(about), *(tensor.numel() for tensor in tensors)]
        about, *sums = flat.split(sizes)
        for tensor, total, count in zip(tensors, sums, about[1:].tolist(), strict=True):
            tensor.grad = total.view(tensor.shape).to(tensor.dtype) if count else None
        return about[0].item()

    def total(self, number: float) -> float:
        sent = torch.tensor(number, dtype=torch.float64)
        self._done(dist.all_reduce(sent, async_op=True))
        return sent.item()

    def most(self, number: int) -> int:
        sent = torch.tensor(number)
        self._done(dist.all_reduce(sent, dist.ReduceOp.MAX, async_op=True))
        return int(sent)

    def gather_(self, whole: Tensor, own: Tensor) -> None:
        self._done(dist.all_gather_into_tensor(whole, own, async_op=True))

    def any(self, flag: bool) -> bool:
        return self.total(float(flag)) > 0

    def same(self, values: Mapping[str, Any]) -> None:
        every = [json.loads(text) for text in self._gathered(json.dumps(dict(_leaves(values))).encode())]
        first = every[0]
        found = [
            f"rank {rank}: {name} {own.get(name, 'missing')}, rank 0 has {first.get(name, 'none')}"
            for rank, own in enumerate(every)
            for name in {**first, **own}
            if own.get(name) != first.get(name)
        ]
        if found:
            self.agreed = True
            what = "the processes of this run do not do the same"
            do = "the same files, command and versions on every machine"
            raise CompatibilityError(explain(what, found=few(found), do=do))

    def from_first(self, work: Callable[[], Kept | None]) -> Kept | None:
        kept, head = None, dict[str, Any]()
        if self.is_first:
            try:
                kept = work()
                head = {"values": None if kept is None else kept[1]}
            except InlayError as error:
                head = {"raised": type(error).__name__, "text": str(error)}
        head = json.loads(self._sent(json.dumps(head).encode()))
        if "raised" in head:
            self.agreed = True
            raise _again(head)
        if head["values"] is None:
            return None
        tensors = {} if kept is None else {name: tensor.cpu().contiguous() for name, tensor in kept[0].items()}
        return load(self._sent(save(tensors))), head["values"]

    def _sent(self, content: bytes) -> bytes:
        """The bytes of the first process."""
        length = int(self.total(len(content) if self.is_first else 0))
        sent = torch.empty(length, dtype=torch.uint8)
        if self.is_first:
            sent.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self._done(dist.broadcast(sent, 0, async_op=True))
        return sent.numpy().tobytes()

    def _gathered(self, content: bytes) -> list[bytes]:
        """The bytes of each process, by rank."""
        lengths = [torch.zeros((), dtype=torch.long) for _ in range(self.size)]
        self._done(dist.all_gather(lengths, torch.tensor(len(content)), async_op=True))
        longest = int(max(lengths))
        sent = torch.frombuffer(bytearray(content.ljust(longest)), dtype=torch.uint8)
        every = [torch.empty_like(sent) for _ in range(self.size)]
        self._done(dist.all_gather(every, sent, async_op=True))
        return [text.numpy().tobytes()[: int(length)] for text, length in zip(every, lengths, strict=True)]

    def _done(self, work: Any) -> None:
        """Wait for the others, as long as they live.

        **Raises:**

        - `WorkerError`: one does not.
        """
        while True:
            try:
                work.wait(timedelta(seconds=PATIENCE_SECONDS))
                return
            except RuntimeError as error:
                is_late = "timed out" in str(error).lower()
                fault = self.pulse.fault(PATIENCE_SECONDS if is_late else BROKEN_SECONDS)
                if fault or not is_late:
                    raise _lost(fault or str(error)) from None


def _again(head: Mapping[str, str]) -> InlayError:
    """The error that the first process has raised."""
    error: InlayError = getattr(errors, head["raised"])(head["text"])
    return error


def _lost(fault: str) -> WorkerError:
    do = "the same line goes on from the last state with --resume; torchrun --max-restarts 3 does so by itself"
    return WorkerError(explain("a process of this run was lost", found=fault, do=do))


def _leaves(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, str]]:
    """Each value of a tree in words, by its path."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", str(value)
