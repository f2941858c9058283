"""Where keys and values of earlier tokens lie: blocks of a fixed number of tokens, given out, shared and taken back.

    block of token t of a sequence = sequence.blocks[t // SIZE],   its place within it = t % SIZE

A full block is known by what is in it: the adapter that made it, and all tokens up to its end. A sequence that begins with the
same tokens under the same adapter takes it over as it is. A block that nobody uses any more keeps what it holds until it is
needed for something else, the one that was used last the longest.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence as Many

from inlay.generation.sequence import Sequence
from inlay.kernels import cache

SIZE = cache.BLOCK
"""Tokens of a block."""


class Blocks:
    """The blocks of a cache: which are free, and what those that are known hold.

    **Arguments:**

    - `count`: how many there are.
    """

    def __init__(self, count: int):
        self.count = count
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(count))
        """Those that nobody uses; the first is taken next."""
        self._users = [0] * count
        self._known: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """How many nobody uses."""
        return len(self._free)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence the blocks that its first `num_tokens` need; False, and nothing is given, where there are too few."""
        needed = -(-num_tokens // SIZE) - len(sequence.blocks)
        if needed > len(self._free):
            return False
        for _ in range(needed):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._users[block] = 1
            sequence.blocks.append(block)
        return True

    def release(self, sequence: Sequence) -> None:
        """Take a sequence's blocks back. The last are needed soonest: who begins alike needs the first ones."""
        for block in reversed(sequence.blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free[block] = None
                if block not in self._keys:
                    self._free.move_to_end(block, last=False)
        sequence.blocks = []
        sequence.num_computed = 0

    def share(self, sequence: Sequence, owner: bytes) -> None:
        """Give a sequence that has no blocks those that hold its first tokens already.

        One token at least is left to compute, since the next one's logits are asked for; more where logits of the prompt are.

        **Arguments:**

        - `owner`: what else decides the keys and values: the adapter, as it is now.
        """
        most = len(sequence.tokens) - 1 if sequence.request.prompt_logprobs is None else 0
        for key in _keys_of(owner, sequence.tokens[:most]):
            block = self._known.get(key)
            if block is None:
                return
            self._free.pop(block, None)
            self._users[block] += 1
            sequence.blocks.append(block)
            sequence.num_computed += SIZE

    def note(self, sequence: Sequence, owner: bytes) -> None:
        """Remember what the full blocks of a sequence hold."""
        num_full = sequence.num_computed // SIZE
        if all(block in self._keys for block in sequence.blocks[:num_full]):
            return
        for block, key in zip(sequence.blocks, _keys_of(owner, sequence.tokens[: num_full * SIZE]), strict=False):
            if key not in self._known and block not in self._keys:
                self._known[key], self._keys[block] = block, key

    def _forget(self, block: int) -> None:
        if (key := self._keys.pop(block, None)) is not None:
            del self._known[key]

    def problems(self, sequences: Many[Sequence]) -> list[str]:
        """What does not add up when these are all that have blocks."""
        users = [0] * self.count
        for sequence in sequences:
            for block in sequence.blocks:
                users[block] += 1
        wrong = [f"block {b}: {n} users, {self._users[b]} known" for b, n in enumerate(users) if n != self._users[b]]
        wrong += [f"block {b} is free and used" for b in self._free if users[b]]
        wrong += [f"block {b} is neither free nor used" for b, n in enumerate(users) if not n and b not in self._free]
        return wrong + [f"block {b} is known as another" for b, key in self._keys.items() if self._known.get(key) != b]


def _keys_of(owner: bytes, tokens: Many[int]) -> list[bytes]:
    """The keys of the full blocks of a sequence: of each, a digest of all tokens up to its end."""
    keys, before = [], owner
    for start in range(0, len(tokens) - SIZE + 1, SIZE):
        part = ",".join(map(str, tokens[start : start + SIZE]))
        before = hashlib.blake2b(before + b"|" + part.encode(), digest_size=16).digest()
        keys.append(before)
    return keys
