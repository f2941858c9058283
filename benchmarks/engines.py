"""Answers of Inlay, vLLM and llama.cpp: python -m benchmarks.engines MODEL [WORK ...] "ENGINE [FORM] [LABEL]=PYTHON" ...

MODEL is a shape of `benchmarks.shapes` or a Llama's directory, beside which the files that an engine needs are written, once.
ENGINE is inlay, vllm or llama, PYTHON one that has it, FORM how the weights are kept: bf16, or nf4 of inlay, or q4_0 of llama;
"vllm lora" takes adapters, and no other vllm does.
The first engine is what the others are compared with. WORK, all where none is said:

    one       64 new tokens to a prompt of 16, of the plain base
    eight     the same to eight prompts at a time
    mixed     eight at a time, for seven adapters (r = 16, all linear maps) and for none
    prefill   eight prompts of 512 tokens, a new token each

Each engine is a process with 2 threads that keeps its model; they answer in turn, the others waiting, prompts that none has
seen: pieces of this project's own text. Printed are medians of seconds, and how many of the first new tokens are those of the
first engine, the likeliest by both: mean and least over all rows.
"""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import inlay
from benchmarks import shapes
from inlay.base.quantize import quantize
from inlay.io.checkpoint import open_checkpoint

NEW, PROMPT, LONG, ROWS, ROUNDS, NUM_THREADS = 64, 16, 512, 8, 3, 2
NAMES = [f"a{number}" for number in range(ROWS - 1)]
WORKS: dict[str, tuple[int, list[str | None], int]] = {
    "one": (PROMPT, [None], NEW),
    "eight": (PROMPT, [None] * ROWS, NEW),
    "mixed": (PROMPT, [*NAMES, None], NEW),
    "prefill": (LONG, [None] * ROWS, 1),
}
"""(tokens of a prompt, the adapter of each row, new tokens) by name."""

PAUSE_SECONDS = 0.3
"""Between two turns: threads that have waited a while for more work sleep then, and take nothing from the next engine."""


def main(model: str, *given: str) -> None:
    """Print a line for each work and engine."""
    works = [one for one in given if "=" not in one] or [*WORKS]
    engines = dict(one.split("=", 1) for one in given if "=" in one)
    with tempfile.TemporaryDirectory() as place:
        directory, adapters, text = _prepared(model, Path(place), works, engines)
        workers = [_Worker(name, python, directory, adapters) for name, python in engines.items()]
        rounds = {work: _measured(work, workers, text) for work in works}
        for worker in workers:
            worker.process.communicate()
    print(f"{_processor()}; {model}, {NUM_THREADS} threads, medians of {ROUNDS} rounds (fastest and slowest)")
    for work, found in rounds.items():
        first = next(iter(found.values()))
        for name, turns in found.items():
            seconds = [turn["seconds"] for turn in turns]
            ratio = statistics.median(seconds) / statistics.median(turn["seconds"] for turn in first)
            agree = [*itertools.chain(*(map(_agreeing, *pair) for pair in _answers(first, turns)))]
            print(
                f"{work:8} {name:20} {statistics.median(seconds):7.3f} s ({min(seconds):.3f} to {max(seconds):.3f}), "
                f"{ratio:5.2f} times the first; {statistics.mean(agree):.1f} tokens agree, at least {min(agree)}"
            )


def _prepared(model: str, place: Path, works: list[str], engines: dict[str, str]) -> tuple[Path, list[Path], list[int]]:
    """(the model's directory, those of the adapters, the token ids of a text)."""
    directory = Path(model) if Path(model).is_dir() else shapes.directory(model, place / model)
    packed, mixed = (directory.with_name(directory.name + suffix) for suffix in ("-nf4", "-adapters"))
    if any(name.startswith("inlay nf4") for name in engines) and not packed.exists():
        quantize(open_checkpoint(directory), packed)
    if "mixed" in works and not mixed.exists():
        base = inlay.load(directory, dtype="bfloat16")
        torch.manual_seed(0)
        for name in NAMES:
            for tensor in base.attach(inlay.Lora(r=16), name).tensors():
                torch.nn.init.normal_(tensor, std=0.03)
            (mixed / name).mkdir(parents=True)
            base.save(name, mixed / name, {})
    text = "".join(Path(name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    ids = AutoTokenizer.from_pretrained(directory)(text)["input_ids"]
    return directory, [mixed / name for name in NAMES] if "mixed" in works else [], ids


def _processor() -> str:
    """What Linux calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


class _Worker:
    """A process of an engine that is ready to answer."""

    def __init__(self, name: str, python: str, directory: Path, adapters: list[Path]):
        engine, *words = name.split()
        form = next((word for word in words if word in ("nf4", "q4_0", "lora")), "bf16")
        given = [engine, form, str(directory), str(2 * ROWS * (LONG + NEW)), *map(str, adapters)]
        command = [*python.split(), "-m", "benchmarks._engine_worker", *given]
        threads = os.environ | {"OMP_NUM_THREADS": str(NUM_THREADS)}
        pipe, self.name = subprocess.PIPE, name
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=threads)
        self.mixes = self._said()["mixes"]

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What it says to this."""
        assert self.process.stdin is not None, "it is a pipe"
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._said()

    def _said(self) -> dict[str, Any]:
        assert self.process.stdout is not None, "it is a pipe"
        line = self.process.stdout.readline()
        assert line, f"{self.name} has ended"
        return json.loads(line)


def _measured(work: str, workers: list[_Worker], text: list[int]) -> dict[str, list[dict[str, Any]]]:
    """What each engine says of each round, after one that warms up."""
    length, names, new = WORKS[work]
    able = [worker for worker in workers if worker.mixes or not any(names)]
    rng, found = random.Random(work), dict[str, list[dict[str, Any]]]()
    for number in range(ROUNDS + 1):
        starts = rng.sample(range(len(text) - length), len(names))
        asked = dict(rows=[text[start : start + length] for start in starts], adapters=names, new=new)
        for worker in able:
            said = worker.answer(asked)
            found.setdefault(worker.name, []).extend([said] if number else [])
            time.sleep(PAUSE_SECONDS)
    return found


def _answers(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """The answers of two engines, round by round."""
    return ((a["answers"], b["answers"]) for a, b in zip(one, other, strict=True))


def _agreeing(one: list[int], other: list[int]) -> int:
    """How many first tokens are the same."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


if __name__ == "__main__":
    main(*sys.argv[1:])
