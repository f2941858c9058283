"""Answers to rows of tokens: greedy or drawn, each row under its own adapter, in as few batches as the model allows.

Rows of unequal length are filled up in front. Most models pass such padding over; a recurrent one may carry it along in its
state (RWKV does), so that a row would be answered otherwise beside a longer one. Each base is tried once; where it minds the
padding, rows of unequal length do not share a batch. A row whose logits are not numbers ends there, and the others go on.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.errors import FormatError, explain, few
from inlay.generation.stopping import stopping
from inlay.model import targets
from inlay.modules import trial

EFFECT = 0.1
"""How far they may differ, as part of what the padding does to them where it is taken for tokens."""


def answers(
    base: Any,
    rows: Sequence[Sequence[int]],
    names: Sequence[str | None],
    stops: Sequence[Sequence[int]],
    pad: int,
    **settings: Any,
) -> list[list[int]]:
    """The new tokens of every row.

    **Arguments:**

    - `rows`: the tokens of each, virtual ones in front; `names`: the adapter of each, or None.
    - `stops`: the tokens that end each row's answer.
    - `pad`: what rows are filled up with.
    - `settings`: of the `generate` of `transformers`.

    **Raises:**

    - `FormatError`: the logits of every row are not numbers; the weight that is NaN is named, if one is. Where some rows have
      such logits, the others are answered, a warning names the rows that are not, and their answers end there.
    """
    said: dict[int, list[int]] = {}
    broken: list[int] = []
    for group in _groups([*map(len, rows)], base):
        watch = _Watch([stops[i][0] if stops[i] else pad for i in group])
        some = [names[i] for i in group]
        with torch.no_grad(), base.using(some[0] if len(set(some)) == 1 else some, brings=True):
            new = _generated(base.model, [rows[i] for i in group], pad, [stops[i] for i in group], watch, settings)
        said |= dict(zip(group, new, strict=True))
        broken += [group[k] for k in sorted(watch.broken)]
    if len(broken) == len(rows):
        base.check_weights()
    if broken:
        _report(broken, names)
    return [said[i] for i in range(len(rows))]


def _groups(lengths: Sequence[int], base: Any) -> list[list[int]]:
    """The numbers of the rows that are answered together: all of them, or those of one length."""
    if len(set(lengths)) == 1 or base.router.takes_padding():
        return [[*range(len(lengths))]]
    return [[i for i, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]


def _generated(
    model: Any,
    rows: Sequence[Sequence[int]],
    pad: int,
    stops: Sequence[Sequence[int]],
    watch: Any,
    settings: dict[str, Any],
) -> list[list[int]]:
    longest, device = max(map(len, rows)), targets.device_of(model)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    more = {"attention_mask": mask, "pad_token_id": pad, **stopping(stops), **settings}
    more["logits_processor"] = [watch, *settings.get("logits_processor", ())]
    return model.generate(input_ids=ids, **more)[:, longest:].tolist()


class _Watch:
    """A logits processor of `transformers` that ends the rows whose scores say nothing, and remembers them."""

    def __init__(self, ends: Sequence[int]):
        self.ends = ends
        self.broken: set[int] = set()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wrong = scores.isnan().any(-1).nonzero().flatten().tolist()
        self.broken.update(wrong)
        if not self.broken:
            return scores
        scores = scores.clone()
        for row in self.broken:
            scores[row] = -torch.inf
            scores[row, self.ends[row]] = 0
        return scores


def _report(broken: Sequence[int], names: Sequence[str | None]) -> None:
    """Say whose answers are none."""
    found = [
        f"NaN among the logits of row {i + 1} ({f'adapter {names[i]}' if names[i] else 'no adapter'})" for i in broken
    ]
    if len(broken) < len(names):
        warnings.warn(f"some rows have no answer: {'; '.join(few(found))}; the others are answered", stacklevel=4)
        return
    raise FormatError(
        explain(
            "this model's output is not a number, so that it has no answer",
            found=[*few(found), "the base's weights or the adapter's are not finite, or too large for this dtype"],
            do="--dtype float32, or fetch the base again",
        )
    )


def minds_padding(model: Any, pad: int) -> bool:
    """The model answers a row otherwise where padding is in front of it."""
    ids = trial.example(model, 2)
    short, filler = ids[:1, :-2], torch.full((1, 2), pad, dtype=ids.dtype, device=ids.device)
    token = int(ids[1, 0])

    def said(rows: Tensor, mask: Tensor) -> Tensor:
        out = model.generate(
            input_ids=rows,
            attention_mask=mask,
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=None,
            logits_processor=[lambda seen, scores: torch.full_like(scores, -torch.inf).index_fill_(1, ids[1, :1], 0.0)],
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert int(out.sequences[0, -1]) == token, "the next token is the same for all"
        return torch.stack([logits[0] for logits in out.logits]).float()

    try:
        with trial.undisturbed(model), torch.no_grad():
            alone = said(short, torch.ones_like(short))
            beside = torch.cat([torch.cat([filler, short], 1), ids[1:]])
            mask = torch.ones_like(beside)
            taken = said(beside, mask)
            mask[0, :2] = 0
            padded = said(beside, mask)
    except Exception:  # any model's code may refuse in any way: its rows are then answered apart
        return True
    error, effect = (padded - alone).abs().max().item(), (taken - alone).abs().max().item()
    allowed = trial.TOLERANCE.get(model.dtype, 1e-3) * alone.abs().max().item()
    return not (error <= allowed or error <= EFFECT * effect)
