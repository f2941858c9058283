"""Forecasts of runs against what they took: python -m benchmarks.forecast [--fit] [NAME ...]

Each configuration is a model with random weights and rows of words. What `inlay plan` foresees, and what `inlay train` makes of
that once some batches are measured, are compared with the most memory that the process of that run held, and with the seconds
of its steps and evaluations. `--fit` runs the configurations that the constants of `inlay.runs` were fitted to; without it the
others are run, to which nothing was fitted.
"""

import ast
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch


class Configuration(NamedTuple):
    """A run: model, method, rows."""

    family: str
    width: int
    layers: int
    method: str = "lora"
    task: str = "causal-lm"
    words: tuple[int, int] = (10, 80)
    """The fewest and the most words of a row."""
    batch_size: int = 4
    steps: int = 4
    scheme: str | None = None
    dtype: str | None = None
    micro_batch_tokens: int | None = None
    stored: str = "bfloat16"


FIT = {
    "llama": Configuration("llama", 576, 8),
    "llama-wide": Configuration("llama", 1024, 4, words=(60, 200), steps=3),
    "llama-long": Configuration("llama", 576, 6, words=(300, 900), batch_size=2, steps=3),
    "llama-nf4": Configuration("llama", 576, 8, scheme="nf4"),
    "llama-float32": Configuration("llama", 512, 6, stored="float32", dtype="float32"),
    "gpt2": Configuration("gpt2", 512, 6),
    "llama-dora": Configuration("llama", 576, 6, method="dora"),
    "bert-classes": Configuration("bert", 512, 6, task="sequence-classification"),
    "llama-micro": Configuration("llama", 576, 8, micro_batch_tokens=256),
}
OTHERS = {
    "llama-320": Configuration("llama", 320, 12),
    "llama-768": Configuration("llama", 768, 6, words=(10, 100), batch_size=8),
    "llama-deep": Configuration("llama", 448, 24, words=(30, 150), steps=3),
    "llama-1280": Configuration("llama", 1280, 3, words=(60, 150), batch_size=3, steps=3),
    "llama-2k": Configuration("llama", 640, 5, words=(400, 700), batch_size=2, steps=3),
    "llama-short": Configuration("llama", 704, 8, words=(3, 12), batch_size=16, steps=8),
    "llama-even": Configuration("llama", 576, 10, words=(100, 101), batch_size=6, steps=3),
    "llama-nf4-wide": Configuration("llama", 1024, 5, scheme="nf4", words=(30, 150)),
    "llama-nf4-long": Configuration("llama", 512, 8, scheme="nf4", words=(300, 600), batch_size=2, steps=3),
    "llama-int8": Configuration("llama", 768, 6, scheme="int8"),
    "llama-float32-384": Configuration("llama", 384, 10, stored="float32", dtype="float32", words=(30, 200)),
    "llama-widened": Configuration("llama", 576, 8, dtype="float32"),
    "llama-micro-128": Configuration("llama", 704, 8, micro_batch_tokens=128),
    "llama-micro-1500": Configuration("llama", 448, 10, micro_batch_tokens=1500, batch_size=12, steps=3),
    "llama-ia3": Configuration("llama", 576, 9, method="ia3"),
    "llama-dora-nf4": Configuration("llama", 704, 5, method="dora", scheme="nf4"),
    "llama-prefix": Configuration("llama", 576, 8, method="prefix"),
    "llama-bitfit": Configuration("llama", 640, 7, method="ln_tuning"),
    "llama-vera": Configuration("llama", 576, 7, method="vera"),
    "llama-loha": Configuration("llama", 512, 5, method="loha", steps=3),
    "llama-oft": Configuration("llama", 512, 6, method="oft", steps=3),
    "llama-bottleneck": Configuration("llama", 640, 8, method="bottleneck"),
    "qwen2": Configuration("qwen2", 640, 7, words=(30, 180)),
    "gpt2-768": Configuration("gpt2", 768, 5, words=(30, 150)),
    "bert-classes-384": Configuration("bert", 384, 9, task="sequence-classification", words=(10, 70), batch_size=8),
    "bert-tags": Configuration("bert", 640, 5, task="token-classification", words=(20, 70)),
    "bert-vectors": Configuration("bert", 512, 7, task="embedding", words=(10, 70), batch_size=8),
    "llama-classes": Configuration("llama", 576, 8, task="sequence-classification", words=(20, 120)),
    "t5-answers": Configuration("t5", 512, 4, task="seq2seq", words=(20, 100)),
}
"""None of these had a part in fitting anything."""


def build(wanted: Configuration, place: Path) -> None:
    """The model of a configuration, with random weights, and the tokenizer of the demo's base."""
    import transformers

    from benchmarks.shapes import _tokenizer

    width, layers, heads, vocabulary = wanted.width, wanted.layers, wanted.width // 64, 8192
    usual: dict[str, Any] = dict(
        hidden_size=width, intermediate_size=8 * width // 3 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=heads, vocab_size=vocabulary, max_position_embeddings=2048,
    )  # fmt: skip
    match wanted.family:
        case "llama" | "qwen2":
            kind = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[wanted.family]
            config: Any = kind(
                **usual, num_key_value_heads=heads if heads % 2 else heads // 2, tie_word_embeddings=True
            )
        case "gpt2":
            config = transformers.GPT2Config(
                n_embd=width, n_layer=layers, n_head=heads, vocab_size=vocabulary, n_positions=1024
            )
        case "bert":
            config = transformers.BertConfig(**usual | {"max_position_embeddings": 512})
        case _:
            config = transformers.T5Config(
                d_model=width, d_kv=64, d_ff=2 * width, num_layers=layers, num_heads=heads, vocab_size=vocabulary,
                decoder_start_token_id=0,
            )  # fmt: skip
    auto = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
    }.get(wanted.task if wanted.family != "llama" else "causal-lm", transformers.AutoModel)
    torch.manual_seed(0)
    model: Any = auto.from_config(config, dtype=getattr(torch, wanted.stored))
    model.save_pretrained(place)
    _tokenizer(place)


WORDS = [
    "the",
    "cat",
    "house",
    "river",
    "stone",
    "green",
    "small",
    "old",
    "walks",
    "sees",
    "finds",
    "under",
    "over",
    "never",
]


def rows(wanted: Configuration, place: Path) -> None:
    """Rows of the task, of words drawn at random."""
    draw = random.Random(1)

    def text() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(*wanted.words)))

    forms: dict[str, Any] = {
        "causal-lm": lambda: {"prompt": " ".join(draw.choice(WORDS) for _ in range(8)), "completion": text()},
        "sequence-classification": lambda: {"text": text(), "label": draw.choice(["no", "yes"])},
        "embedding": lambda: {"anchor": text(), "positive": text()},
        "seq2seq": lambda: {"prompt": text(), "completion": text()},
        "token-classification": lambda: (lambda w: {"tokens": w, "tags": [draw.choice(["O", "B-X"]) for _ in w]})(
            text().split()
        ),
    }
    number = wanted.batch_size * wanted.steps + 24
    place.write_text("".join(json.dumps(forms[wanted.task]()) + "\n" for _ in range(number)))


def made(wanted: Configuration, place: Path) -> list[str]:
    """The arguments of a run of this configuration, whose model and rows are made in a folder by another process."""
    subprocess.run([sys.executable, "-m", "benchmarks.forecast", "--build", place, repr(tuple(wanted))], check=True)
    flags = {
        "--method": wanted.method, "--task": wanted.task, "--max-steps": wanted.steps, "--batch-size": wanted.batch_size,
        "--micro-batch-tokens": wanted.micro_batch_tokens, "--dtype": wanted.dtype, "--quantize": wanted.scheme,
        "--eval-fraction": 0.1,
    }  # fmt: skip
    given = [str(part) for flag, value in flags.items() if value is not None for part in (flag, value)]
    return [f"{place}/base", f"{place}/rows.jsonl", *given, "--json"]


def command(name: str, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """`inlay NAME ARGUMENTS` on one thread, in a process of its own, which records nothing."""
    typed = [sys.executable, "-W", "ignore", "-m", "inlay", name, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "INLAY_RUNS": "none"}
    return subprocess.run(typed, env=environment, capture_output=True, text=True, **how)


def one(wanted: Configuration) -> dict[str, Any]:
    """What `inlay plan` foresaw of a configuration, what `inlay train` made of that, and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        arguments, place = made(wanted, Path(folder)), Path(folder)
        foreseen, trained = command("plan", *arguments), command("train", *arguments, "--output", f"{place}/out")
        for done in (foreseen, trained):
            assert done.returncode == 0, done.stderr
        report, record = json.loads(trained.stdout.splitlines()[-1]), json.loads((place / "out/inlay.json").read_text())
        return {
            "first": json.loads(foreseen.stdout.splitlines()[-1]),
            "then": record["training"]["forecast"],
            "peak": report["peak_rss_bytes"],
            "seconds": report["seconds"],
        }


def main(*arguments: str) -> None:
    """Run the configurations, or those of these names, and print a line for each."""
    if arguments[:1] == ("--build",):
        place, wanted = Path(arguments[1]), Configuration(*ast.literal_eval(arguments[2]))
        build(wanted, place / "base")
        rows(wanted, place / "rows.jsonl")
        return
    table = FIT if "--fit" in arguments else OTHERS
    names = [name for name in arguments if not name.startswith("-")] or list(table)
    print(f"{'':18} {'peak':>8} {'plan':>7} {'train':>7} {'took':>8} {'plan':>7} {'train':>7}")
    errors: dict[str, list[float]] = {"memory, plan": [], "memory, train": [], "time, plan": [], "time, train": []}
    for name in names:
        found = one((FIT | OTHERS)[name])
        off = [
            found[which][what] / found[took] - 1
            for what, took in (("memory_bytes", "peak"), ("seconds", "seconds"))
            for which in ("first", "then")
        ]
        for key, value in zip(errors, off, strict=True):
            errors[key].append(value)
        print(
            f"{name:18} {found['peak'] / 1e6:6.0f}MB {off[0]:+7.1%} {off[1]:+7.1%} {found['seconds']:7.1f}s "
            f"{off[2]:+7.1%} {off[3]:+7.1%}",
            flush=True,
        )
    for key, values in errors.items():
        sizes = [abs(value) for value in values]
        print(f"{key:14} median {median(sizes):.1%}, most {max(values):+.1%}, least {min(values):+.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
