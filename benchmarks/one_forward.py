"""Whether what serves says what trains: python -m benchmarks.one_forward [MODEL [DTYPE ...]]

MODEL is a shape of `benchmarks.shapes` or a model's directory; DTYPE is float32 or bfloat16, nf4 or int8 under bfloat16.
The engine answers 8 prompts of 16 to 128 tokens with 32 tokens, under two adapters (r = 16, all linear maps, their tensors
drawn) and none, in one batch, and says how likely each token of prompt and answer was. The pass that trains says it too,
all rows packed into one and each row alone. Printed is how far apart they are, in nats: the mean over all tokens, and the
furthest."""

import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import inlay
from benchmarks import shapes
from inlay import quant
from inlay.generation.engine import Engine
from inlay.generation.sequence import Request
from inlay.model.batch import Batch
from inlay.packing.lying import Lying

LENGTHS, NEW = (16, 128, 48, 20, 96, 33, 17, 64), 32
WHOSE = ("a", None, "b", "a", "b", None, "a", "b")


def main(model: str = "135m", *dtypes: str) -> None:
    """Print a line for each dtype."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(model) if Path(model).is_dir() else shapes.directory(model, Path(place) / model)
        print(f"{model}, {torch.get_num_threads()} threads, {len(LENGTHS)} rows, in nats: the mean (the furthest)")
        for dtype in dtypes or ("float32", "bfloat16", "nf4", "int8"):
            base = _base(directory, dtype)
            rows, engine = _answered(base)
            alone = torch.cat([_said(base, [row], [name]) for row, name in zip(rows, WHOSE, strict=True)])
            packed = _said(base, rows, WHOSE)
            print(
                f"{dtype:9} engine and training {_apart(engine, packed)}; training, packed and alone {_apart(packed, alone)}",
                flush=True,
            )


def _base(directory: Path, dtype: str) -> Any:
    """A base with two adapters."""
    is_scheme = dtype in quant.names()
    base = inlay.load(directory, dtype="bfloat16" if is_scheme else dtype, **({"quantize": dtype} if is_scheme else {}))
    for seed, name in enumerate("ab"):
        draw = torch.Generator().manual_seed(seed)
        for tensor in base.attach(inlay.Lora(r=16), name).tensors():
            tensor.normal_(std=0.01, generator=draw)
    base.active = None
    return base


def _answered(base: Any) -> tuple[list[list[int]], Tensor]:
    """(prompts and answers, how likely each of their tokens but the first was)."""
    rng = random.Random(0)
    engine = Engine(base.model, base.router, cache_tokens=4096)
    asked = [
        engine.add(
            Request(
                tokens=tuple(rng.randrange(3, 400) for _ in range(length)),
                adapter=name and base.adapters[name],
                max_new_tokens=NEW,
                num_logprobs=0,
                prompt_logprobs=0,
            )
        )
        for length, name in zip(LENGTHS, WHOSE, strict=True)
    ]
    assert len(list(engine.run(()))) == len(asked)
    rows = [[*one.request.tokens, *one.answer] for one in asked]
    return rows, torch.tensor([said.value for one in asked for said in (*one.prompt_logprobs, *one.logprobs)])


@torch.no_grad()
def _said(base: Any, rows: Sequence[Sequence[int]], whose: Sequence[str | None]) -> Tensor:
    """What the pass that trains says of every token but the first of each row, all in one packed row."""
    lengths = [len(row) for row in rows]
    tokens = torch.tensor([token for row in rows for token in row])
    places = torch.cat([torch.arange(length) for length in lengths])
    with base.using(list(whose)), base.router.passing((base.router.batch or Batch([None])).like(Lying(lengths))):
        logits = base.model(input_ids=tokens[None], position_ids=places[None], use_cache=False).logits[0].float()
    said = logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]
    return said[places[1:] > 0]


def _apart(one: Tensor, other: Tensor) -> str:
    difference = (one - other).abs()
    return f"{difference.mean():.1e} ({difference.max():.1e})"


if __name__ == "__main__":
    main(*sys.argv[1:])
