"""An answer to every prompt, by a model with an encoder and a decoder, such as T5 or BART.

    {"prompt": "...", "completion": "..."}    for scoring also {"prompt": "...", "references": ["...", "..."]}

    loss = sum over the tokens of the completion, end included, of -log softmax(model(prompt, what came before))[token]

Prompts are given as they are: these models have no chat templates. Scores: BLEU as in `inlay.evaluation.score`; ROUGE-L, the F
measure of rouge-score without stemming, of each answer against the reference that is nearest to it, from 0 to 1.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from inlay.base.base import DEFAULT_NEW_TOKENS, Base
from inlay.base.encode import answers, inputs, padded, text_ids
from inlay.core.cross_entropy import IGNORE, cross_entropy_sum
from inlay.data import files
from inlay.evaluation.score import bleu
from inlay.model.attach import Rows
from inlay.training.data import check_tokenizer
from inlay.training.tasks._padded import KeyedRow, PaddedTask, Sample

ROOM = 16
"""An answer may be twice as long as the longest reference, and as many tokens more, but not beyond `DEFAULT_NEW_TOKENS`."""


class Seq2Seq(PaddedTask):
    """Prompts into answers."""

    name: ClassVar[str] = "seq2seq"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    task_type: ClassVar[str] = "SEQ_2_SEQ_LM"
    unit: ClassVar[str] = "token"
    has_answers: ClassVar[bool] = True
    keys: ClassVar[str] = "prompt and completion"
    example: ClassVar[str] = '{"prompt": "...", "completion": "..."}, or prompt and references'
    split_by: ClassVar[str] = "prompt"

    def row(self, value: dict[str, Any]) -> dict[str, Any] | str:
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

    def sample(self, row: KeyedRow, base: Base) -> Sample:
        check_tokenizer(base.tokenizer)
        labels = tuple(base.tokenizer(text_target=row.values["completion"])["input_ids"])
        end = base.tokenizer.eos_token_id
        return Sample(row, text_ids(base, row.values["prompt"]), labels if labels[-1:] == (end,) else (*labels, end))

    def length(self, sample: Sample) -> int:
        return max(len(sample.input_ids), len(sample.labels))

    def num_tokens(self, samples: Sequence[Sample]) -> int:
        return sum(len(sample.input_ids) + len(sample.labels) for sample in samples)

    def loss_of(self, base: Base, samples: Sequence[Sample]) -> Tensor:
        logits = self.logits(base, samples)
        return cross_entropy_sum(logits, padded([s.labels for s in samples], IGNORE).to(logits.device))

    def logits(self, base: Base, samples: Sequence[Sample]) -> Tensor:
        """What the model says of each next token of the completions (rows, t, vocabulary)."""
        given = inputs(base, [s.input_ids for s in samples])
        labels = padded([s.labels for s in samples], IGNORE).to(given["input_ids"].device)
        return base.model(
            **given, labels=labels, use_cache=False
        ).logits  # the model shifts them to make its decoder's input

    @torch.no_grad()
    def scores(
        self, base: Base, rows: Rows, samples: Sequence[Sample], max_new_tokens: int | None = None
    ) -> dict[str, float]:
        from rouge_score.rouge_scorer import RougeScorer

        wanted: dict[str, list[str]] = {}
        ids: dict[str, Sample] = {}
        for sample in samples:
            wanted.setdefault(sample.row.prompt, []).extend(sample.row.values["references"])
            ids.setdefault(sample.row.prompt, sample)
        longest = max(len(sample.labels) for sample in samples)
        most = max_new_tokens or min(DEFAULT_NEW_TOKENS, 2 * longest + ROOM)
        replies: dict[str, str] = {}
        with base.using(rows):
            for part in self.parts(base, list(ids.values()), None):
                said = answers(base, [sample.input_ids for sample in part], most)
                replies |= dict(zip((sample.row.prompt for sample in part), said, strict=True))
        scorer = RougeScorer(["rougeL"], use_stemmer=False)
        rouge = [
            max(scorer.score(reference, replies[prompt])["rougeL"].fmeasure for reference in references)
            for prompt, references in wanted.items()
        ]
        texts = [replies[prompt] for prompt in wanted]
        return {"bleu": bleu(texts, list(wanted.values())), "rouge_l": sum(rouge) / len(rouge)}
