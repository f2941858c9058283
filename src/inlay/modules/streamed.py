"""Quantised weights that do not fit on the device: each travels there when it is used, two slots taking turns.

    use(k)      wait until weight k has arrived in slot k % 2, and send for its neighbour in the direction of the work
    the way     mapped file -> pinned memory (a thread of its own, so that a page that has to be read delays no kernel)
                -> slot (a stream of its own); a slot is filled again only after the work that read it is done

The passes forward and back walk the layers to and fro, so that two neighbours never share a slot, and the weight that was used
last is there still when the direction turns. What fits stays on the device and does not travel.

No device has confirmed the overlap of copying and computing; the order of events is tested on the processor, where there are
no streams.
"""

import concurrent.futures
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from inlay.errors import ConfigError, explain
from inlay.quant.contract import Matrix, Packed

RESERVED = 0.25
"""Part of the device's memory that is left for adapters, their optimiser and activations."""

_ALIGNMENT = 256
"""Where tensors begin in a slot: as the device's own allocator has it."""


def place(matrices: Sequence[Matrix], others: int, limit: int | None, device: torch.device) -> list[Matrix]:
    """The matrices as they are used on `device`: there altogether where they fit, the last ones streamed where not.

    **Arguments:**

    - `matrices`: mapped, in the order of use.
    - `others`: bytes of the base that are on the device beside them.
    - `limit`: bytes of the device that may be used; None: as many as the matrices need.

    **Raises:**

    - `ConfigError`: not even the rest of the base and two weights fit.
    """
    left = float("inf") if limit is None else (1 - RESERVED) * limit - others
    total = sum(matrix.num_bytes for matrix in matrices)
    if total <= left:
        return [moved(matrix, device) for matrix in matrices]
    slot = max(slot_bytes(matrix) for matrix in matrices)
    left -= 2 * slot
    if left < 0:
        needed = (others + 2 * slot) / (1 - RESERVED)
        raise ConfigError(
            explain(
                "this base does not fit, not even with its weights streamed",
                found=f"{(limit or 0) / 1e9:.1f} GB, at least {needed / 1e9:.1f} GB are needed",
                do=f"--device-memory {-(-needed // 1e9):.0f}GB",
            )
        )
    resident: list[Matrix] = []
    for matrix in matrices:
        left -= matrix.num_bytes
        if left < 0:
            break
        resident.append(moved(matrix, device))
    return resident + Streamer(matrices[len(resident) :], device).matrices


class Streamer:
    """Streams weights through two buffers on a device: one is computed with while the next is copied.

    **Attributes:**

    - `matrices`: the weights over their slots; whoever uses one makes it travel.
    - `num_sent`: how many weights have been sent so far.
    """

    def __init__(self, host: Sequence[Matrix], device: torch.device):
        size = max(slot_bytes(matrix) for matrix in host)
        self._host = host
        self._is_cuda = device.type == "cuda"
        self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._pinned = [torch.empty(size, dtype=torch.uint8, pin_memory=self._is_cuda) for _ in range(2)]
        self._copying = torch.cuda.Stream(device) if self._is_cuda else None
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._holds: list[int | None] = [None, None]
        self._arrivals: list[concurrent.futures.Future[torch.Event | None] | None] = [None, None]
        self._at = -1
        self.num_sent = 0
        self.matrices = [m.over(views(self._slots[k % 2], m.packed)) for k, m in enumerate(host)]
        for k, matrix in enumerate(self.matrices):
            matrix.before_use = functools.partial(self.use, k)

    def use(self, number: int) -> None:
        """Weight `number` is read by the work that is queued next: have it there, and its neighbour on the way."""
        if self._holds[number % 2] != number:
            self._send(number)
        arrival = self._arrivals[number % 2]
        assert arrival is not None, "it was sent for"
        arrived = arrival.result()
        if arrived is not None:
            arrived.wait()  # the work, not this thread
        neighbour = number + (1 if number >= self._at else -1)
        self._at = number
        if 0 <= neighbour < len(self._host) and self._holds[neighbour % 2] != neighbour:
            self._send(neighbour)

    def _send(self, number: int) -> None:
        """Send for weight `number`; its slot is overwritten after the work that has been queued so far."""
        slot = number % 2
        self._holds[slot] = number
        free = torch.cuda.current_stream().record_event() if self._is_cuda else None
        self._arrivals[slot] = self._thread.submit(self._carry, number, free)
        self.num_sent += 1

    def _carry(self, number: int, free: torch.Event | None) -> torch.Event | None:
        """Bring weight `number` into its slot; returns what tells when it is there."""
        slot, packed = number % 2, self._host[number].packed
        if self._copying is None or free is None:
            fill_(self._slots[slot], packed)
            return None
        self._copying.synchronize()  # what was copied from the pinned memory before has left it
        fill_(self._pinned[slot], packed)
        with torch.cuda.stream(self._copying):
            self._copying.wait_event(free)
            size = slot_bytes(self._host[number])
            self._slots[slot][:size].copy_(self._pinned[slot][:size], non_blocking=True)
            return self._copying.record_event()


def moved(matrix: Matrix, device: torch.device) -> Matrix:
    """A weight whose tensors are on the device."""
    return matrix.over({key: tensor.to(device) for key, tensor in matrix.packed.items()})


def _offsets(packed: Packed) -> dict[str, int]:
    """Where each tensor begins in a slot."""
    offsets, end = {}, 0
    for key, tensor in packed.items():
        offsets[key] = end
        end += _aligned(tensor)
    return offsets


def _aligned(tensor: Tensor) -> int:
    """The bytes that a tensor takes in a slot."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def slot_bytes(matrix: Matrix) -> int:
    """What a weight takes in a slot."""
    return sum(map(_aligned, matrix.packed.values()))


def views(slot: Tensor, packed: Packed) -> Packed:
    """The slot's bytes as tensors like those of `packed`."""
    return {
        key: slot[start : start + packed[key].nbytes].view(packed[key].dtype).view(packed[key].shape)
        for key, start in _offsets(packed).items()
    }


def fill_(slot: Tensor, packed: Packed) -> None:
    """Copy the tensors into the slot."""
    for key, view in views(slot, packed).items():
        view.copy_(packed[key])
