"""Where rows come from, without a text for each."""

import bisect
from array import array


class Places:
    """Where rows come from, in 8 bytes each: the number of a row in its file, whose name is kept once."""

    def __init__(self) -> None:
        self._numbers, self._firsts, self._names = array("q"), array("q"), list[str]()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> str:
        return f"{self._names[bisect.bisect_right(self._firsts, row) - 1]}:{self._numbers[row]}"

    def add(self, place: str) -> None:
        """The next row is from this place, such as train.jsonl:12."""
        name, _, number = place.rpartition(":")
        if not self._names or name != self._names[-1]:
            self._firsts.append(len(self._numbers))
            self._names.append(name)
        self._numbers.append(int(number))
