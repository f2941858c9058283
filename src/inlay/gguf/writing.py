"""A model directory as one GGUF file, which llama.cpp loads: the inverse of what `inlay.gguf.opening` reads.

    f16, bf16    matrices in 16 bits
    q8_0         32 weights of a row as whole numbers of 8 bits and the float16 that multiplies them

Norms and biases stay float32, as llama.cpp has them. A tensor is read, put in llama.cpp's order of rows, rounded and written
before the next one is read. What a configuration asks for beside the usual is refused by name, as `inlay.gguf.config` does it
the other way. Written with the `gguf` package.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay import extras
from inlay.errors import CompatibilityError, explain, few
from inlay.fields import shown
from inlay.gguf import config as configurations
from inlay.gguf import names, vocabulary
from inlay.io.checkpoint import Checkpoint
from inlay.io.safetensors import TensorEntry, read_tensor

KINDS = ("f16", "bf16", "q8_0")
"""What matrices can be written in."""

MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""The models that are known to be written whole, by model_type."""

_NUMBERS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    names.HEADS: "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_USUAL: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu", None), "use_sliding_window": (False, None)}
_PASSED_OVER = (".rotary_emb.inv_freq",)
"""Ends of the names of tensors that say what the configuration says."""


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """The values of the file: what the model is, its tokenizer and chat template.

    **Raises:**

    - `CompatibilityError`: the file can't say all of what the model does.
    """
    config = checkpoint.config
    if config.get("model_type") not in MODELS:
        found = f"model_type {shown(config.get('model_type'))}; known are {', '.join(MODELS)}"
        wrong, do = (
            "models of this type are not written as GGUF files",
            "inlay merge without --gguf, and llama.cpp's convert_hf_to_gguf.py",
        )
        raise CompatibilityError(explain(wrong, found=found, do=do))
    known, heads = names.architecture_of(config["model_type"]), config.get("num_attention_heads", 0)
    problems = [f"{key} is {shown(config.get(key))}" for key in _NUMBERS.values() if not config.get(key)]
    problems += [f"{key} is {shown(config[key])}" for key, usual in _USUAL.items() if config.get(key) not in usual]
    window = config.get("sliding_window") if config["model_type"] == "mistral" else None
    problems += [f"sliding_window is {window}"] if window and window < config["max_position_embeddings"] else []
    if problems:
        raise _refused(problems)
    rotation, head_dim = _rotation(config), config.get("head_dim") or config["hidden_size"] // heads
    size = next(e.shape[0] for name, e in checkpoint.tensors.items() if name.endswith("embed_tokens.weight"))
    own: dict[str, Any] = {key: config[ours] for key, ours in _NUMBERS.items()}
    own |= {
        names.KV_HEADS: config.get("num_key_value_heads") or heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(rotation["rope_theta"]),
        "vocab_size": size,
    }
    if rotation["rope_type"] == "linear":
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rotation["factor"])}
    values = {f"{known.name}.{key}": value for key, value in own.items()}
    return {"general.name": checkpoint.name, **values, **vocabulary.values(checkpoint.directory, size)}


def write(
    checkpoint: Checkpoint,
    path: Path,
    kind: str,
    values: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the file at `path`.

    **Arguments:**

    - `kind`: one of `KINDS`.
    - `values`: what `described` said of it.

    **Raises:**

    - `CompatibilityError`: a tensor has no name in such files.
    """
    extras.need("gguf", "a GGUF file")
    import gguf

    known = names.architecture_of(checkpoint.config["model_type"])
    writer = gguf.GGUFWriter(path, known.name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    _add_all(writer, values)
    entries, factors = _named(checkpoint, known), _factors(checkpoint.config)
    shapes = {name: entry.shape for name, entry in entries.items()}
    shapes |= {} if factors is None else {configurations.ROPE_FACTORS: tuple(factors.shape)}
    types = {name: _type(gguf, kind, shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        _outline(gguf, writer, name, shape, types[name])
    for put in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
        put()
    for number, (name, entry) in enumerate(entries.items()):
        progress(number, len(entries))
        tensor = _ordered(read_tensor(entry).float(), known.turned_by(name), checkpoint.config)
        writer.write_tensor_data(_packed(gguf, tensor, types[name]))
    if factors is not None:
        writer.write_tensor_data(factors.numpy())
    writer.close()


def _outline(gguf: Any, writer: Any, name: str, shape: Sequence[int], kind: Any) -> None:
    """Tell the writer of a tensor that is to come; what is packed counts as bytes."""
    dtype = torch.float32
    if kind != gguf.GGMLQuantizationType.F32:
        shape, dtype = gguf.quants.quant_shape_to_byte_shape(shape, kind), torch.uint8
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    writer.add_tensor_info(name, shape, torch.empty(0, dtype=dtype).numpy().dtype, num_bytes, raw_dtype=kind)


def _packed(gguf: Any, tensor: Tensor, kind: Any) -> Any:
    data = gguf.quants.quantize(tensor.contiguous().numpy(), kind)
    return data.view("uint8") if kind != gguf.GGMLQuantizationType.F32 else data


def _named(checkpoint: Checkpoint, known: names.Architecture) -> dict[str, TensorEntry]:
    """The tensors that are written, by the file's names."""
    is_tied = bool(checkpoint.config.get("tie_word_embeddings", False))
    kept = {name: entry for name, entry in checkpoint.tensors.items() if not name.endswith(_PASSED_OVER)}
    return {known.file_name(name): entry for name, entry in kept.items() if name != "lm_head.weight" or not is_tied}


def _type(gguf: Any, kind: str, shape: tuple[int, ...]) -> Any:
    """What a tensor of this shape is written in: rows that are no whole blocks, in float16."""
    types = gguf.GGMLQuantizationType
    if len(shape) == 1:
        return types.F32
    return types.F16 if kind == "q8_0" and shape[-1] % 32 else types[kind.upper()]


def _ordered(tensor: Tensor, heads: str | None, config: Mapping[str, Any]) -> Tensor:
    """A weight or a bias with its rows as the file has them; `heads`: the value that has their number of heads."""
    if heads is None:
        return tensor
    number = config["num_attention_heads"]
    number = number if heads == names.HEADS else config.get("num_key_value_heads") or number
    return tensor[names.file_rows(len(tensor), number)]


def _rotation(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the rotation, as new configurations have them in one place and old ones in two."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = {"rope_theta": config.get("rope_theta", 10_000.0), **said}
    found["rope_type"] = found.get("rope_type", found.get("type", "default"))
    llama3 = all(found.get(key) == value for key, value in configurations.LLAMA3.items())
    if found["rope_type"] not in ("default", "linear") and not (found["rope_type"] == "llama3" and llama3):
        raise _refused([f"rope_parameters is {shown(said)}"])
    return found


def _factors(config: Mapping[str, Any]) -> Tensor | None:
    """The tensor by which the frequencies of Llama 3.1 and later are divided."""
    said = _rotation(config)
    if said["rope_type"] != "llama3":
        return None
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return configurations.llama3_factors(said["rope_theta"], head_dim, said["factor"])


def _add_all(writer: Any, values: Mapping[str, Any]) -> None:
    """Each value by its type."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        kinds.get(type(value), writer.add_array)(key, value)


def _refused(problems: list[str]) -> CompatibilityError:
    wrong, do = "a GGUF file can't say what this model does", "inlay merge without --gguf"
    return CompatibilityError(explain(wrong, found=few(problems), do=do))
