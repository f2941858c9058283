"""Model shapes with random weights, written as whole model directories; speed and memory do not depend on the values."""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inlay.cli.demo import BASE

SHAPES = {
    "135m": dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    ),
    "0.5b": dict(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    ),
    "1b": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, tie_word_embeddings=True,
    ),
}  # fmt: skip
"""SmolLM2-135M, Qwen2.5-0.5B and Llama-3.2-1B."""


def build(shape: str, dtype: torch.dtype = torch.bfloat16, **changes: int) -> LlamaForCausalLM:
    """A random model of this shape."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(LlamaConfig(**SHAPES[shape] | dict(max_position_embeddings=2048) | changes)).eval()
    finally:
        torch.set_default_dtype(before)


def directory(shape: str, path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random model of this shape on disk, with the tokenizer of the demo's base."""
    build(shape, dtype).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, path / name)
    return path
