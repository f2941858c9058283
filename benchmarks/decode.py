"""How fast answers are made, beside transformers and peft: python -m benchmarks.decode [SHAPE [DTYPE [ROUNDS]]]

A model of SHAPE (135m) is asked for 64 new tokens to prompts of 16: one row and eight, of the plain base; one row of one
adapter; eight rows of seven adapters (r = 16, all linear maps) and none. Then 8 prompts of 512 tokens, a new token each.
`generate` of transformers does what it can of that, peft with `adapter_names` the mixed rows. In turn; medians.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

import inlay
from benchmarks import shapes
from inlay.generation.engine import Engine
from inlay.generation.sequence import Request

NEW, PROMPT, LONG, ROWS = 64, 16, 512, 8
NAMES = [None, *(f"a{number}" for number in range(ROWS - 1))]


def main(shape: str = "135m", dtype: str = "bfloat16", rounds: str = "5") -> None:
    """Print a line for each work."""
    with tempfile.TemporaryDirectory() as place:
        shapes.directory(shape, Path(place) / "base", getattr(torch, dtype))
        base = inlay.load(Path(place) / "base", dtype=dtype)
        theirs: Any = AutoModelForCausalLM.from_pretrained(Path(place) / "base", dtype=getattr(torch, dtype)).eval()
        ways = _ways(base, theirs)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(int(rounds) + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if number:  # the first warms up
                    taken[name].append(time.perf_counter() - start)
    print(f"{shape}, {dtype}, {torch.get_num_threads()} threads")
    for name, seconds in taken.items():
        spread = f"{1000 * min(seconds):.0f} to {1000 * max(seconds):.0f}"
        print(f"{name:40} {1000 * statistics.median(seconds):8.0f} ms ({spread})")


def _ways(base: Any, theirs: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    for name in NAMES[1:]:
        for tensor in base.attach(inlay.Lora(r=16), name).tensors():
            tensor.normal_(std=0.01)
    base.active = None
    engine = Engine(base.model, base.router, cache_tokens=2 * ROWS * (LONG + NEW))
    ids = torch.randint(3, 400, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    long = torch.randint(3, 400, (64, ROWS, LONG), generator=torch.Generator().manual_seed(1))
    turns = iter(long.repeat(9, 1, 1))  # others each time: the engine knows prompts again

    def ours(rows: torch.Tensor, names: list[str | None], new: int) -> None:
        adapters = [name and base.adapters[name] for name in names]
        asked = [
            Request(tokens=tuple(row), adapter=one, max_new_tokens=new)
            for row, one in zip(rows.tolist(), adapters, strict=True)
        ]
        assert len(list(engine.run(asked))) == len(names)

    def generated(model: Any, rows: torch.Tensor, new: int, **more: Any) -> None:
        greedy = dict(do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
        with torch.no_grad():
            model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **greedy, **more)

    mixed = _in_peft(theirs)
    return {
        "1 row, base: inlay": lambda: ours(ids[:1], [None], NEW),
        "1 row, base: transformers": lambda: generated(theirs, ids[:1], NEW),
        "1 row, one adapter: inlay": lambda: ours(ids[:1], ["a1"], NEW),
        "8 rows, base: inlay": lambda: ours(ids, [None] * ROWS, NEW),
        "8 rows, base: transformers": lambda: generated(theirs, ids, NEW),
        "8 rows, seven adapters and none: inlay": lambda: ours(ids, NAMES, NEW),
        "8 rows, seven adapters and none: peft": lambda: generated(
            mixed, ids, NEW, adapter_names=[name or "__base__" for name in NAMES]
        ),
        "8 x 512 tokens of prompts: inlay": lambda: ours(next(turns), [None] * ROWS, 1),
        "8 x 512 tokens of prompts: transformers": lambda: generated(theirs, next(turns), 1),
    }


def _in_peft(model: Any) -> Any:
    """A copy of the model in peft, with as many adapters."""
    config = peft.LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    made = peft.get_peft_model(copy.deepcopy(model), config, adapter_name=NAMES[1] or "")
    for name in NAMES[2:]:
        made.add_adapter(name or "", config)
    return made.eval()


if __name__ == "__main__":
    main(*sys.argv[1:])
