"""The configuration of a GGUF file's model, as `transformers` writes it: from what the file says, or refused.

A value that is not understood may change what is computed: a factor of the attention, a window, a rotation of other
frequencies. So every value under the architecture's name is one that is known here, and the others are named in an error.
`transformers` itself reads these files, and passes over what it does not know: the frequencies of Llama 3.1 among it.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.errors import CompatibilityError, FormatError, explain, few
from inlay.fields import shown
from inlay.gguf.header import GgufHeader
from inlay.gguf.names import HEADS, KV_HEADS, Architecture

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor that has a factor of each frequency."""

_NEEDED = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    HEADS: "num_attention_heads",
}
"""Whole numbers that every file has -> what `transformers` calls them."""

_EPSILON = "attention.layer_norm_rms_epsilon"

_READ = frozenset(
    [
        *_NEEDED, KV_HEADS, _EPSILON, "attention.key_length", "attention.value_length", "rope.dimension_count",
        "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.finetuned", "tensor_data_layout", "vocab_size",
    ]
)  # fmt: skip
"""The values, after the architecture's name, that are looked at, or say nothing about what is computed."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LLAMA3_FACTORS = (8.0, 32.0)
"""What Llama 3.1 and 3.3, and Llama 3.2, divide low frequencies by. The file has the result alone."""

_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def configuration(
    header: GgufHeader, architecture: Architecture, rope_factors: Float[Tensor, " n"] | None
) -> dict[str, Any]:
    """The content of config.json for a file's model.

    **Arguments:**

    - `rope_factors`: the tensor `ROPE_FACTORS`, where the file has it.

    **Raises:**

    - `FormatError`: a value is missing, or of another kind.
    - `CompatibilityError`: the model computes something that is not known here.
    """
    start = f"{architecture.name}."
    said = {key.removeprefix(start): value for key, value in header.metadata.items() if key.startswith(start)}
    _check_known(architecture, said)
    config = _numbers(header, said)
    heads, width = config["num_attention_heads"], config["hidden_size"]
    config["head_dim"] = said.get("attention.key_length", width // heads)
    lengths = {name: said.get(name, config["head_dim"]) for name in ("rope.dimension_count", "attention.value_length")}
    if strange := [
        f"{start}{name} is {shown(value)}" for name, value in lengths.items() if value != config["head_dim"]
    ]:
        raise _other(strange, f"heads of {config['head_dim']}")
    tensors = header.tensors
    config |= {
        "model_type": architecture.model_type,
        "architectures": [f"{architecture.model_type.capitalize()}ForCausalLM"],
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_parameters": _rotation(said, config["head_dim"], rope_factors),
        "dtype": {"F16": "float16", "F32": "float32"}.get(tensors["token_embd.weight"].kind, "bfloat16"),
        "quantization_config": {"quant_method": "gguf"},
    }
    if architecture.name == "llama":
        config |= {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}
    tokens = {name: header.metadata.get(key) for name, key in _TOKENS.items()}
    return config | {name: token for name, token in tokens.items() if token is not None}


def _numbers(header: GgufHeader, said: Mapping[str, Any]) -> dict[str, Any]:
    """The counts and the epsilon, all of them there and positive."""
    config = {ours: said.get(theirs) for theirs, ours in _NEEDED.items()}
    config["num_key_value_heads"] = said.get(KV_HEADS, config["num_attention_heads"])
    problems = [f"{name} is {shown(value)}" for name, value in config.items() if type(value) is not int or value < 1]
    config["rms_norm_eps"] = epsilon = said.get(_EPSILON)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        problems.append(f"{_EPSILON} is {shown(epsilon)}")
    if "token_embd.weight" not in header.tensors or len(header.tensors["token_embd.weight"].shape) != 2:
        problems.append("no matrix token_embd.weight")
    if problems:
        found, do = [f"{header.path}: {problem}" for problem in few(problems)], "fetch it again, or convert it again"
        raise FormatError(explain("this file does not say what its model is", found=found, do=do))
    return config


def _check_known(architecture: Architecture, said: Mapping[str, Any]) -> None:
    strange = [f"{architecture.name}.{key} is {shown(value)}" for key, value in said.items() if key not in _READ]
    if strange:
        raise _other(strange, f"a plain {architecture.name}")


def _rotation(said: Mapping[str, Any], head_dim: int, factors: Tensor | None) -> dict[str, Any]:
    """The parameters of the rotation."""
    base = said.get("rope.freq_base", 10_000.0)
    kind, factor = said.get("rope.scaling.type", "none"), said.get("rope.scaling.factor", 1.0)
    if not isinstance(base, float) or not 0 < base < math.inf:
        raise _other([f"rope.freq_base is {shown(base)}"], "a positive number")
    if factors is not None:
        return _llama3(base, head_dim, factors, kind)
    if kind in ("none", "") or (kind == "linear" and factor == 1.0):
        return {"rope_type": "default", "rope_theta": base}
    if kind == "linear" and isinstance(factor, float) and 0 < factor < math.inf:
        return {"rope_type": "linear", "rope_theta": base, "factor": factor}
    raise _other([f"rope.scaling.type is {shown(kind)}, factor {shown(factor)}"], "none, or linear")


def _llama3(base: float, head_dim: int, factors: Tensor, kind: str) -> dict[str, Any]:
    """The rotation of Llama 3.1 whose factors these are."""
    for factor in _LLAMA3_FACTORS:
        expected = llama3_factors(base, head_dim, factor)
        fits = kind in ("none", "") and factors.shape == expected.shape
        if fits and torch.allclose(factors.float(), expected, rtol=1e-4):
            return {"rope_type": "llama3", "rope_theta": base, "factor": factor, **LLAMA3}
    raise _other([f"{ROPE_FACTORS} has {len(factors)} factors of its own"], "those of Llama 3.1 or 3.2")


def llama3_factors(base: float, head_dim: int, factor: float) -> Float[Tensor, " n"]:
    """What each frequency of a head is divided by."""
    low, high, length = (
        LLAMA3["low_freq_factor"],
        LLAMA3["high_freq_factor"],
        LLAMA3["original_max_position_embeddings"],
    )
    wavelength = 2 * math.pi * base ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    smooth = ((length / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def _other(found: list[str], known: str) -> CompatibilityError:
    wrong, do = (
        "this file's model computes something that is not known here",
        f"the model in another form; known is {known}",
    )
    return CompatibilityError(explain(wrong, found=few(found), do=do))
