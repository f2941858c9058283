"""Golden answers: what an adapter and its base said to a few prompts when it was trained, kept and asked again.

    kept     in `inlay.json`: the tokens of each prompt, of the adapter's greedy answer, and of the base's
    asked    each answer is put after its prompt, and at each of its tokens none may have a logit that is higher by more than
             rounding: other processors and dtypes add up in another order, so that of two tokens that are all but equally
             likely the other one may win, and a different answer would follow from there

The prompts are ours and not rows of the data, which may be nobody else's business.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from inlay.base.base import Base
from inlay.generation.answers import answers
from inlay.generation.sampling import Sampling
from inlay.generation.sequence import Request
from inlay.text.template import prompt_ids

KEY, PARTS = "golden", ("prompts", "answers", "base")
"""What `inlay.json` calls them, and their parts."""

PROMPTS = (
    "Who are you, and what can you do?",
    "The ferry leaves at nine, and whoever misses it",
    "name: Ada | colour: green | count: seven",
    "1, 2, 3, 4,",
)
"""What is asked."""

NEW_TOKENS = 12
"""How long an answer is at most."""

ROUNDING = {torch.float32: 2.0**-10, torch.bfloat16: 2.0**-4, torch.float16: 2.0**-7}
"""By how much of the largest logit two may differ and count as equal: eight units in the last place of a dtype for bfloat16 and
float16, whose layers round each; as far as sums in another order were seen to go for float32."""


class Found(NamedTuple):
    """What came of golden answers."""

    asked: int
    same: int
    """How many of the adapter's answers are those that were kept."""
    base_same: int
    """How many of the base's."""
    told_apart: int
    """To how many prompts the base would not answer as the adapter did."""


def kept(base: Base, name: str) -> dict[str, Any]:
    """What `inlay.json` keeps, of an adapter that is attached; empty where its base does not continue prompts, or a prompt
    has no answer."""
    if not base.spec.continues:
        return {}
    prompts = [prompt_ids(base.tokenizer, text, raw=base.asks_raw(text, name)) for text in PROMPTS]
    if base.max_length is not None:
        room = base.max_length - base.adapters[name].num_virtual - NEW_TOKENS
        prompts = [prompt for prompt in prompts if len(prompt) <= room]
    if not prompts:
        return {}
    requests = [
        Request(
            tokens=tuple(prompt),
            adapter=None if adapter is None else base.adapters[adapter],
            sampling=Sampling(),
            max_new_tokens=NEW_TOKENS,
            stops=tuple(base.stop_ids(adapter)),
            seed=0,
        )
        for adapter in (name, None)
        for prompt in prompts
    ]
    said = answers(base, requests)
    if not all(said):  # an answer ends with a token, but for one whose logits are no numbers
        return {}
    return {"prompts": prompts, "answers": said[: len(prompts)], "base": said[len(prompts) :]}


def asked(base: Base, name: str, golden: Mapping[str, Sequence[Sequence[int]]]) -> Found:
    """What an adapter that is attached, and its base, say now."""
    prompts, own, plain = golden["prompts"], golden["answers"], golden["base"]
    return Found(
        len(prompts),
        sum(_says(base, name, *pair) for pair in zip(prompts, own, strict=True)),
        sum(_says(base, None, *pair) for pair in zip(prompts, plain, strict=True)),
        sum(not _says(base, None, *pair) for pair in zip(prompts, own, strict=True)),
    )


def _says(base: Base, name: str | None, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """This is what is said to a prompt, up to rounding."""
    tokens = torch.tensor([[*prompt, *answer]], device=base.model.device)
    logits = base.logits(tokens, name)[0, -len(answer) - 1 : -1].float()
    said = logits.gather(-1, tokens[0, -len(answer) :, None])[:, 0]
    return bool((logits.amax(-1) - said <= ROUNDING[base.dtype] * logits.abs().amax()).all())
