"""How fast answers are made, beside transformers and peft: python -m benchmarks.decode [SHAPE [DTYPE [ROUNDS [DEVICE]]]]

For DTYPE nf4 or int8: from a base quantised so, beside our own in bfloat16.

A model of SHAPE (135m) is asked for 64 new tokens to prompts of 16: one row and eight, of the plain base; one row of one
adapter; eight rows of seven adapters (r = 16, all linear maps) and none. Then 8 prompts of 512 tokens, a new token each.
`generate` of transformers does what it can of that, peft with `adapter_names` the mixed rows. In turn; medians.
"""

import copy
import functools
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
from inlay.base.quantize import quantize
from inlay.core.product import DTYPES
from inlay.generation.engine import Engine
from inlay.generation.sequence import Request
from inlay.io.checkpoint import open_checkpoint

NEW, PROMPT, LONG, ROWS = 64, 16, 512, 8
NAMES = [None, *(f"a{number}" for number in range(ROWS - 1))]
IDS = torch.randint(3, 400, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))


def main(shape: str = "135m", dtype: str = "bfloat16", rounds: str = "5", device: str = "cpu") -> None:
    """Print a line for each work."""
    with tempfile.TemporaryDirectory() as place:
        ways = (_ways if dtype in DTYPES else _quantized_ways)(Path(place), shape, dtype, device)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(int(rounds) + 1):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if number:  # the first warms up
                    taken[name].append(time.perf_counter() - start)
    print(f"{shape}, {dtype}, {f'{torch.get_num_threads()} threads' if device == 'cpu' else device}")
    for name, seconds in taken.items():
        spread = f"{1000 * min(seconds):.0f} to {1000 * max(seconds):.0f}"
        print(f"{name:40} {1000 * statistics.median(seconds):8.0f} ms ({spread})")


def _quantized_ways(place: Path, shape: str, scheme: str, device: str) -> dict[str, Callable[[], Any]]:
    """What is timed from a quantised base and from that which it was made from, by name."""
    quantize(open_checkpoint(shapes.directory(shape, place / "bfloat16")), place / scheme, scheme)
    askers = {name: _asker(inlay.load(place / name, dtype="bfloat16", device=device)) for name in ("bfloat16", scheme)}
    work = {"1 row, base": (IDS[:1], NAMES[:1]), "8 rows, seven adapters and none": (IDS, NAMES)}
    return {
        f"{name}: {base}": functools.partial(ask, *given, NEW)
        for name, given in work.items()
        for base, ask in askers.items()
    }


def _asker(base: Any) -> Callable[[torch.Tensor, list[str | None], int], None]:
    """What answers rows, each with the adapter of a name, with so many new tokens."""
    for name in NAMES[1:]:
        for tensor in base.attach(inlay.Lora(r=16), name).tensors():
            tensor.normal_(std=0.01)
    base.active = None
    engine = Engine(base.model, base.router, cache_tokens=2 * ROWS * (LONG + NEW))

    def ask(rows: torch.Tensor, names: list[str | None], new: int) -> None:
        adapters = [base.adapters[name] if name else None for name in names]
        asked = [
            Request(tokens=tuple(row), adapter=one, max_new_tokens=new)
            for row, one in zip(rows.tolist(), adapters, strict=True)
        ]
        assert len(list(engine.run(asked))) == len(names)

    return ask


def _ways(place: Path, shape: str, dtype: str, device: str) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    path = shapes.directory(shape, place / "base", DTYPES[dtype])
    ours = _asker(inlay.load(path, dtype=dtype, device=device))
    theirs: Any = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype]).to(device).eval()
    long = torch.randint(3, 400, (64, ROWS, LONG), generator=torch.Generator().manual_seed(1))
    turns = iter(long.repeat(9, 1, 1))  # others each time: the engine knows prompts again

    def generated(model: Any, rows: torch.Tensor, new: int, **more: Any) -> None:
        rows, greedy = rows.to(device), dict(do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0)
        with torch.no_grad():
            model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **greedy, **more)

    mixed = _in_peft(theirs)
    return {
        "1 row, base: inlay": lambda: ours(IDS[:1], [None], NEW),
        "1 row, base: transformers": lambda: generated(theirs, IDS[:1], NEW),
        "1 row, one adapter: inlay": lambda: ours(IDS[:1], ["a1"], NEW),
        "8 rows, base: inlay": lambda: ours(IDS, [None] * ROWS, NEW),
        "8 rows, base: transformers": lambda: generated(theirs, IDS, NEW),
        "8 rows, seven adapters and none: inlay": lambda: ours(IDS, NAMES, NEW),
        "8 rows, seven adapters and none: peft": lambda: generated(
            mixed, IDS, NEW, adapter_names=[name or "__base__" for name in NAMES]
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
