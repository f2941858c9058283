"""Sequences whose items are read where they are asked for, so that they need not be held."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import TypeVar, overload

Held = TypeVar("Held")


class OnDisk(Sequence[Held]):
    """Things that are read where they are asked for; a part of them, as a slice gives it, is a list."""

    @abc.abstractmethod
    def at(self, number: int) -> Held:
        """One of them, by a number from 0 on."""

    @overload
    def __getitem__(self, number: int) -> Held: ...

    @overload
    def __getitem__(self, number: slice) -> list[Held]: ...

    def __getitem__(self, number: int | slice) -> Held | list[Held]:
        found = range(len(self))[number]
        return self.at(found) if isinstance(found, int) else [self.at(i) for i in found]


@dataclasses.dataclass(frozen=True)
class Picked(OnDisk[Held]):
    """Some of them, in an order of their own."""

    of: OnDisk[Held]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, number: int) -> Held:
        return self.of.at(self.numbers[number])
