"""Our LoRA step against peft's at a shape: python -m benchmarks.step [SHAPE] [DTYPE] [ROWS] [TOKENS]

r=16 on all linear layers, AdamW, every token supervised. Each way is a process of its own that keeps its model; they step in
turn, the others waiting, on two threads. Ours runs with and without `training.memory`. Printed are medians of seconds, how they
compare with peft's and with the floor, and the peak of resident memory. The floor: 4 N T operations (forward, and back to the
input) at the rate of one large product in the dtype that ours multiplies in, measured before each round and after it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from benchmarks import floor, shapes
from inlay.core.product import product_dtype

NUM_STEPS = 5
WAYS = ("peft", "inlay", "inlay, malloc as it is")


def main(shape: str = "135m", dtype: str = "float32", rows: int = 4, tokens: int = 256) -> None:
    """Measure all ways and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        directory = shapes.directory(shape, Path(folder) / shape, getattr(torch, dtype))
        given = [str(directory), dtype, str(rows), str(tokens)]
        workers = [_worker(way, given) for way in WAYS]
        multiplied = product_dtype(torch.empty(0, dtype=getattr(torch, dtype)))
        rates, turns = [floor.rate(dtype=multiplied)], []
        for _ in range(NUM_STEPS + 1):
            turns.append([_turn(worker) for worker in workers])
            rates.append(floor.rate(dtype=multiplied))
        turns, rate = turns[1:], median(rates)  # the first one warms up
        for worker in workers:
            worker.communicate()
    num_weights = turns[0][0]["num_weights"]
    least = floor.operations(num_weights, rows * tokens) / rate
    print(f"{shape}, {rows} x {tokens} tokens, {dtype}; floor {least:.2f} s at {rate / 1e9:.0f} GFLOP/s")
    theirs = median(turn[0]["seconds"] for turn in turns)
    for i, way in enumerate(WAYS):
        times, peak = [turn[i]["seconds"] for turn in turns], turns[-1][i]["peak_bytes"]
        print(
            f"{way:24} {median(times):6.2f} s ({min(times):.2f} to {max(times):.2f}), {theirs / median(times):.2f} times "
            f"peft's speed, {median(times) / least:.2f} times the floor, peak {peak / 1e9:.2f} GB"
        )


def _worker(way: str, given: list[str]) -> "subprocess.Popen[str]":
    """A process that makes a step for every line that it reads."""
    command = [sys.executable, "-m", "benchmarks.step", "worker", way, *given]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _turn(worker: "subprocess.Popen[str]") -> dict[str, float]:
    """One step of one worker."""
    assert worker.stdin is not None, "it is a pipe"
    assert worker.stdout is not None, "it is a pipe"
    worker.stdin.write("step\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def worker(way: str, directory: str, dtype: str, rows: str, tokens: str) -> None:
    """A step for every line that comes in."""
    from inlay.training.job import peak_rss_bytes

    step, num_weights = (_peft if way == "peft" else _inlay)(way, directory, dtype)
    draws = _draws(int(rows), int(tokens))
    for _ in sys.stdin:
        ids = next(draws)
        start = time.perf_counter()
        step(ids)
        seconds = time.perf_counter() - start
        print(f"{way}: {seconds:.2f} s", file=sys.stderr)
        print(json.dumps(dict(seconds=seconds, peak_bytes=peak_rss_bytes(), num_weights=num_weights)), flush=True)


def _draws(rows: int, tokens: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(3, 500, (rows, tokens), generator=generator)


def _peft(way: str, directory: str, dtype: str) -> tuple[Callable[[torch.Tensor], object], int]:
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    num_weights = model.num_parameters()
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def step(ids: torch.Tensor) -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, num_weights


def _inlay(way: str, directory: str, dtype: str) -> tuple[Callable[[torch.Tensor], object], int]:
    import inlay
    from inlay.text.mask import Example
    from inlay.training import memory
    from inlay.training.loop import Stepper
    from inlay.training.settings import Settings

    if way != "inlay":
        memory.keep_freed_blocks = lambda: False
    base = inlay.load(directory, dtype=dtype)
    base.attach(inlay.Lora(r=16), "it")
    stepper = Stepper(base, "it", Settings(), 1e-4)

    def step(ids: torch.Tensor) -> None:
        stepper.step([Example(tuple(row), (True,) * len(row), "row") for row in ids.tolist()])

    return step, base.num_weights


if __name__ == "__main__":
    torch.set_num_threads(2)
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        main(*sys.argv[1:3], *map(int, sys.argv[3:]))
