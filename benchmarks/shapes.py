"""Model shapes with random weights, written as whole model directories; speed and memory do not depend on the values."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from inlay import quant
from inlay.cli.demo import BASE
from inlay.quant.contract import Packed, Scheme

SHAPES = {
    "7m": dict(
        hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=49152, tie_word_embeddings=True,
    ),
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
    "8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, tie_word_embeddings=False,
    ),
    "65b": dict(
        hidden_size=8192, intermediate_size=22016, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=64,
        vocab_size=32000, tie_word_embeddings=False,
    ),
    "72b": dict(
        hidden_size=8192, intermediate_size=29568, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=152064, tie_word_embeddings=False,
    ),
    "moe": dict(
        hidden_size=576, intermediate_size=768, num_hidden_layers=12, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True, num_local_experts=8, num_experts_per_tok=2,
    ),
}  # fmt: skip
"""SmolLM2-135M, Qwen2.5-0.5B, Llama-3.2-1B, Llama-3.1-8B, LLaMA-65B, Qwen2.5-72B; a mixture of experts as Mixtral builds it, of
our own size, and a small model where only what is around it counts."""

SHARD_BYTES = 1 << 30
"""Size of the files of a quantised model."""


def build(shape: str, dtype: torch.dtype = torch.bfloat16, **changes: int) -> torch.nn.Module:
    """A random model of this shape."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        sizes = SHAPES[shape] | dict(max_position_embeddings=2048) | changes
        mixture = "num_local_experts" in sizes
        config = MixtralConfig(**sizes) if mixture else LlamaConfig(**sizes)
        return (MixtralForCausalLM if mixture else LlamaForCausalLM)(config).eval()
    finally:
        torch.set_default_dtype(before)


def directory(shape: str, path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random model of this shape on disk, with the tokenizer of the demo's base."""
    build(shape, dtype).save_pretrained(path)
    _tokenizer(path)
    return path


def quantized(shape: str, path: Path, **changes: int) -> Path:
    """A random NF4 model of this shape on disk, made without the weights that it would be quantised from.

    The codes are random bytes; the constants such that the weights have the spread of a fresh model's.
    """
    scheme, config = quant.find("nf4"), LlamaConfig(**SHAPES[shape] | dict(max_position_embeddings=2048) | changes)
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.bfloat16
    config.quantization_config = {"quant_method": "bitsandbytes", **scheme.config}
    path.mkdir(parents=True)
    config.save_pretrained(path)
    _tokenizer(path)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    shard: dict[str, torch.Tensor] = {}
    index: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05}.safetensors"
        save_file(shard, path / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        if module in linears:
            few = scheme.quantize(torch.randn(64, parameter.shape[1], generator=generator, dtype=torch.bfloat16) * 0.02)
            shard.update({name + key: t for key, t in _repeated(scheme, few, parameter.shape, generator).items()})
        elif parameter.dim() == 1:
            shard[name] = torch.ones(parameter.shape, dtype=torch.bfloat16)
        elif not (name.startswith("lm_head") and config.tie_word_embeddings):
            shard[name] = torch.randn(parameter.shape, generator=generator, dtype=torch.bfloat16).mul_(0.02)
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            flush()
    flush()
    size = sum((path / name).stat().st_size for name in set(index.values()))
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (path / "model.safetensors.index.json").write_text(json.dumps(content))
    return path


def _repeated(
    scheme: Scheme, few: Packed, shape: tuple[int, int], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Tensors of a weight of `shape` with the constants of a smaller one, over and over, and random codes."""
    made = {}
    for key, (dtype, size) in scheme.layout(shape, torch.bfloat16).items():
        if key == "":
            made[key] = (
                torch.randint(0, (1 << 63) - 1, (size[0] // 8,), generator=generator).view(torch.uint8).view(size)
            )
        elif few[key].shape == size and not key.startswith(".quant_state"):
            made[key] = few[key].clone()
        elif key.startswith(".quant_state"):
            state = json.loads(bytes(few[key].tolist())) | {"shape": list(shape)}
            text = json.dumps(state).encode()
            made[key] = torch.frombuffer(bytearray(text + b" " * (size[0] - len(text))), dtype=dtype)
        else:
            made[key] = few[key].repeat(-(-size[0] // len(few[key])))[: size[0]].clone()
    return made


def _tokenizer(path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, path / name)
