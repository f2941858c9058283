"""What is left of an adapter's change once merged weights are rounded to the dtype of the files.

    part = <round(W + D) - W, D> / <D, D>        over some rows of every adapted weight W and its change D

A weight of bfloat16 stays what it is where its change is less than half of the distance to its neighbour, 2^-9 of it: a tiny
change may be lost wholly, and the logits can hardly tell, since there is little to compare. Not done: of a parameter that holds
several maps, those beyond the first; and quantised weights, whose rounding is of another kind.
"""

import warnings

import torch

from inlay.base.base import Base
from inlay.errors import CompatibilityError, explain
from inlay.model.adapter import Adapter
from inlay.modules.frozen import QuantizedLinear

ROWS = 64
"""Rows of each weight that are looked at, spread over all."""

LEAST, WHOLE = 0.1, 0.9
"""Below the first part a merge is refused, below the second it says so."""

NARROW = (torch.bfloat16, torch.float16)


def check_survives(base: Base, adapter: Adapter) -> None:
    """Refuse to merge a change that rounding erases, and say what part is left of one that it erases in part.

    **Raises:**

    - `CompatibilityError`: next to nothing would be left of it.
    """
    part = surviving(base, adapter)
    if part is None or part >= WHOLE:
        return
    dtype = str(base.checkpoint.dtype).removeprefix("torch.")
    if part >= LEAST:
        warnings.warn(
            f"rounding to {dtype} leaves {100 * part:.0f} % of what {adapter.name} changes in the weights", stacklevel=4
        )
        return
    raise CompatibilityError(
        explain(
            f"rounding to {dtype} would erase this adapter's change of the weights",
            found=f"{adapter.name}: {max(0.0, 100 * part):.0f} % of its change would be left",
            do="keep the adapter apart: --adapter works with every command; or merge into a checkpoint of float32",
        )
    )


@torch.no_grad()
def surviving(base: Base, adapter: Adapter) -> float | None:
    """The part, see above; None where nothing is rounded, or nothing is changed."""
    dtype, kept, whole = base.checkpoint.dtype, 0.0, 0.0
    for path, linear in base.maps.items() if dtype in NARROW else ():
        if not adapter.at(path) or isinstance(linear.module, QuantizedLinear):
            continue
        matrix = linear.one.matrix
        assert isinstance(matrix, torch.Tensor), "a weight that is not quantised is a tensor"
        for start in range(0, len(matrix), max(1, len(matrix) // ROWS)):
            old = matrix[start : start + 1].to(torch.float32).cpu()
            new, _ = adapter.merged(path, old, None, start)
            change = new.double() - old
            kept += ((new.to(dtype).double() - old.to(dtype)) * change).sum().item()
            whole += change.square().sum().item()
    return kept / whole if whole else None
