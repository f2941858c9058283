"""Who else reads adapters, in which form, and what of one each of them refuses, or passes over without a word.

One table: `inlay inspect` and an adapter's card say from it who loads the files as they are, and `inlay export` what it writes
in another way, or refuses. Each line names something that an adapter may have and the engines that it keeps out, from the
sources of peft 0.21, transformers 5.23, vLLM 0.32, SGLang 0.5.23, llama.cpp of autumn 2026 and mlx-lm 0.32. An engine is
named where it loads such files on the bases that it knows; which those are is for its own documentation to say.

    SGLang      scaling is lora_alpha / r for every layer, whatever the patterns and use_rslora say; q stands with k and v,
                gate with up, and what is alone is an error or is dropped
    llama.cpp   scaling is alpha / rank of a tensor, with one alpha
    mlx-lm      one rank and one scale for all layers; a change of an embedding that is the head too is applied twice

Where the head is the embedding, engines differ in what a change of the head alone does: they refuse it, drop it, or change
both.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from inlay import methods

PEFT, TRANSFORMERS, VLLM, SGLANG, MLX = "peft", "transformers", "vllm", "sglang", "mlx"
LLAMA_CPP, OLLAMA = "llama.cpp", "ollama"

FORMS = {
    PEFT: "peft",
    TRANSFORMERS: "peft",
    VLLM: "peft",
    SGLANG: "peft",
    MLX: "mlx",
    LLAMA_CPP: "gguf",
    OLLAMA: "gguf",
}
"""The engines, and the format that each reads."""

LANGUAGE_MODEL = "CAUSAL_LM"
"""What PEFT calls the task of a model that goes on with a text; who takes no other one does not say it."""

PLAIN = (VLLM, SGLANG, MLX, LLAMA_CPP, OLLAMA)
"""The engines that take LoRA alone, and for which it is written as the plainest there is: see `inlay.export.engines`."""

MAX_VLLM_RANK = 512
"""The largest rank that vLLM can be started for (`--max-lora-rank`)."""

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that SGLang multiplies as one."""

PROMPTS = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")
"""What PEFT calls the methods that put virtual tokens in front of a row."""

Config = Mapping[str, Any]
Shapes = Mapping[str, Sequence[int]]


class Feature(NamedTuple):
    """Something that keeps engines out."""

    name: str
    has: Callable[[Config, Shapes], bool]
    """Whether files in PEFT's form have it, by the content of adapter_config.json and the shapes of the tensors."""
    keeps_out: tuple[str, ...]
    cure: Literal["export", "convert", "merge", "serve"] = "merge"
    """What makes something of it that the engines take: `inlay export` itself, `inlay convert`, or `inlay merge`; where nothing
    does, `inlay serve` answers with it."""


def _is_peft_type(name: Any) -> bool:
    return bool(name) and any(cls.peft.type == name for _, cls in methods.TABLE.known())


def _is_lora(name: str) -> bool:
    return ".lora_" in name  # DoRA's magnitudes too, which have a line of their own


def _ranks(config: Config) -> list[int]:
    return [config.get("r") or 0, *(config.get("rank_pattern") or {}).values()]


def modules(names: Sequence[str]) -> dict[str, set[str]]:
    """The last parts of the paths of adapted modules, by what holds them, from the names of tensors."""
    found: dict[str, set[str]] = {}
    for name in names:
        holder, _, last = name.partition(".lora_")[0].rpartition(".")
        found.setdefault(holder, set()).add(last)
    return found


def _stands_alone(config: Config, shapes: Shapes) -> bool:
    """Of layers that belong together some are adapted and others are not."""
    return any(0 < len(own & {*group}) < len(group) for own in modules([*shapes]).values() for group in TOGETHER)


def _has_head(config: Config, shapes: Shapes) -> bool:
    """A linear layer is adapted that is none of a numbered stack."""
    return any(".lora_A." in name and not any(part.isdigit() for part in name.split(".")) for name in shapes)


FEATURES = (
    Feature("a method of Inlay alone", lambda c, t: not _is_peft_type(c.get("peft_type")), tuple(FORMS), "convert"),
    Feature("another method than LoRA", lambda c, t: c.get("peft_type") != "LORA", PLAIN, "convert"),
    Feature("virtual tokens", lambda c, t: c.get("peft_type") in PROMPTS, (TRANSFORMERS, *PLAIN), "serve"),
    Feature("another task", lambda c, t: c.get("task_type") not in (None, LANGUAGE_MODEL), PLAIN),
    Feature("DoRA", lambda c, t: bool(c.get("use_dora")), (TRANSFORMERS, *PLAIN), "convert"),
    Feature(
        "tensors that all modules share", lambda c, t: c.get("peft_type") == "VERA", (TRANSFORMERS, *PLAIN), "convert"
    ),
    Feature("biases", lambda c, t: c.get("bias", "none") != "none" or bool(c.get("lora_bias")), PLAIN),
    Feature("whole modules", lambda c, t: bool(c.get("modules_to_save")), PLAIN),
    Feature("single tokens", lambda c, t: bool(c.get("trainable_token_indices")), PLAIN),
    Feature("single parameters", lambda c, t: bool(c.get("target_parameters")), PLAIN),
    Feature("tensors beside LoRA's", lambda c, t: c.get("peft_type") == "LORA" and not all(map(_is_lora, t)), PLAIN),
    Feature("convolutions", lambda c, t: any(len(shape) > 2 for shape in t.values()), PLAIN),
    Feature("embeddings", lambda c, t: any("embedding_" in name for name in t), (SGLANG, MLX, LLAMA_CPP, OLLAMA)),
    Feature("a layer beside the stack, such as the head", _has_head, PLAIN),
    Feature("a high rank", lambda c, t: max(_ranks(c)) > MAX_VLLM_RANK, (VLLM,), "convert"),
    Feature("rsLoRA", lambda c, t: bool(c.get("use_rslora")), (SGLANG, MLX, LLAMA_CPP, OLLAMA), "export"),
    Feature("an alpha_pattern", lambda c, t: bool(c.get("alpha_pattern")), (SGLANG, MLX, LLAMA_CPP, OLLAMA), "export"),
    Feature("a rank_pattern", lambda c, t: bool(c.get("rank_pattern")), (SGLANG, MLX), "export"),
    Feature("some of q, k and v, or of gate and up, alone", _stands_alone, (SGLANG,), "export"),
)


def reading(form: str) -> list[str]:
    """The engines that read a format."""
    return [engine for engine, own in FORMS.items() if own == form]


def loading(config: Config, shapes: Shapes) -> list[str]:
    """The engines that load files in PEFT's form as they are meant.

    **Arguments:**

    - `config`: the content of adapter_config.json.
    - `shapes`: every tensor's shape, by the name that the file has for it.
    """
    out = reasons(config, shapes)
    return [engine for engine in reading("peft") if engine not in out]


def reasons(config: Config, shapes: Shapes) -> dict[str, list[Feature]]:
    """Each engine that an adapter in PEFT's form keeps out as it is, and what of it does."""
    found: dict[str, list[Feature]] = {}
    for feature in FEATURES:
        for engine in feature.keeps_out if feature.has(config, shapes) else ():
            found.setdefault(engine, []).append(feature)
    return found


def incurable(config: Config, shapes: Shapes) -> dict[str, list[Feature]]:
    """Each engine for which `inlay export` can write nothing that does what the adapter does, and why."""
    found = {
        engine: [f for f in features if f.cure != "export"] for engine, features in reasons(config, shapes).items()
    }
    return {engine: features for engine, features in found.items() if features}
