"""Answers to requests, each under its own adapter: by the engine, or by the `generate` of `transformers` where that is no way.

An answer whose logits are not numbers ends there, and the others go on.
"""

import warnings
from collections.abc import Sequence as Many
from typing import Any

import torch

from inlay.errors import FormatError, explain, few
from inlay.generation import padded
from inlay.generation.blocks import SIZE
from inlay.generation.engine import MAX_ROWS, Engine, problem_of
from inlay.generation.sequence import Request, Sequence


def answers(base: Any, requests: Many[Request], streamer: Any = None) -> list[list[int]]:
    """The new tokens of every request; a streamer hears of them where there is one request.

    **Raises:**

    - `FormatError`: the logits of every row are not numbers; the weight that is NaN is named, if one is. Where some rows have
      such logits, the others are answered, a warning names the rows that are not, and their answers end there.
    """
    if problem_of(base.model, base.router) is None:
        sequences = _answered(base, requests, streamer)
    else:
        sequences = [Sequence(request, number) for number, request in enumerate(requests)]
        padded.answer_(base, sequences, streamer)
    broken = [number for number, sequence in enumerate(sequences) if sequence.ending == "error"]
    if len(broken) == len(requests):
        base.check_weights()
    if broken:
        adapters = [request.adapter for request in requests]
        _report(broken, [adapter.name if adapter else None for adapter in adapters])
    return [sequence.answer for sequence in sequences]


def _answered(base: Any, requests: Many[Request], streamer: Any) -> list[Sequence]:
    """The sequences of requests, all over."""
    sequences = [Sequence(request, number) for number, request in enumerate(requests)]
    needed = sorted((-(-one.most_tokens // SIZE) * SIZE for one in sequences), reverse=True)
    engine = Engine(base.model, base.router, cache_tokens=sum(needed[:MAX_ROWS]))
    if streamer is not None:
        streamer.put(torch.tensor([sequences[0].tokens]))
    for sequence in sequences:
        engine.enter(sequence)
    while len(engine.scheduler):
        grown = engine.step()
        if streamer is not None:
            for sequence in grown:
                streamer.put(torch.tensor(sequence.answer[-1:]))
    if streamer is not None:
        streamer.end()
    return sequences


def _report(broken: Many[int], names: Many[str | None]) -> None:
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
