"""Quantised model directories, written without the code that writes them for users."""

import json

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from inlay import quant
from inlay.layout import targets
from tests.support import bases, models

SIZES = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4, head_dim=16)
"""Widths that blocks divide."""


def model(family, seed=3, dtype=torch.bfloat16):
    """A random model of a family in `models.CONFIGS`, wide enough to be quantised."""
    return models.model(family, dtype, seed, sizes=SIZES)


def directory(path, family, scheme, seed=3):
    """A model directory whose linear maps but the head are quantised; returns it and the model with the same weights.

    The model holds what the quantised weights stand for, in float32: whoever computes with the directory must agree with it.
    """
    built, how = model(family, seed), quant.find(scheme)
    built.save_pretrained(path)
    bases.tokenizer().save_pretrained(path)
    tensors = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    plain = AutoModelForCausalLM.from_config(built.config, attn_implementation="eager").float().eval()
    plain.load_state_dict(built.state_dict())
    head = targets.output_head(built)
    if built.config.tie_word_embeddings:
        tensors.pop(f"{head}.weight", None)
    for name, linear in targets.linear_modules(built).items():
        if name == head:
            continue
        packed = how.quantize(linear.matrix.detach())
        del tensors[f"{name}.weight"]
        tensors |= {_named(name, key): tensor for key, tensor in packed.items()}
        weight = how.open(packed).dequantize(torch.float32)
        plain.get_submodule(name).weight.data = weight.T.contiguous() if linear.transposed else weight
    (path / "model.safetensors").unlink()
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", **how.config}
    (path / "config.json").write_text(json.dumps(config))
    return path, plain


def _named(module, key):
    return f"{module}.weight{key}" if key == "" or key.startswith(".") else f"{module}.{key}"
