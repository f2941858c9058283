"""Small random models of the architectures of `transformers`: what `inlay.load` is held to compute as `transformers` does.

Every parameter and vector that is saved gets generic values: a bias that is left at 0 or a norm that is left at 1 hides what is
done with it.
"""

import torch
import transformers

from tests.support import bases

VOCABULARY = 97

_COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
"""Given to every configuration that has these names."""

_EXPERTS = dict(
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=24,
    n_shared_experts=1,
    n_group=2,
    topk_group=1,
    first_k_dense_replace=1,
)
_LATENT = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8)
_LATENT_EXPERTS = _EXPERTS | _LATENT | dict(num_key_value_heads=4, head_dim=None)
_MAMBA2 = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
_DELTA = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8
)  # gated delta rule
POSITIONS = dict(
    max_position_embeddings=130, pad_token_id=1
)  # RoBERTa's positions begin after the padding token's number

CAUSAL = {
    "afmoe": _EXPERTS | dict(num_dense_layers=1),
    "apertus": {},
    "arcee": {},
    "bamba": _MAMBA2 | dict(attn_layer_indices=[1]),
    "bert": dict(is_decoder=True),
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": dict(rotary_dim=4),
    "cohere": {},
    "cohere2": {},
    "cohere2_moe": _EXPERTS,
    "ctrl": dict(dff=48),
    "cwm": {},
    "dbrx": dict(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=128,
        attn_config=dict(kv_n_heads=2, rope_theta=10000.0, clip_qkv=2.0),
        ffn_config=dict(ffn_hidden_size=24, hidden_size=32, moe_num_experts=4, moe_top_k=2),
    ),
    "deepseek_v2": _LATENT_EXPERTS,
    "deepseek_v3": _LATENT_EXPERTS,
    "diffllama": {},
    "doge": {},
    "dots1": _EXPERTS,
    "electra": dict(is_decoder=True, embedding_size=16),
    "ernie4_5": {},
    "ernie4_5_moe": _EXPERTS | dict(moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1),
    "exaone4": {},
    "falcon": dict(new_decoder_architecture=False, multi_query=True),
    "falcon_h1": _MAMBA2 | dict(mamba_d_ssm=64, mamba_expand=2),
    "falcon_mamba": dict(state_size=4),
    "flex_olmo": _EXPERTS,
    "gemma": {},
    "gemma2": dict(sliding_window=4),
    "gemma3_text": dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "glm": {},
    "glm4": {},
    "glm4_moe": _EXPERTS,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=4),
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": _EXPERTS | dict(sliding_window=4),
    "gptj": dict(rotary_dim=4),
    "granite": dict(logits_scaling=3.0, residual_multiplier=0.7, embedding_multiplier=1.7, attention_multiplier=0.3),
    "granitemoe": _EXPERTS | dict(logits_scaling=3.0),
    "granitemoehybrid": _MAMBA2
    | _EXPERTS
    | dict(layer_types=["mamba", "attention"], shared_intermediate_size=24, logits_scaling=3.0),
    "granitemoeshared": _EXPERTS | dict(shared_intermediate_size=24),
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": _EXPERTS | dict(moe_topk=2),
    "jamba": _EXPERTS | dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, mamba_d_state=4),
    "jetmoe": _EXPERTS | dict(kv_channels=8),
    "lfm2": dict(layer_types=["conv", "full_attention"], block_multiple_of=16),
    "lfm2_moe": _EXPERTS | dict(layer_types=["conv", "full_attention"], num_dense_layers=1),
    "llama": dict(attention_bias=True, mlp_bias=True),
    "llama4_text": _EXPERTS | dict(intermediate_size_mlp=48),
    "mamba": dict(state_size=4),
    "mamba2": dict(num_heads=8, head_dim=8, state_size=8, n_groups=2, chunk_size=8),
    "minimax": _EXPERTS | dict(layer_types=["linear_attention", "full_attention"], block_size=4),
    "minimax_m2": _EXPERTS,
    "ministral3": {},
    "mistral": dict(sliding_window=4),
    "mixtral": _EXPERTS,
    "modernbert-decoder": {},
    "mpt": {},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": _EXPERTS
    | dict(
        layers_block_type=["mamba", "attention"],
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        chunk_size=8,
    ),
    "olmo": dict(clip_qkv=2.0),
    "olmo2": {},
    "olmo3": dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "olmo_hybrid": _DELTA | dict(layer_types=["linear_attention", "full_attention"]),
    "olmoe": _EXPERTS,
    "openai-gpt": {},
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": _EXPERTS,
    "qwen2": {},
    "qwen2_moe": _EXPERTS,
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "qwen3_next": _EXPERTS | _DELTA | dict(layer_types=["linear_attention", "full_attention"]),
    "recurrent_gemma": dict(num_hidden_layers=3, lru_width=32, attention_window_size=4),
    "rembert": dict(is_decoder=True, input_embedding_size=16, output_embedding_size=16),
    "roberta": dict(is_decoder=True) | POSITIONS,
    "roformer": dict(is_decoder=True),
    "rwkv": dict(attention_hidden_size=32),
    "seed_oss": {},
    "smollm3": {},
    "stablelm": dict(qk_layernorm=True, use_parallel_residual=True),
    "starcoder2": {},
    "vaultgemma": dict(sliding_window=4),
    "xglm": dict(ffn_dim=48),
    "zamba": dict(
        num_hidden_layers=3,
        layers_block_type=["hybrid", "mamba", "hybrid"],
        n_mamba_heads=2,
        mamba_d_state=2,
        mamba_dt_rank=8,
    ),
    "zamba2": dict(
        layers_block_type=["mamba", "hybrid"],
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=8,
        mamba_headdim=8,
        chunk_size=8,
        adapter_rank=4,
        attention_head_dim=16,
    ),
}
"""Causal language models: type of model -> what its configuration has besides the common sizes."""

ENCODERS = {
    "albert": dict(embedding_size=16),
    "bert": {},
    "deberta": dict(relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": dict(relative_attention=True, pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm"),
    "distilbert": dict(dim=32, hidden_dim=48, n_heads=4, n_layers=2),
    "electra": dict(embedding_size=16),
    "modernbert": {},
    "mpnet": POSITIONS,
    "roberta": POSITIONS,
    "xlm-roberta": POSITIONS,
}
"""Encoders, for classification and embedding."""

SEQ2SEQ = {
    "bart": dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    | dict(encoder_ffn_dim=48, decoder_ffn_dim=48, decoder_start_token_id=2),
    "t5": dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0),
}
"""Encoders with decoders."""


def settings(auto_class, kind):
    """What the configuration of a small model has besides the common sizes."""
    return (CAUSAL if auto_class == "AutoModelForCausalLM" else CAUSAL | ENCODERS | SEQ2SEQ)[kind]


def config(kind, **more):
    """The configuration of a small model of this type."""
    found = transformers.AutoConfig.for_model(kind)
    names = found.attribute_map.keys() | type(found).__dataclass_fields__.keys()
    known = {name: value for name, value in _COMMON.items() if name in names}
    wanted = {name: value for name, value in (known | more).items() if value is not None}
    return transformers.AutoConfig.for_model(kind, **wanted)


def tokens(rows, length, seed=5):
    """Random token ids (rows, length), none of them special."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def model(auto_class, kind, settings, dtype=torch.float32):
    """A random model in evaluation mode, of no special value anywhere."""
    built = getattr(transformers, auto_class).from_config(config(kind, **settings)).float()
    randomize_(built)
    return built.to(dtype).eval()


@torch.no_grad()
def randomize_(module, seed=11):
    """Give every tensor that is saved generic values, near those that it has where it is a vector.

    But not the tables of what is computed, such as the decays of a linear attention, which some models save as buffers.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {name for name, buffer in module.named_buffers() if buffer.dim() > 1}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in tables or not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() < 2:
            tensor.add_(0.3 * drawn)
        elif "embed" in name or "wte" in name:
            tensor.copy_(drawn)
        else:
            tensor.copy_(drawn / tensor.shape[-1] ** 0.5)


def directory(path, auto_class, kind, dtype=torch.float32):
    """The directory of such a model, with a small tokenizer."""
    model(auto_class, kind, settings(auto_class, kind), dtype).save_pretrained(path)
    bases.tokenizer().save_pretrained(path)
    return path
