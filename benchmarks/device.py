"""Our steps on a CUDA device against peft's: python -m benchmarks.device [SHAPE] [ROWS] [TOKENS] [WAY ...]

r=16 on all linear layers, AdamW, every token supervised, as `benchmarks.step` does it on a CPU. bfloat16 and NF4; peft's NF4 is
that of bitsandbytes. "inlay, nf4, 24GB" is a base whose layers come from the host as far as they do not fit into so much. One
process, one way after the other, each with a device of its own to itself. Printed are the median of seven steps after three
that warm up (of two after one, of a base that is streamed), tokens a second, and the most that the device held for tensors.
"""

import gc
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks import qlora, shapes, step
from inlay.base.quantize import quantize
from inlay.io.checkpoint import open_checkpoint
from inlay.runs.budget import num_bytes

WARM_UP, TIMED = 3, 7
WAYS = ("inlay, bfloat16", "peft, bfloat16", "inlay, nf4", "peft and bitsandbytes, nf4")


def main(shape: str = "1b", rows: str = "8", tokens: str = "1024", *ways: str) -> None:
    """Measure all ways and print a line for each."""
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name(device)}; {shape}, {rows} x {tokens} tokens", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        plain, packed, start = Path(folder) / shape, Path(folder) / f"{shape}-nf4", time.perf_counter()
        if ways and all(way.startswith("inlay, nf4") for way in ways):
            shapes.quantized(shape, packed)
            print(f"made in NF4 in {time.perf_counter() - start:.1f} s", flush=True)
        else:
            with device:  # random weights are drawn there in no time
                shapes.directory(shape, plain)
            quantize(open_checkpoint(plain), packed)
            print(f"made, and quantised on the CPU, in {time.perf_counter() - start:.1f} s", flush=True)
        for way in ways or WAYS:
            try:
                measure(way, packed if way.startswith("inlay, nf4") else plain, int(rows), int(tokens))
            except torch.OutOfMemoryError:
                print(f"{way:28} needs more memory than the device has", flush=True)
            gc.collect()
            torch.cuda.empty_cache()


def measure(way: str, directory: Path, rows: int, tokens: int) -> None:
    """Make the steps of one way and print its line."""
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    made = stepper(way, str(directory))
    loaded = time.perf_counter() - start
    times = []
    warm_up, timed = (1, 2) if way.endswith("GB") else (WARM_UP, TIMED)
    for number in range(warm_up + timed):
        ids = torch.randint(3, 500, (rows, tokens), generator=torch.Generator().manual_seed(number))
        torch.cuda.synchronize()
        start = time.perf_counter()
        made(ids)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = median(times[warm_up:])
    print(
        f"{way:28} {1000 * seconds:8.1f} ms ({1000 * min(times[warm_up:]):.1f} to {1000 * max(times[warm_up:]):.1f}), "
        f"{rows * tokens / seconds:,.0f} tokens/s, peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB, loaded in "
        f"{loaded:.1f} s",
        flush=True,
    )


def stepper(way: str, directory: str) -> step.Step:
    """What makes a step of this way on the device."""
    if way.startswith("inlay"):
        limit = num_bytes("--device-memory", way.split(", ")[2]) if way.endswith("GB") else None
        return step.of_inlay(directory, "bfloat16", device="cuda", device_memory=limit)[0]
    if way == "peft, bfloat16":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, device_map="cuda")
        return on_device(step.of_peft(model))
    return on_device(qlora.of_peer(directory, device_map="cuda"))


def on_device(made: step.Step) -> step.Step:
    """A step whose token ids go to the device first."""
    return lambda ids: made(ids.cuda())


if __name__ == "__main__":
    main(*sys.argv[1:])
