"""An answer to every prompt, by a model with an encoder and a decoder, such as T5 or BART.

    {"prompt": "...", "completion": "..."}    for scoring also {"prompt": "...", "references": ["...", "..."]}

    loss = sum over the tokens of the completion, end included, of -log softmax(model(prompt, what came before))[token]

Prompts are given as they are: these models have no chat templates.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from inlay.core.cross_entropy import IGNORE, cross_entropy_sum
from inlay.data import files
from inlay.tasks import _references
from inlay.tasks._encode import answers, check_tokenizer, inputs, text_ids, text_of
from inlay.tasks._encode import padded as filled
from inlay.tasks._padded import Form, KeyedRow, Sample, padded
from inlay.tasks.contract import DEFAULT_NEW_TOKENS, Given, Item, Loaded, Prediction

ROOM = 16
"""An answer may be twice as long as the longest reference, and as many tokens more, but not beyond `DEFAULT_NEW_TOKENS`."""


def _values(value: dict[str, Any]) -> dict[str, Any] | str:
    references = value.get("references") or ([value["completion"]] if "completion" in value else [])
    if "prompt" not in value or not references:
        return f"keys {', '.join(map(str, value)) or 'none'}"
    if not isinstance(value["prompt"], str):
        return f"prompt is {files.what(value['prompt'])}, not a string"
    if not (isinstance(references, list) and all(isinstance(text, str) for text in references)):
        return "completion is not a string, or references not a list of strings"
    completion = value.get("completion", references[0])
    if not isinstance(completion, str):
        return f"completion is {files.what(completion)}, not a string"
    return {"prompt": value["prompt"], "completion": completion, "references": references}


def _sample(row: KeyedRow, base: Loaded) -> Sample:
    check_tokenizer(base.tokenizer)
    labels = tuple(base.tokenizer(text_target=row.values["completion"])["input_ids"])
    end = base.tokenizer.eos_token_id
    return Sample(row, text_ids(base, row.values["prompt"]), labels if labels[-1:] == (end,) else (*labels, end))


def _losses_of(base: Loaded, groups: Sequence[Sequence[Sample]]) -> list[Tensor]:
    samples, sizes = [sample for group in groups for sample in group], [*map(len, groups)]
    given = inputs(base, [s.input_ids for s in samples])
    labels = filled([s.labels for s in samples], IGNORE).to(given["input_ids"].device)
    out = base.model(**given, labels=labels, use_cache=False)  # the model shifts them to make its decoder's input
    return [*map(cross_entropy_sum, out.logits.split(sizes), labels.to(out.logits.device).split(sizes))]


def _answered(base: Loaded, samples: Sequence[Sample], max_new_tokens: int | None) -> tuple[list[list[str]], list[str]]:
    wanted: dict[str, list[str]] = {}
    ids: dict[str, Sample] = {}
    for sample in samples:
        wanted.setdefault(sample.row.prompt, []).extend(sample.row.values["references"])
        ids.setdefault(sample.row.prompt, sample)
    longest = max(len(sample.labels) for sample in samples)
    most = max_new_tokens or min(DEFAULT_NEW_TOKENS, 2 * longest + ROOM)
    replies: dict[str, str] = {}
    for part in SPEC.parts(base, list(ids.values()), None):
        said = answers(base, [sample.input_ids for sample in part], most)
        replies |= dict(zip((sample.row.prompt for sample in part), said, strict=True))
    return list(wanted.values()), [replies[prompt] for prompt in wanted]


def _said(
    base: Loaded, items: Sequence[Item], adapters: Sequence[str | None], max_new_tokens: int | None
) -> list[Prediction]:
    found = answers(base, [item.ids for item in items], max_new_tokens or DEFAULT_NEW_TOKENS)
    return [{"answer": text} for text in found]


def _item(base: Loaded, row: Given) -> Item:
    return Item(text_ids(base, text_of(row, "prompt")))


SPEC = padded(
    Form(
        task="seq2seq",
        keys="prompt and completion",
        example='{"prompt": "...", "completion": "..."}, or prompt and references',
        split_by="prompt",
        values=_values,
        sample=_sample,
        notes=lambda rows: _references.counted((row.values["completion"], row.values["references"]) for row in rows),
        has_two_texts=True,
    ),
    unit="token",
    auto_class="AutoModelForSeq2SeqLM",
    task_type="SEQ_2_SEQ_LM",
    losses_of=_losses_of,
    scores=("bleu", "rouge_l"),
    answered=_answered,
    asked="prompt",
    typed="some prompt",
    generates=True,
    item=_item,
    said=_said,
)
"""Prompts into answers."""
