"""Our LoRA or DoRA step against peft's at a shape: python -m benchmarks.step [SHAPE] [DTYPE] [ROWS] [TOKENS] [METHOD]

r=16 on all linear layers, fused experts among them, AdamW, every token supervised, two threads. Each way is a process of its
own that keeps its model; they step in turn, the others waiting. Ours runs with and without freed memory kept. Printed are
medians of seconds, how they compare with peft's and with the floor, and the peak of resident memory. The floor: 4 N T
operations (forward, and back to the input) at the rate of one large product in the dtype that ours multiplies in, measured
before each round and after it; it counts all experts, of which a token sees few.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks import floor, shapes
from inlay.kernels.product import product_dtype

NUM_STEPS = 7
WAYS = ("peft", "inlay", "inlay, malloc as it is")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

Step = Callable[[torch.Tensor], object]
"""Learns from token ids (rows, tokens)."""


def main(
    shape: str = "135m", dtype: str = "float32", rows: str = "4", tokens: str = "256", method: str = "lora"
) -> None:
    """Measure all ways and print a line for each."""
    multiplied = product_dtype(torch.empty(64, 1, dtype=getattr(torch, dtype)))
    rates = [floor.rate(dtype=multiplied)]
    with tempfile.TemporaryDirectory() as folder:
        directory = shapes.directory(shape, Path(folder) / shape, getattr(torch, dtype))
        workers = [start("benchmarks.step", way, str(directory), dtype, rows, tokens, method) for way in WAYS]
        rounds = turns(workers, lambda: rates.append(floor.rate(dtype=multiplied)))
    rate = median(rates)
    least = floor.operations(rounds[0][1]["num_weights"], int(rows) * int(tokens)) / rate
    print(f"{method}, {shape}, {rows} x {tokens} tokens, {dtype}; floor {least:.2f} s at {rate / 1e9:.0f} GFLOP/s")
    theirs = median(turn[0]["seconds"] for turn in rounds)
    for i, way in enumerate(WAYS):
        times, peak = [turn[i]["seconds"] for turn in rounds], rounds[-1][i]["peak_bytes"]
        print(
            f"{way:24} {median(times):6.2f} s ({min(times):.2f} to {max(times):.2f}), {theirs / median(times):.2f} times "
            f"peft's speed, {median(times) / least:.2f} times the floor, peak {peak / 1e9:.2f} GB"
        )


def start(module: str, way: str, *given: str, tree: Path | None = None) -> "subprocess.Popen[str]":
    """A process that makes a step for every line that it reads, by this tree or another; its module calls `answer`."""
    command = [sys.executable, "-m", module, "worker", way, *given]
    path = None if tree is None else {**os.environ, "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}"}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree, env=path)


def turns(
    workers: list["subprocess.Popen[str]"], after: Callable[[], object] = lambda: None
) -> list[list[dict[str, float]]]:
    """What each worker says of each of NUM_STEPS steps, after one that warms up; `after` is called after every round."""
    rounds = []
    for _ in range(NUM_STEPS + 1):
        rounds.append([turn(worker) for worker in workers])
        after()
    for worker in workers:
        worker.communicate()
    return rounds[1:]


def turn(worker: "subprocess.Popen[str]") -> dict[str, float]:
    """One step of one worker."""
    assert worker.stdin is not None, "it is a pipe"
    assert worker.stdout is not None, "it is a pipe"
    worker.stdin.write("step\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def worker(way: str, directory: str, dtype: str, rows: str, tokens: str, method: str) -> None:
    """A step for every line that comes in."""
    if way == "peft":
        from transformers import AutoModelForCausalLM

        step = of_peft(AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)), method)
        answer(way, step, int(rows), int(tokens))
    else:
        from inlay import process

        if way != "inlay":
            process.keep_freed_blocks = lambda: False
        step, num_weights = of_inlay(directory, dtype, method)
        answer(way, step, int(rows), int(tokens), num_weights=num_weights)


def answer(way: str, step: Step, rows: int, tokens: int, **also: float) -> None:
    """Make a step for every line that comes in, and say what it took, and `also`."""
    from inlay.process import peak_rss_bytes

    generator = torch.Generator().manual_seed(0)
    for _ in sys.stdin:
        ids = torch.randint(3, 500, (rows, tokens), generator=generator)
        begun = time.perf_counter()
        step(ids)
        seconds = time.perf_counter() - begun
        print(f"{way}: {seconds:.2f} s", file=sys.stderr)
        print(json.dumps(dict(seconds=seconds, peak_bytes=peak_rss_bytes(), **also)), flush=True)


def of_peft(model: torch.nn.Module, method: str = "lora") -> Step:
    """The step of peft around a model of `transformers`."""
    import peft

    how = dict(r=16, lora_alpha=32, target_modules="all-linear", use_dora=method == "dora", task_type="CAUSAL_LM")
    if any(name.endswith("experts") for name, _ in model.named_modules()):
        how |= dict(target_modules=ATTENTION, target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    config = peft.LoraConfig(**how)
    tuned = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=1e-4)

    def step(ids: torch.Tensor) -> None:
        tuned(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def of_inlay(
    directory: str, dtype: str, method: str = "lora", device: str = "cpu", device_memory: int | None = None
) -> tuple[Step, int]:
    """Ours, and the number of weights of the base; `device_memory`: as much of the device it may take."""
    import inlay
    from inlay import methods
    from inlay.text.mask import Example
    from inlay.training.settings import Plan, Settings
    from inlay.training.state import TrainState
    from inlay.training.step import step_

    base = inlay.load(directory, dtype=dtype, device=device, device_memory=device_memory)
    base.attach(methods.find(method)(r=16), "it")
    state = TrainState.new(base.adapters["it"], Settings(), Plan(1000, 1, 1e-4, "as asked", 1000))

    def step(ids: torch.Tensor) -> None:
        step_(base, state, [Example(tuple(row), (True,) * len(row), "row") for row in ids.tolist()])

    return step, base.num_weights


if __name__ == "__main__":
    torch.set_num_threads(2)
    worker(*sys.argv[2:]) if sys.argv[1:2] == ["worker"] else main(*sys.argv[1:])
