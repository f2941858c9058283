"""The way of `transformers` to answers, for models that the engine does not compute: those that keep a state, say.

Rows of unequal length are filled up in front. Most models pass such padding over; a recurrent one may carry it along in its
state (RWKV does), so that a row would be answered otherwise beside a longer one. Each base is tried once; where it minds the
padding, rows of unequal length do not share a batch.
"""

from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor

from inlay.generation.sequence import Sequence
from inlay.generation.stopping import stopping
from inlay.layout import targets
from inlay.modules import trial

EFFECT = 0.1
"""How far they may differ, as part of what the padding does to them where it is taken for tokens."""

SETTINGS = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
"""Of the `generate` of `transformers`: each one is said, so that no file of the model decides it."""


def answer_(base: Any, sequences: Many[Sequence], streamer: Any) -> None:
    """Answer some requests, in as few batches as the model allows; a streamer hears of the only one."""
    for group in _groups([sequence.num_prompt for sequence in sequences], base):
        _answer_together_(base, [sequences[i] for i in group], streamer)


def _answer_together_(base: Any, sequences: Many[Sequence], streamer: Any) -> None:
    longest, device, pad = max(one.num_prompt for one in sequences), targets.device_of(base.model), base.pad_token
    ids = torch.tensor([[pad] * (longest - one.num_prompt) + one.tokens for one in sequences], device=device)
    mask = torch.tensor([[0] * (longest - one.num_prompt) + [1] * one.num_prompt for one in sequences], device=device)
    names = [one.request.adapter.name if one.request.adapter else None for one in sequences]
    with torch.no_grad(), base.using(names[0] if len(set(names)) == 1 else names, brings=True):
        base.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sequences[0].request.max_new_tokens,
            logits_processor=[_Choice(sequences, pad)],
            streamer=streamer,
            pad_token_id=pad,
            **stopping([one.request.stops for one in sequences]),
            **SETTINGS,
        )


class _Choice:
    """A logits processor of `transformers` that leaves each sequence the token that it takes next."""

    def __init__(self, sequences: Many[Sequence], pad: int):
        self.sequences, self.pad = sequences, pad

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = []
        for one, logits in zip(self.sequences, scores, strict=True):
            if one.ending is None:
                one.extend(logits.float())
            ends = one.request.stops
            tokens.append(one.tokens[-1] if one.ending != "error" else ends[0] if ends else self.pad)
        chosen = torch.tensor(tokens, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def _groups(lengths: Many[int], base: Any) -> list[list[int]]:
    """The numbers of the rows that are answered together: all of them, or those of one length."""
    if len(set(lengths)) == 1 or base.router.takes_padding():
        return [[*range(len(lengths))]]
    return [[i for i, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))]


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
