"""Who else loads an adapter's files as they are meant: one table of what each engine refuses, or passes over without a word.

Each line names something that a file may have and the engines that it keeps out, from the sources of peft 0.21, transformers
5.23, vLLM 0.33 and llama.cpp's `convert_lora_to_gguf.py` of autumn 2026. vLLM and llama.cpp take LoRA alone; the
loader of transformers itself (`load_adapter`) drops DoRA's magnitudes without an error. An engine is named
here where it loads such files on the bases that it knows; which those are is for its own documentation to say.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from inlay import methods

PEFT, TRANSFORMERS, VLLM, LLAMA_CPP = "peft", "transformers", "vLLM", "llama.cpp (converted)"
ENGINES = (PEFT, TRANSFORMERS, VLLM, LLAMA_CPP)

MAX_VLLM_RANK = 512
"""The largest rank that vLLM can be started for (`--max-lora-rank`)."""

PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")
"""What PEFT calls the methods that put virtual tokens in front of a row."""

Config = Mapping[str, Any]
Shapes = Mapping[str, Sequence[int]]


class Feature(NamedTuple):
    """Something that keeps engines out."""

    name: str
    has: Callable[[Config, Shapes], bool]
    """Whether files have it, by the content of adapter_config.json and the shapes of the tensors."""
    keeps_out: tuple[str, ...]


def _is_peft_type(name: Any) -> bool:
    return bool(name) and any(cls.peft.type == name for _, cls in methods.TABLE.known())


def _is_lora(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name or ".lora_embedding_" in name


def _ranks(config: Config) -> list[int]:
    return [config.get("r") or 0, *(config.get("rank_pattern") or {}).values()]


FEATURES = (
    Feature("a method of Inlay alone", lambda c, t: not _is_peft_type(c.get("peft_type")), ENGINES),
    Feature("another method than LoRA", lambda c, t: c.get("peft_type") != "LORA", (VLLM, LLAMA_CPP)),
    Feature("virtual tokens", lambda c, t: c.get("peft_type") in PROMPTS, (TRANSFORMERS,)),
    Feature("another task", lambda c, t: c.get("task_type") not in (None, "CAUSAL_LM"), (VLLM, LLAMA_CPP)),
    Feature("DoRA", lambda c, t: bool(c.get("use_dora")), (TRANSFORMERS, VLLM, LLAMA_CPP)),
    Feature("tensors that all modules share", lambda c, t: c.get("peft_type") == "VERA", (TRANSFORMERS,)),
    Feature("biases", lambda c, t: c.get("bias", "none") != "none" or bool(c.get("lora_bias")), (VLLM, LLAMA_CPP)),
    Feature("whole modules", lambda c, t: bool(c.get("modules_to_save")), (VLLM, LLAMA_CPP)),
    Feature("single tokens", lambda c, t: bool(c.get("trainable_token_indices")), (VLLM, LLAMA_CPP)),
    Feature("single parameters", lambda c, t: bool(c.get("target_parameters")), (VLLM, LLAMA_CPP)),
    Feature("tensors beside LoRA's", lambda c, t: not all(map(_is_lora, t)), (VLLM, LLAMA_CPP)),
    Feature("convolutions", lambda c, t: any(len(shape) > 2 for shape in t.values()), (VLLM, LLAMA_CPP)),
    Feature("embeddings", lambda c, t: any(".lora_embedding_" in name for name in t), (LLAMA_CPP,)),
    Feature("rsLoRA", lambda c, t: bool(c.get("use_rslora")), (LLAMA_CPP,)),
    Feature("an alpha_pattern", lambda c, t: bool(c.get("alpha_pattern")), (LLAMA_CPP,)),
    Feature("a high rank", lambda c, t: max(_ranks(c)) > MAX_VLLM_RANK, (VLLM,)),
)


def loading(config: Config, shapes: Shapes) -> list[str]:
    """The engines that load files in PEFT's form as they are meant.

    **Arguments:**

    - `config`: the content of adapter_config.json.
    - `shapes`: every tensor's shape, by the name that the file has for it.
    """
    out = {engine for feature in FEATURES if feature.has(config, shapes) for engine in feature.keeps_out}
    return [engine for engine in ENGINES if engine not in out]


def reasons(config: Config, shapes: Shapes) -> dict[str, list[str]]:
    """Each engine that does not, and what keeps it out."""
    found: dict[str, list[str]] = {}
    for feature in FEATURES:
        for engine in feature.keeps_out if feature.has(config, shapes) else ():
            found.setdefault(engine, []).append(feature.name)
    return found
