"""What peft, TRL, axolotl, LLaMA-Factory, Unsloth and mlx-lm call things, and what to type for them here."""

from collections.abc import Sequence

from inlay.errors import ConfigError, explain

OURS = {
    "lr": "--learning-rate 1e-3",
    "rank": "--r 16",
    "lora-r": "--r 16",
    "lora-rank": "--r 16",
    "alpha": "--lora-alpha 32",
    "dropout": "--lora-dropout 0.05",
    "lora-target": "--target-modules q_proj,v_proj",
    "lora-target-modules": "--target-modules q_proj,v_proj",
    "lora-target-linear": "nothing: all linear layers are adapted unless --target-modules names some",
    "num-train-epochs": "--epochs 1",
    "num-epochs": "--epochs 1",
    "iters": "--max-steps 100",
    "per-device-train-batch-size": "--batch-size 16",
    "micro-batch-size": "--batch-size 16, which is of a step; the memory of one is kept within bounds by itself",
    "gradient-accumulation-steps": "--batch-size 16, which is of a step; it goes through the model in parts by itself",
    "gradient-checkpointing": "nothing: activations are recomputed where that saves memory",
    "packing": "nothing: rows are packed where the model allows it",
    "sample-packing": "nothing: rows are packed where the model allows it",
    "load-in-4bit": "--quantize nf4",
    "load-in-8bit": "--quantize int8",
    "bf16": "--dtype bfloat16",
    "fp16": "--dtype float16",
    "max-seq-length": "--max-length 2048",
    "sequence-len": "--max-length 2048",
    "cutoff-len": "--max-length 2048",
    "val-set-size": "--eval-fraction 0.05",
    "model-name-or-path": "the model without a flag: inlay train MODEL DATA --output DIR",
    "base-model": "the model without a flag: inlay train MODEL DATA --output DIR",
    "dataset": "the data without a flag: inlay train MODEL DATA --output DIR",
    "dataset-name": "the data without a flag: inlay train MODEL DATA --output DIR",
    "output-dir": "--output DIR",
    "adapter-path": "--adapter DIR",
    "max-tokens": "--max-new-tokens 256",
    "top-k-sampling": "--top-k 50",
}
"""A name of theirs -> what is typed here."""


def ours(name: str) -> str | None:
    """What is typed for a name of theirs, however it is written."""
    return OURS.get(name.lstrip("-").replace("_", "-"))


def check(arguments: Sequence[str]) -> None:
    """Refuse flags of other tools with what they are here.

    **Raises:**

    - `ConfigError`: there are some; the hint says all.
    """
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    found = {flag: hint for flag in flags if (hint := ours(flag)) is not None}
    if found:
        plural = "flags" if len(found) > 1 else "a flag"
        raise ConfigError(explain(f"{plural} of other tools", found=", ".join(found), do="; ".join(found.values())))
