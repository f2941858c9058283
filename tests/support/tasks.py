"""Small models of every task's kind, and rows that they can learn."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.support import bases, models, quantized

LLAMA = LlamaConfig(**models._SIZES)
BERT = BertConfig(**{name: size for name, size in models._SIZES.items() if name != "num_key_value_heads"})
T5 = T5Config(
    vocab_size=models.VOCABULARY,
    d_model=20,
    d_kv=4,
    d_ff=28,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=5,
    pad_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=0,
)

MODELS = {
    "llama": (LlamaForCausalLM, LLAMA),
    "llama_seq": (LlamaForSequenceClassification, LLAMA),
    "bert": (BertForMaskedLM, BERT),
    "bert_body": (BertModel, BERT),
    "bert_seq": (BertForSequenceClassification, BERT),
    "bert_token": (BertForTokenClassification, BERT),
    "t5": (T5ForConditionalGeneration, T5),
}
"""What a directory was saved from; llama and bert lack the heads of the classification tasks."""


WIDE = {**quantized.SIZES, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4}
"""Widths that blocks divide, in the words of every configuration."""


@bases.made_once
def directory(path, name, sizes=None, gain=3, **config):
    """A model directory with random weights, `gain` times the usual ones, and a small tokenizer."""
    cls, small = MODELS[name]
    torch.manual_seed(3)
    known = {key: size for key, size in (sizes or {}).items() if hasattr(small, key)}
    built = cls(type(small).from_dict(small.to_dict() | known | config))
    with torch.no_grad():
        for parameter_name, parameter in built.named_parameters():
            if parameter.dim() > 1 and "embed" not in parameter_name:
                parameter.mul_(gain)
    built.save_pretrained(path)
    bases.tokenizer().save_pretrained(path)


WORDS = ("red", "green", "blue", "lime", "navy", "rust")


def rows(task, number):
    """Rows of a task that a small model can learn."""
    made = []
    for i in range(number):
        word, other = WORDS[i % 3], WORDS[3 + i % 3]
        made.append(
            {
                "sequence-classification": {"text": f"{word} {i}", "label": ("no", "yes")[i % 3 == 0]},
                "token-classification": {"tokens": [str(i), word, other], "tags": ["O", f"B-{word}", "O"]},
                "seq2seq": {"prompt": f"{word}?", "completion": other},
                "embedding": {"anchor": f"{chr(97 + i % 26)} is {i}", "positive": f"{chr(97 + i % 26)}{i} it is"},
            }[task]
        )
    return made
