"""Between two adapters on the great circle: the size of the change stays where a straight mean of unlike changes shrinks it.

    B A = sin((1 - t) a) / sin a delta W_1 + sin(t a) / sin a delta W_2,   a the angle between the two,   t = w_2 / (w_1 + w_2)

The angle is that of the changes of a module, from <delta W_1, delta W_2>, which the factors tell; where it is near 0 or 180
degrees, or one of the two has no change, the mean is straight. Of the best approximation of rank r; exact from the sum of the
ranks on. Source: Shoemake 1985, section 3.3; applied to weights by module as in mergekit.

When not to use it: for more than two adapters, or to add skills: it goes from the one to the other.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from inlay.combine import core_space
from inlay.combine.contract import Made, Truncated, Weighted
from inlay.combine.ways.svd import Svd

SMALLEST = 1e-3
"""The sine of an angle that is taken for one of 0 or 180 degrees: below it, the quotients are rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slerp(Truncated):
    """sin((1 - t) a) / sin a delta W_1 + sin(t a) / sin a delta W_2"""

    num_adapters: ClassVar[int] = 2

    def merge(self, changes: Sequence[Weighted], generator: torch.Generator) -> Made:
        one, other = ((change.factors.B.double(), change.factors.A.double()) for change in changes)
        sizes = math.sqrt(core_space.inner(one, one) * core_space.inner(other, other))
        angle = math.acos(max(-1.0, min(1.0, core_space.inner(one, other) / sizes))) if sizes else 0.0
        t = changes[1].weight / (changes[0].weight + changes[1].weight)
        shares = [1 - t, t]
        if math.sin(angle) > SMALLEST:
            shares = [math.sin(share * angle) / math.sin(angle) for share in shares]
        weighted = [change._replace(weight=share) for change, share in zip(changes, shares, strict=True)]
        return Svd(r=self.r).merge(weighted, generator)
