"""Our QLoRA step against our bfloat16 step and peft with bitsandbytes: python -m benchmarks.qlora [SHAPE] [ROWS] [TOKENS]

r=16 on all linear layers, AdamW, every token supervised, two threads, as `benchmarks.step` does it: processes that keep their
models and step in turn. Ours finds the base in NF4 on disk, made by `inlay quantize` beforehand; bitsandbytes quantises it
as it loads, which is all it can do with a plain checkpoint. Printed are medians of seconds, the peak of resident memory, and
the seconds of loading: from the imported libraries to a model that can make its first step.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks import shapes, step
from inlay.base.quantize import quantize
from inlay.io.checkpoint import open_checkpoint

WAYS = ("inlay, nf4", "inlay, bfloat16", "peft and bitsandbytes")


def main(shape: str = "1b", rows: str = "2", tokens: str = "256") -> None:
    """Measure all ways and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        plain = shapes.directory(shape, Path(folder) / shape)
        packed = Path(folder) / f"{shape}-nf4"
        start = time.perf_counter()
        quantize(open_checkpoint(plain), packed)
        print(f"{shape}, {rows} x {tokens} tokens; quantised in {time.perf_counter() - start:.1f} s")
        directories = (packed, plain, plain)
        workers = [
            step.start("benchmarks.qlora", way, str(directory), rows, tokens)
            for way, directory in zip(WAYS, directories, strict=True)
        ]
        turns = step.turns(workers)
    ours = median(turn[0]["seconds"] for turn in turns)
    for i, way in enumerate(WAYS):
        times, last = [turn[i]["seconds"] for turn in turns], turns[-1][i]
        print(
            f"{way:22} {median(times):6.2f} s ({min(times):.2f} to {max(times):.2f}), {median(times) / ours:.2f} times ours, "
            f"peak {last['peak_bytes'] / 1e9:.2f} GB ({turns[-1][0]['peak_bytes'] / last['peak_bytes']:.2f}), "
            f"loaded in {last['loaded']:.2f} s"
        )


def of_peer(directory: str, **how: str) -> step.Step:
    """The step of peft over weights that bitsandbytes quantises."""
    import peft
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, quantization_config=config, **how)
    return step.of_peft(peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False))


def worker(way: str, directory: str, rows: str, tokens: str) -> None:
    """A step for every line that comes in."""
    if way == "peft and bitsandbytes":  # what takes the first step is imported before the clock starts
        import bitsandbytes  # noqa: F401
        import peft  # noqa: F401
    else:
        import inlay.training.loop  # noqa: F401
    import transformers.models.llama  # noqa: F401

    start = time.perf_counter()
    made = of_peer(directory) if way == "peft and bitsandbytes" else step.of_inlay(directory, "bfloat16")[0]
    step.answer(way, made, int(rows), int(tokens), loaded=time.perf_counter() - start)


if __name__ == "__main__":
    torch.set_num_threads(2)
    worker(*sys.argv[2:]) if sys.argv[1:2] == ["worker"] else main(*sys.argv[1:])
