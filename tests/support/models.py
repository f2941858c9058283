"""Small random models of several families, and adapters with no special values in them."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 97
_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=20,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=5,
    num_key_value_heads=5,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)

CONFIGS = {
    "llama": LlamaConfig(**_SIZES, tie_word_embeddings=False, attention_bias=True),
    "llama_tied": LlamaConfig(**_SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**_SIZES),
    "qwen3": Qwen3Config(**_SIZES, head_dim=4),
    "gemma3": Gemma3TextConfig(**_SIZES, head_dim=4),
    "mistral": MistralConfig(**_SIZES),
    "phi3": Phi3Config(**_SIZES),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=20, n_layer=3, n_head=5, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": GPTNeoXConfig(**{key: value for key, value in _SIZES.items() if key != "num_key_value_heads"}),
    "mixtral": MixtralConfig(**_SIZES, head_dim=4, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **_SIZES, head_dim=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, norm_topk_prob=True
    ),
}
"""One small configuration per way of building a model: biases, tied heads, fused projections, (in, out) weights, experts."""


def model(family, dtype=torch.float32, seed=3, sizes=None):
    """A random model whose biases and norms are not at their special initial values, of its family's sizes unless given."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[family])
    known = {
        **(sizes or {}),
        "n_embd": (sizes or {}).get("hidden_size"),
        "n_head": (sizes or {}).get("num_attention_heads"),
    }
    for name, value in known.items():
        if value is not None and hasattr(config, name):
            setattr(config, name, value)
    how = (
        {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    )  # torch's grouped product takes no float64
    built = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", **how)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in name and "wte" not in name:
                parameter.mul_(5)
    return built.to(dtype).eval()


def randomize(adapter, seed, std=0.3):
    """Fill every tensor of an adapter with generic values, so that a zero hides nothing."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter.tensors():
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float32) * std)
    adapter.train_(False)
    return adapter


def tokens(rows, length, seed=5):
    """Random token ids (rows, length)."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def byte_image(module):
    """Every parameter and buffer of a module as bytes, by name."""
    return {
        name: bytes(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in module.state_dict().items()
    }
