"""How much of an adapter survives a merge into four bits: python -m benchmarks.merge_survival MODEL TRAIN_DATA TEST_DATA

A base is quantised and an adapter of r=8 trained over it for 100 steps; its change is then scaled down, and merged each time
with plain constants and with constants by least squares (what `inlay merge --quantize` takes). Layers whose rows no block
divides stay as they are. Printed are the change's size as a part of the weights' norm, the divergence from base and adapter of
the base, and for each way the cosine of what survives and the divergence, on rows that were not trained on.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import inlay
from inlay import quant
from inlay.base.quantize import quantize
from inlay.export import requantize
from inlay.model.adapter import Adapter

FACTORS = (1.0, 0.3, 0.1, 0.03, 0.01)
NUM_ROWS = 32
WAYS = {"plain constants": False, "by least squares": True}


def main(model: str, data: str, test: str) -> None:
    """Train, scale, merge, print a line for each factor."""
    problem, plain = quant.find("nf4").problem, inlay.load(model, dtype="float32")
    keep = [path for path, linear in plain.linears.items() if problem((linear.out_features, linear.in_features))]
    rows = map(json.loads, Path(test).read_text().splitlines()[:NUM_ROWS])
    texts = [row["prompt"] + "\n" + row["completion"] for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        quantize(plain.checkpoint, Path(folder) / "base", keep=keep)
        base = inlay.load(Path(folder) / "base", dtype="float32")
        inlay.train(base, data, method=inlay.Lora(r=8), output=Path(folder) / "it", max_steps=100)
        adapter = base.adapters["it"]
        learned = {path: params["lora_B"].clone() for path, params in adapter.params.items()}
        for factor in FACTORS:
            for path, B in learned.items():
                adapter.params[path]["lora_B"].copy_(factor * B)
            line = []
            for name, refine in WAYS.items():
                with (
                    mock.patch.object(requantize, "quantize", _quantize(refine)),
                    tempfile.TemporaryDirectory() as output,
                ):
                    found = requantize.merge_quantized(
                        base, "it", Path(output) / "merged", "nf4", force=True, texts=texts
                    )
                line.append(f"{name} {found.cosine:.3f}, {found.divergence:.4f}")
            print(
                f"{100 * _size(base, adapter):5.1f} %  base {found.adapter_divergence:.4f}  " + "  ".join(line),
                flush=True,
            )


def _quantize(refine: bool) -> Callable[..., Any]:
    """`inlay.base.quantize.quantize` with these constants, whatever it is asked for."""
    return lambda *given, **named: quantize(*given, **{**named, "refine": refine})


@torch.no_grad()
def _size(base: inlay.Base, adapter: Adapter) -> float:
    changes, weights = 0.0, 0.0
    for path in adapter.params:
        weight = base.linears[path].weight(torch.float32)
        merged, _ = adapter.merged(path, weight, None)
        changes += (merged - weight).square().sum().item()
        weights += weight.square().sum().item()
    return (changes / weights) ** 0.5


if __name__ == "__main__":
    main(*sys.argv[1:])
