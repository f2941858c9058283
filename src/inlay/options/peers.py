"""What peft, TRL, axolotl, LLaMA-Factory, Unsloth, mlx-lm and llama.cpp call things, and what to type for them here."""

_PACKED = "nothing: rows are packed where the model allows it"
_SCHEDULE = "nothing: the learning rate rises over the first steps, then falls to 0"
_PARTS = "--batch-size 16, which is of a step; it goes through the model in parts by itself"
_THREADS = "OMP_NUM_THREADS=4 in front of inlay"

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
    "num-layers": "--layers-to-transform 12-27, of a model with 28 layers the last 16",
    "use-dora": "--method dora",
    "use-peft": "nothing: an adapter is trained; --method full trains the model",
    "finetuning-type": "--method lora",
    "fine-tune-type": "--method lora",
    "adapter-type": "--method lora",
    "num-train-epochs": "--epochs 1",
    "num-epochs": "--epochs 1",
    "iters": "--max-steps 100",
    "train-batch-size": "--batch-size 16",
    "per-device-train-batch-size": "--batch-size 16",
    "micro-batch-size": "--batch-size 16, which is of a step; the memory of one is kept within bounds by itself",
    "gradient-accumulation-steps": _PARTS,
    "grad-accumulation-steps": _PARTS,
    "gradient-checkpointing": "--recompute; much is recomputed without it",
    "grad-checkpoint": "--recompute; much is recomputed without it",
    "packing": _PACKED,
    "sample-packing": _PACKED,
    "load-in-4bit": "--quantize nf4",
    "load-in-8bit": "--quantize int8",
    "use-4bit": "--quantize nf4",
    "bf16": "--dtype bfloat16",
    "fp16": "--dtype float16",
    "torch-dtype": "--dtype bfloat16",
    "max-seq-length": "--max-length 2048",
    "max-seq-len": "--max-length 2048",
    "sequence-len": "--max-length 2048",
    "cutoff-len": "--max-length 2048",
    "val-set-size": "--eval-fraction 0.05",
    "val-size": "--eval-fraction 0.05",
    "eval-steps": "--eval-every 50",
    "save-steps": "--save-every 50",
    "logging-steps": "nothing: every step is kept in the run's record",
    "report-to": "--log wandb",
    "warmup-steps": _SCHEDULE,
    "warmup-ratio": _SCHEDULE,
    "lr-scheduler-type": _SCHEDULE,
    "lr-scheduler": _SCHEDULE,
    "optim": "nothing: the optimiser is AdamW",
    "optimizer": "nothing: the optimiser is AdamW",
    "completion-only-loss": "--train-on completions",
    "assistant-only-loss": "--train-on completions",
    "mask-prompt": "--train-on completions",
    "resume-from-checkpoint": "--resume DIR, the directory that the run was to write",
    "output-dir": "--output DIR",
    "out-dir": "--output DIR",
    "o": "--output DIR",
    "adapter-path": "--adapter DIR",
    "adapter-name-or-path": "--adapter DIR",
    "lora": "--adapter DIR",
    "p": "--prompt TEXT",
    "n-predict": "--max-new-tokens 256",
    "n": "--max-new-tokens 256",
    "max-tokens": "--max-new-tokens 256",
    "temp": "--temperature 0.7",
    "repeat-penalty": "--repetition-penalty 1.1",
    "top-k-sampling": "--top-k 50",
    "ctx-size": "nothing: the context is as long as the model's positions",
    "threads": _THREADS,
    "t": _THREADS,
    "n-gpu-layers": "--device cuda, with --device-memory 24GB where a quantised base is larger than the device",
    "ngl": "--device cuda, with --device-memory 24GB where a quantised base is larger than the device",
}
"""A name of theirs -> what is typed here."""

ARGUMENTS = {
    **dict.fromkeys(("model-name-or-path", "model-name", "base-model", "m"), "model"),
    **dict.fromkeys(("dataset", "dataset-name", "dataset-path", "train-file"), "data"),
}
"""A flag of theirs -> an argument that stands without a flag here."""


def ours(name: str) -> str | None:
    """What is typed for a name of theirs, however it is written."""
    return OURS.get(_plain(name))


def argument(name: str) -> str:
    """The argument that is meant by a flag: what it is called here."""
    return ARGUMENTS.get(_plain(name), _plain(name))


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-")
