"""How rows lie in a packed pass, for the attention that looks at it.

documents, then branches      the last rows may each continue an earlier one, its parent, which several have in common
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Lying:
    """Rows one after the other.

    **Arguments:**

    - `lengths`: the tokens of each, branches last.
    - `parents`: of each branch the number of the row that it continues.
    - `asked`: the tokens that the head is asked about, where the last layer need not say others; None: all.
    """

    def __init__(self, lengths: Sequence[int], parents: Sequence[int] = (), asked: Tensor | None = None):
        self.lengths, self.parents, self.asked = tuple(lengths), tuple(parents), asked
        self._masks: list[tuple[Tensor, bool]] = []
        """Every attention mask that was seen, and whether it is that of the rows."""

    def runs(self) -> list[int]:
        """The lengths of runs of tokens whose positions count up: models take each for a row."""
        firsts = [0] * (len(self.lengths) - len(self.parents)) + [self.lengths[parent] for parent in self.parents]
        runs, end = list[int](), 0
        for first, length in zip(firsts, self.lengths, strict=True):
            if first and end == first:
                runs[-1] += length
            else:
                runs.append(length)
            end = first + length
        return runs

    def is_of_rows(self, mask: Tensor | None) -> bool:
        """An attention mask lets each token see its run up to itself, and no more; None: no layer's does less."""
        if mask is None:
            return True
        for seen, is_same in self._masks:
            if seen is mask:
                return is_same
        blocks = [torch.ones(n, n, dtype=torch.bool, device=mask.device).tril_() for n in self.runs()]
        is_same = mask.dtype == torch.bool and torch.equal(mask[0, 0], torch.block_diag(*blocks))
        self._masks.append((mask, is_same))
        return is_same
