"""What a way of combining is: the changes of one module, each with its weight, into one change of low rank.

    delta W_i = scaling_i B_i A_i,   wanted: a combination of w_1 delta W_1, ..., w_n delta W_n,   made: B A

A way is a frozen dataclass; its fields are its settings, which are flags of `inlay combine`. It sees one module at a time, so
that no more than the largest is ever in memory beside the files.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core.routed import Factors
from inlay.methods.contract import require
from inlay.plugins import Contract


class Weighted(NamedTuple):
    """The change of one module by one adapter, and what that counts."""

    factors: Factors
    weight: float

    @property
    def scaled(self) -> Float[Tensor, "out r"]:
        """weight scaling B, in float64."""
        return self.factors.B.double() * (self.weight * self.factors.scaling)


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A change that was made, B A, and how far it is from the one that was wanted."""

    A: Float[Tensor, "r in"]
    B: Float[Tensor, "out r"]
    square_norm: float = 0.0
    """|wanted|^2, the sum of the squares of its entries."""
    square_error: float = 0.0
    """|wanted - B A|^2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way(Contract, abstract=True):
    """A way of combining the changes of one module."""

    num_adapters: ClassVar[int] = 0
    """How many adapters it combines; 0: any number."""
    is_sum: ClassVar[bool] = True
    """It is after a weighted sum, so that tensors of which nothing but that is known go with it."""

    def check(self, weights: Mapping[str, float]) -> None:
        """Refuse what this way has no use for.

        **Raises:**

        - `ConfigError`: it combines another number of adapters, or takes no weights below 0.
        """
        found, name = len(weights), type(self).__name__.lower()
        if self.num_adapters:
            fits = found == self.num_adapters
            require(fits, f"{name} is between {self.num_adapters} adapters", f"{found} of them", "--how svd")
            below = [f"{key}: {weight}" for key, weight in weights.items() if weight < 0]
            require(not below, f"{name} takes weights above 0", ", ".join(below), "--weights 0.5,0.5")

    @abc.abstractmethod
    def merge(self, changes: Sequence[Weighted], generator: torch.Generator) -> Made:
        """One change made of those of all adapters, in float64; one that leaves the module alone has a change of rank 0.

        **Arguments:**

        - `generator`: for whatever is drawn.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncated(Way, abstract=True):
    """A way whose result has a rank to choose."""

    r: int | None = None
    """Rank of the result; without it, the largest rank of those that are combined."""

    def __post_init__(self) -> None:
        check_rank(self.r)

    def rank(self, changes: Sequence[Weighted]) -> int:
        """The rank for a module that these change."""
        return self.r or max(len(change.factors.A) for change in changes)


def check_rank(r: int | None) -> None:
    """Refuse a rank that is none.

    **Raises:**

    - `ConfigError`: it is below 1.
    """
    require(r is None or r >= 1, "r must be at least 1", f"r={r}", "--r 16")


def settings(way: type[Way]) -> list[str]:
    """The names of the settings of a way."""
    return [field.name for field in dataclasses.fields(way)]
