"""Whether a base that is to say the next token sees only the tokens before it.

`transformers` loads many models as causal language models that are none: BERT, RoBERTa and their like unless their
configuration has `is_decoder`, XLNet, models whose attention was made bidirectional. Trained as such they learn to copy the
token that they are asked for, and the loss of doing so looks excellent. Names and settings that say so are many, so the model
is asked.

    logits[: t] of (kept, changed one way) = logits[: t] of (kept, changed another way),   t tokens are kept

Both rows are asked in one call. Where they differ, by the position in the batch, or because a mixture sends other groups of
tokens through its parts, calls of one shape decide: the movement of the first row with its own later tokens is measured against
the one that comes of changing the second row, of which the first sees nothing.

It is asked where it is first of use, before training, evaluation and answers, not on loading: of a large model the first pass
reads every weight from its file.
"""

import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inlay.errors import CompatibilityError, explain
from inlay.layout import targets
from inlay.modules.trial import watching_for_nan

NUM_KEPT, NUM_CHANGED = 5, 6
"""Tokens of a row; 5 is no multiple of the blocks in which some models attend."""

SMALLEST = {torch.float32: 1e-5}
"""How far the logits of kept tokens may always move, as part of the largest."""

SMALLEST_NARROW = 2.0**-9
"""The same in dtypes narrower than float32: less than the rounding of one number in bfloat16."""

ROUNDINGS = 3
"""A movement of so many times that which comes of changing another row is no rounding."""

MOST_TOKENS = 1 << 10
"""Tokens of larger numbers are not tried."""

_moves: weakref.WeakKeyDictionary[nn.Module, float | None] = weakref.WeakKeyDictionary()


def check_causal(
    model: Any, dtype: torch.dtype, special: Collection[int], name: str, refuse_nan: Callable[[], object]
) -> None:
    """Refuse to take for a causal language model what sees the tokens that it is asked for. A model is asked once.

    **Arguments:**

    - `model`: without adapters, which computes in `dtype`.
    - `special`: tokens that it may treat in a way of their own, such as padding.
    - `name`: what it is called in a message.
    - `refuse_nan`: called where the output of one of its layers is no number; it raises where a weight is the reason.

    **Raises:**

    - `CompatibilityError`: logits of earlier tokens move with a later one.
    - what `refuse_nan` raises.
    """
    if targets.device_of(model).type == "meta":
        return  # an outline computes nothing
    if model not in _moves:
        with torch.no_grad(), watching_for_nan(model) as broken:
            moved = _movement(model, dtype, special)
        if broken:  # attention may take such a score for one that is masked, and the answer is made of numbers
            refuse_nan()
        _moves[model] = moved
    moved = _moves[model]
    if moved is None:
        return
    switch = "; is_decoder is not set in its config.json" if getattr(model.config, "is_decoder", None) is False else ""
    raise CompatibilityError(
        explain(
            "this model sees the tokens that it is to predict: it is no causal language model",
            found=f"{name} ({type(model).__name__}): logits move by {moved:.2g} of the largest when nothing but later tokens "
            f"changes{switch}",
            do="--task sequence-classification, token-classification or embedding, which encoders are for",
        )
    )


def _movement(model: Any, dtype: torch.dtype, special: Collection[int]) -> float | None:
    """How far logits of kept tokens move, as part of the largest; None where they don't, or the model can't be asked."""
    rows = _rows(getattr(model.config.get_text_config(), "vocab_size", None), special)
    if rows is None:
        return None
    one, other = rows
    try:
        both = _logits(model, [one, other])
        if not _distance(both[1], both[0]) > SMALLEST.get(dtype, SMALLEST_NARROW):  # or not a number: refused elsewhere
            return None
        first = _logits(model, [one, one])[0]
        moved = _distance(_logits(model, [other, one])[0], first)
        return moved if moved > ROUNDINGS * _distance(both[0], first) else None
    except Exception:  # any model's code may refuse in any way; what calls it next then says how
        return None


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows kept vocab"]:
    """Those of the kept tokens."""
    ids = torch.tensor(rows, device=targets.device_of(model))
    return model(input_ids=ids, use_cache=False).logits[:, :NUM_KEPT].float()


def _distance(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


def _rows(vocabulary: Any, special: Collection[int]) -> tuple[list[int], list[int]] | None:
    """Two rows of tokens, none of them special, of which the first `NUM_KEPT` are the same and the others are not."""
    if not isinstance(vocabulary, int):
        return None
    known = [token for token in range(min(vocabulary, MOST_TOKENS)) if token not in special]
    if len(known) < 2:
        return None
    length = NUM_KEPT + NUM_CHANGED
    step, shift = max(1, len(known) // (2 * length)), NUM_CHANGED if len(known) > 2 * length else 1
    positions = [list(range(NUM_KEPT)) + [NUM_KEPT + i + by for i in range(NUM_CHANGED)] for by in (0, shift)]
    one, other = ([known[step * position % len(known)] for position in row] for row in positions)
    return one, other
