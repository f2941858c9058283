"""Who runs in the next step, and with how many tokens.

Sequences that decode go first, a token each. What is left of the step's tokens goes to prompts, in the order in which they
came, so that a long one is computed in parts beside the others. Where blocks run out, the sequence that came last gives its own
up and waits again; what it had is computed anew, so that no answer changes by it.
"""

from collections import deque
from collections.abc import Callable

from inlay.generation.blocks import SIZE, Blocks
from inlay.generation.sequence import Sequence


class Scheduler:
    """The sequences that wait and those that run.

    **Arguments:**

    - `blocks`: where keys and values lie.
    - `owner`: (a sequence) -> what decides its keys and values beside its tokens; see `Blocks.share`.
    - `max_rows`: how many sequences run at a time.
    - `max_tokens`: how many tokens a step has at most.
    """

    def __init__(self, blocks: Blocks, owner: Callable[[Sequence], bytes], *, max_rows: int, max_tokens: int):
        self.blocks, self._owner = blocks, owner
        self.max_rows, self.max_tokens = max_rows, max_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        """In the order in which they came."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out that is over, wherever it stands."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self.blocks.release(sequence)

    def step(self) -> list[tuple[Sequence, int]]:
        """The sequences of the next step, with how many of their tokens to compute; each has blocks for these."""
        chosen: list[tuple[Sequence, int]] = []
        decoding = [one for one in self.running if one.num_missing == 1]
        left, num_waiting = self.max_tokens, len(self.waiting)
        for sequence in [*decoding, *(one for one in self.running if one.num_missing > 1)]:
            count = min(sequence.num_missing, left)
            if sequence in self.running and count and self._has_room(sequence, count, chosen):
                chosen.append((sequence, count))
                left -= count
        is_full = len(self.waiting) > num_waiting  # who gave its blocks up would only take them again
        while self.waiting and left and len(self.running) < self.max_rows and not is_full:
            sequence = self.waiting[0]
            self.blocks.share(sequence, self._owner(sequence))
            count = min(sequence.num_missing, left)
            if not self.blocks.grow(sequence, sequence.num_computed + count):
                self.blocks.release(sequence)
                break
            self.running.append(self.waiting.popleft())
            chosen.append((sequence, count))
            left -= count
        return chosen

    def computed(self, sequence: Sequence, count: int) -> None:
        """A step is over: so many more tokens of a sequence have keys and values."""
        before = sequence.num_computed // SIZE
        sequence.num_computed += count
        if sequence.num_computed // SIZE > before:
            self.blocks.note(sequence, self._owner(sequence))

    def _has_room(self, sequence: Sequence, count: int, chosen: list[tuple[Sequence, int]]) -> bool:
        """Find blocks for more tokens of a sequence, at the cost of those that came after it; itself in the end."""
        while not self.blocks.grow(sequence, sequence.num_computed + count):
            last = max(self.running, key=lambda one: one.number)
            self._preempt(last)
            chosen[:] = [(one, n) for one, n in chosen if one is not last]
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence)
        sequence.num_preempted += 1
        at = next((i for i, one in enumerate(self.waiting) if one.number > sequence.number), len(self.waiting))
        self.waiting.insert(at, sequence)
