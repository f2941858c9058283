"""GGUF files for llama.cpp: of a Llama's model directory, and of LoRA adapters in PEFT's form. Needs gguf and numpy.

llama.cpp rotates neighbours, where checkpoints rotate halves: the rows of q and k come in another order, and so do the rows of
their `lora_B`. Prompts are token ids, and the text of a token is its id: llama.cpp answers with texts. The last 257 have none.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize, quantize

BF16, F32 = gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Modules, the same in llama.cpp."""


def write_model(directory: Path, path: Path, form: str) -> None:
    """The model's weights as they are, or in blocks of four bits ("q4_0"); then the embedding, its head too, has 8 bits."""
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"], "other models have other files"
    assert config["rope_parameters"]["rope_type"] == "default", "the angles would be others"
    kind = gguf.LlamaFileType.MOSTLY_Q4_0 if form == "q4_0" else gguf.LlamaFileType.MOSTLY_BF16
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, config, kind)
    for file in sorted(directory.glob("*.safetensors")):
        for name, values in tensors(file):
            module = name.removesuffix(".weight")
            if values.ndim == 1:
                writer.add_tensor(_named(module) + ".weight", values)
                continue
            values = _ordered(values, module, config)
            if form == "q4_0":
                is_head = module in ("model.embed_tokens", "lm_head")
                to = gguf.GGMLQuantizationType.Q8_0 if is_head else gguf.GGMLQuantizationType.Q4_0
                values = quantize(values, to)
            else:
                values, to = quantize(values, BF16), BF16
            writer.add_tensor(_named(module) + ".weight", values, raw_dtype=to)
    _finish(writer)


def write_adapter(directory: Path, base: Path, path: Path) -> None:
    """A LoRA adapter, in float32 as llama.cpp's own conversion has it."""
    config = json.loads((base / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(
        gguf.Keys.Adapter.LORA_ALPHA, json.loads((directory / "adapter_config.json").read_text())["lora_alpha"]
    )
    for name, values in tensors(directory / "adapter_model.safetensors"):
        module, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        values = _ordered(values, module, config) if part == "lora_B" else values
        writer.add_tensor(f"{_named(module)}.weight.{part.lower()}", values)
    _finish(writer)


def tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """The tensors of a safetensors file by name, in float32: numpy has no bfloat16."""
    stored = np.memmap(file, np.uint8, "r")
    start = 8 + int(stored[:8].view("<u8")[0])
    for name, about in json.loads(bytes(stored[8:start])).items():
        if name != "__metadata__":
            first, last = about["data_offsets"]
            values = stored[start + first : start + last].reshape(*about["shape"][:-1], -1)
            yield name, dequantize(values, {"BF16": BF16, "F32": F32}[about["dtype"]])


def _ordered(values: Any, module: str, config: dict[str, Any]) -> Any:
    """The rows of q and k so that the two halves of a head alternate; others as they are."""
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(module.rpartition(".")[2])
    if key is None:
        return values
    return values.reshape(config[key], 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def _named(module: str) -> str:
    """What llama.cpp calls a module."""
    if module.startswith("model.layers."):
        number, _, within = module.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[within]}"
    return NAMES[module]


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any], kind: int) -> None:
    """Sizes and a vocabulary."""
    heads, count = config["num_attention_heads"], config["vocab_size"]
    writer.add_file_type(kind)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(count)
    end, of_bytes = count - 257, [f"<0x{number:02X}>" for number in range(256)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*(f"t{number} " for number in range(end)), "</s>", *of_bytes])
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([1] * end + [3] + [6] * 256)  # words, control, bytes
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id):
        add(end)
    writer.add_add_bos_token(False)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
