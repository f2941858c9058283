"""The configuration of a base: as `transformers` reads it, and what of it decides what the weights compute.

A config.json may name the attention that its author used: one that this machine does not have (flash attention), or code of the
hub that would be fetched and run. Which attention computes is a matter of the machine, so that it is chosen anew here.

The same weights compute something else with another number of heads, rotation, epsilon or activation. Which keys do that is
not listed here: every value counts that the architecture's class declares, or that its code names, but for those that are known
to change nothing. Defaults are filled in by the class, so that a value which is written out equals one that is left out.
"""

import dataclasses
import functools
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

_NO_EFFECT = frozenset(
    [
        "transformers_version", "architectures", "dtype", "return_dict", "output_attentions", "output_hidden_states",
        "output_router_logits", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "use_cache",
        "pretraining_tp", "num_logits_to_keep", "use_mamba_kernels", "use_mambapy", "use_mem_eff_path",
        "use_associative_scan", "return_last_states", "encoder_no_repeat_ngram_size", "apply_spec_augment",
        "num_nextn_predict_layers", "num_mtp_layers", "start_n_top", "end_n_top", "gradient_checkpointing",
        "per_layer_config", "torchscript", "tokenizer_class", "init_device", "intermediate_size",
    ]
)  # fmt: skip
"""Keys of configurations that do not change what is computed from tokens, or that the weights' shapes say already."""

_NO_EFFECT_PARTS = ("dropout", "pdrop", "layerdrop", "initializer", "init_std", "init_variance", "_loss_", "jitter")
"""The same by a part of their name: what training alone reads, or the drawing of first weights."""

_NO_EFFECT_STARTS = (
    "summary_",
    "forced_",
    "mtp_",
    "mask_time",
    "mask_feature",
    "image_",
    "video_",
    "vision_",
    "audio_",
)
"""The same by their start: heads that no task has, settings of generation, and what other senses than text need."""

_ABOUT_WINDOWS = frozenset(
    ["max_window_layers", "use_sliding_window", "sliding_window_pattern", "_sliding_window_pattern"]
)
"""Keys that say which layers have a window: nothing more where the types of all layers are written out, or there is none."""

_FREE_POSITIONS = frozenset(["default", "linear", "llama3"])
"""Rotations that do not depend on how many positions the model has."""

_SAME_ACTIVATIONS = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations of several names, by those of `transformers`."""


def read(directory: Path) -> Any:
    """The configuration in `directory`, an object of `transformers`; whatever its classes raise on strange values."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    for name in dir(type(config)):  # these setters go through the parts of composed models too
        if name.endswith("_implementation"):
            setattr(config, name, None)
    return config


def decisive(config: Any) -> dict[str, Any]:
    """What of a configuration decides what the weights compute, in one form whatever way the file writes it, as JSON has it.

    **Arguments:**

    - `config`: an object of `transformers`, as `read` returns it.
    """
    found: dict[str, Any] = {"model_type": config.model_type}
    for name in sorted({*_declared(type(config)), *_read(config)}):
        value = getattr(config, name, None)
        if hasattr(value, "to_dict"):
            if not name.startswith(_NO_EFFECT_STARTS):
                found[name] = decisive(value)
        elif _counts(name):
            found[name] = value
    _fill_(found)
    if not _pads(config):
        found.pop("pad_token_id", None)
    kept = {key: value for key, value in found.items() if value is not None}
    return json.loads(json.dumps(kept, sort_keys=True, default=str))


def _declared(cls: Any) -> list[str]:
    """The names of the values that a class of configurations knows."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "kwargs")]


def _read(config: Any) -> list[str]:
    """The values that the class does not declare and that the model's code asks for all the same, if they are there."""
    declared = set(_declared(type(config)))
    names = [name for name in vars(config) if not name.startswith("_") and name not in declared]
    return [name for name in names if re.search(rf"\b{re.escape(name)}\b", _code(type(config).__module__))]


@functools.cache
def _code(module: str) -> str:
    """The source of the models that the configurations of `module` are for."""
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    path = file.with_name(file.name.replace("configuration_", "modeling_")) if file.name else file
    return path.read_text("utf-8") if path.is_file() else ""


def _counts(name: str) -> bool:
    """A value of this name changes what is computed, or may."""
    if name in _NO_EFFECT or name.startswith(_NO_EFFECT_STARTS) or any(part in name for part in _NO_EFFECT_PARTS):
        return False
    is_token = name.endswith(("_token_id", "_token_index", "suppress_tokens"))
    return not is_token or name in ("eos_token_id", "pad_token_id", "decoder_start_token_id")


def _pads(config: Any) -> bool:
    """The model reads which token fills rows up: positions of encoders are counted from it, decoders begin with it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.is_encoder_decoder or config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _fill_(found: dict[str, Any]) -> None:
    """Bring values that mean the same into one form: what is left open, what others say already, names of functions."""
    heads, width = found.get("num_attention_heads"), found.get("hidden_size")
    if found.get("num_key_value_heads", 0) is None:
        found["num_key_value_heads"] = heads
    if found.get("head_dim", 0) is None and isinstance(heads, int) and isinstance(width, int) and heads:
        found["head_dim"] = width // heads
    if isinstance(found.get("eos_token_id"), int):
        found["eos_token_id"] = [found["eos_token_id"]]
    _drop_windows_(found)
    if isinstance(found.get("rope_parameters"), dict):
        found["rope_parameters"], kinds = _rotation(found["rope_parameters"])
        for name in ("max_position_embeddings", "original_max_position_embeddings") if kinds <= _FREE_POSITIONS else ():
            found.pop(name, None)
    for name, value in found.items():
        if "act" in name and isinstance(value, str):
            found[name] = _SAME_ACTIVATIONS.get(value, value)


def _drop_windows_(found: dict[str, Any]) -> None:
    types = found.get("layer_types")
    if isinstance(types, list) and not any("sliding" in str(kind) for kind in types):
        found.pop("sliding_window", None)
    if isinstance(types, list) or found.get("sliding_window") is None:
        for name in _ABOUT_WINDOWS:
            found.pop(name, None)


def _rotation(parameters: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The parameters of rotations, of one or by the type of layer, without what has no effect; and their kinds."""
    nested = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    if nested:
        each = {key: _rotation(value) for key, value in nested.items()}
        return {key: made for key, (made, _) in each.items()}, set().union(*(kinds for _, kinds in each.values()))
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    made = {key: value for key, value in parameters.items() if value is not None and key not in ("type", "rope_type")}
    if made.get("partial_rotary_factor") == 1:
        del made["partial_rotary_factor"]
    if kind == "linear" and made.get("factor") == 1:
        kind = "default"
    if kind == "default":
        made = {key: made[key] for key in ("rope_theta", "partial_rotary_factor") if key in made}
    is_free = kind == "yarn" and "original_max_position_embeddings" in made
    return made | {"rope_type": kind}, {"default" if is_free else str(kind)}
