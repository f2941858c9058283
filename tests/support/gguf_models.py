"""Small models in GGUF files, written with the `gguf` package, and the same as models of `transformers` with the file's weights."""

import gguf
import numpy as np
import torch
import transformers

from tests.equations.test_ggml import FACTORS, blocks

WIDTH, INNER, HEADS, KV_HEADS, LAYERS = 256, 512, 4, 2, 2

SPECIAL = ["<end>", "<|user|>", "<|answer|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|answer|>' }}{{ m.content }}{{ '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|answer|>' }}{% endif %}"
)

CONFIGS = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}

ALL_KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32")


def byte_tokens():
    """The 256 letters that stand for bytes, a few joined ones, and their merges."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in kept}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in kept)}
    merges = ["t h", "th e", "Ġ the", "1 2"]
    return [*SPECIAL, *(letters[byte] for byte in range(256)), *(pair.replace(" ", "") for pair in merges)], merges


def model(architecture, tied, seed=1):
    """A random model of `transformers`, whose numbers are those that the types can hold only after `write`."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture](
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=WIDTH // HEADS,
        vocab_size=len(byte_tokens()[0]),
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        pad_token_id=None,
    )
    made = getattr(transformers, f"{type(config).__name__.removesuffix('Config')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def packed(kind, weight, seed):
    """The bytes or numbers of a weight in a type, and the weight that they are; random blocks where the package writes none."""
    number = gguf.GGMLQuantizationType[kind]
    if kind in ("Q4_K", "Q5_K", "Q6_K"):
        data = blocks(kind, weight.size // 256, seed)
        factors = np.abs(np.random.default_rng(seed).standard_normal(len(data))) * {"Q6_K": 3e-5}.get(kind, 1e-4)
        for place in FACTORS[kind]:
            data[:, place : place + 2] = factors.astype(np.float16)[:, None].view(np.uint8)
        data = data.reshape(len(weight), -1)
    else:
        data = gguf.quants.quantize(weight, number)
    return data, gguf.quants.dequantize(data, number)


def write(path, made, kinds=ALL_KINDS, *, change=lambda writer: None, rename=lambda name: name, pre="gpt-2"):
    """Write `made` to a GGUF file, each matrix in the next of `kinds`, and give it the weights that the file has then."""
    config = made.config
    architecture = config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    tokens, merges = byte_tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)
    change(writer)
    _tensors(writer, made, kinds, rename)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(writer, made, kinds, rename):
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, made.config.model_type.upper()), made.config.num_hidden_layers
    )
    for i, (name, parameter) in enumerate(made.named_parameters()):
        heads = made.config.num_attention_heads if "q_proj" in name else made.config.num_key_value_heads
        turned = made.config.model_type == "llama" and ("q_proj" in name or "k_proj" in name)
        weight = parameter.detach()
        theirs = _permuted(weight, heads) if turned else weight
        stem, end = name.rsplit(".", 1)
        as_file = rename(names.get_name(stem) + "." + end)
        if weight.dim() == 1:
            writer.add_tensor(as_file, theirs.numpy())
            continue
        kind = kinds[i % len(kinds)]
        data, numbers = packed(kind, theirs.numpy(), i)
        writer.add_tensor(as_file, data, raw_dtype=gguf.GGMLQuantizationType[kind])
        read = torch.from_numpy(np.array(numbers, np.float32)).view(weight.shape)
        with torch.no_grad():
            parameter.copy_(_unpermuted(read, heads) if turned else read)


def _permuted(weight, heads):
    """As the converter of llama.cpp has it."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape).contiguous()


def _unpermuted(weight, heads):
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape).contiguous()
