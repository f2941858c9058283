"""Rows that say nearly the same, in linear time: MinHash of what their texts are made of, compared by bands.

    J(x, y) = |S(x) & S(y)| / |S(x) | S(y)|          S(x): the windows of `WINDOW` bytes of a text in small letters, hashed
    P(min over S(x) of h_i = min over S(y) of h_i) = J         for hashes h_i, drawn once

`NUM_HASHES` minima are a row's signature; two rows meet if the `NUM_HASHES / NUM_BANDS` minima of some band are the same,
and are near if `NEAR` of all minima are. Source: Broder 1997, "On the resemblance and containment of documents"; bands as
in Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4. With 8 bands of 4, rows of J = 0.9 meet with
probability 0.9999, rows of 0.5 with 0.4, and are then told apart by their signatures.

Windows are bytes, so that no language needs words; a quarter of them, by their hash, is enough. Windows that many rows have
are what a prompt says to all of them, and count for none. A row takes `NUM_HASHES` bytes and four for each band; beyond
`MOST_ROWS` rows no more are compared, and it is said.
"""

from collections.abc import Sequence

import numpy as np

WINDOW = 16
"""Bytes, three words or so."""

NUM_HASHES, NUM_BANDS = 32, 8

NEAR = 0.75
"""Part of the minima that near rows share, which is J but for some chance: that of rows of J = 0.9 is within 0.1 of it."""

MIN_WINDOWS = 8
"""A text with fewer windows of its own, some 50 bytes, is too short to be nearly another."""

MOST_BYTES = 1 << 16
"""Of a longer text the beginning is compared."""

LEARNED_ROWS, COMMON, MIN_COMMON = 1_000, 0.1, 20
"""A window that more than this part of the first rows has, and more than so many of them, says nothing of a row."""

MOST_ROWS = 1 << 22
"""As many rows are compared, in 0.3 GB."""

_AT_ONCE = 1 << 18
"""Bytes of text whose windows are made at a time, unless a row alone is longer."""

_RANDOM = np.random.default_rng(1997)
_FACTORS = _RANDOM.integers(0, 1 << 63, NUM_HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
_LEFT, _RIGHT, _MIX = (np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93))

_Windows = tuple[np.ndarray, np.ndarray]
"""(The rows that windows are of, in order, the windows' hashes)."""


class Near:
    """Signatures of rows as they come, and which of them are near another."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_beyond = 0
        """Rows that were not compared, as there were too many."""
        self._numbers: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []
        self._bands: list[np.ndarray] = []
        self._waiting: list[_Windows] | None = []
        self._common = np.empty(0, np.uint64)

    def add(self, texts: Sequence[str]) -> None:
        """The next rows."""
        room = max(0, MOST_ROWS - self.num_rows)
        self.num_beyond += max(0, len(texts) - room)
        encoded = [text[:MOST_BYTES].lower().encode()[:MOST_BYTES] for text in texts[:room]]
        first, size = 0, 0
        for i, text in enumerate(encoded):
            size += len(text)
            if size > _AT_ONCE or i + 1 == len(encoded):
                self._take(_windows(encoded[first : i + 1], self.num_rows + first))
                first, size = i + 1, 0
        self.num_rows += len(encoded)
        if self.num_rows >= LEARNED_ROWS:
            self._learn()

    def pairs(self) -> list[tuple[int, int]]:
        """(A row, an earlier row that it is near), once for each such row."""
        self._learn()
        if not self._numbers:
            return []
        numbers, signatures, bands = map(np.concatenate, (self._numbers, self._signatures, self._bands))
        found: dict[int, int] = {}
        for band in bands.T:
            order = np.argsort(band, kind="stable")  # rows of one band then lie side by side, the earlier first
            same = np.flatnonzero(band[order[1:]] == band[order[:-1]])
            one, other = order[same], order[same + 1]
            near = (signatures[one] == signatures[other]).mean(axis=1) >= NEAR
            for earlier, later in zip(numbers[one[near]].tolist(), numbers[other[near]].tolist(), strict=True):
                found[later] = min(earlier, found.get(later, earlier))
        return sorted(found.items())

    def _take(self, windows: _Windows) -> None:
        if self._waiting is None:
            self._sketch(*windows)
        else:
            self._waiting.append(windows)

    def _learn(self) -> None:
        """Find out which windows are every row's, by the rows that came so far; once."""
        waiting, self._waiting = self._waiting, None
        if not waiting:
            return
        each = [np.unique(np.stack([rows.astype(np.uint64), own], axis=1), axis=0)[:, 1] for rows, own in waiting]
        hashes, counts = np.unique(np.concatenate(each), return_counts=True)
        self._common = hashes[counts > max(MIN_COMMON, COMMON * self.num_rows)]
        for windows in waiting:
            self._sketch(*windows)

    def _sketch(self, rows: np.ndarray, hashes: np.ndarray) -> None:
        """Keep the signatures of rows that have windows enough."""
        if len(self._common):
            at = np.minimum(np.searchsorted(self._common, hashes), len(self._common) - 1)
            own = self._common[at] != hashes
            rows, hashes = rows[own], hashes[own]
        if not len(rows):
            return
        starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
        long = np.diff(np.r_[starts, len(rows)]) >= MIN_WINDOWS
        if not long.any():
            return
        minima = [np.minimum.reduceat((hashes * factor) >> np.uint64(32), starts)[long] for factor in _FACTORS]
        self._numbers.append(rows[starts][long])
        self._signatures.append(np.stack([values.astype(np.uint8) for values in minima], axis=1))
        size = NUM_HASHES // NUM_BANDS
        bands = [_folded(minima[start : start + size]) for start in range(0, NUM_HASHES, size)]
        self._bands.append(np.stack(bands, axis=1))


def _folded(values: Sequence[np.ndarray]) -> np.ndarray:
    """One number of 32 bits for several of each row."""
    total = np.zeros_like(values[0])
    for value in values:
        total = (total ^ value) * _MIX
    return (total >> np.uint64(32)).astype(np.uint32)


def _windows(texts: Sequence[bytes], first: int) -> _Windows:
    """The windows of some texts that are looked at, the first of which is row `first`."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    data = b"".join(texts)
    if len(data) < WINDOW:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    words = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
    hashes = words[: -WINDOW // 2] * _LEFT + words[WINDOW // 2 :] * _RIGHT
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    at = np.flatnonzero(hashes < np.uint64(1 << 62))
    ends = np.cumsum(lengths)
    rows = np.searchsorted(ends, at, side="right")
    inside = at + WINDOW <= ends[rows]
    return first + rows[inside], hashes[at[inside]]
