"""What is forgotten, and whether it shows as intruder dimensions: python -m benchmarks.forgetting MODEL DATA [TASK]

LoRA Learns Less and Forgets Less (arXiv 2405.09673) and LoRA vs Full Fine-tuning (arXiv 2410.21228), on a model's own weights.
LoRA of several ranks and rates and full fine-tuning learn a task as the runs of `benchmarks.evidence` do. Printed are the loss
on rows of the task and on other text, how large the change is beside its weight, |D| / |W|, in the mean over the linear maps,
and how many intruder dimensions the changed weights have.
"""

import sys
import tempfile
from statistics import mean

import torch
from torch import Tensor

import inlay
from benchmarks.amplification import changes
from benchmarks.evidence import LENGTH, Run, held_out_loss, learn, splits, too_long
from inlay.combine.intruders import intruders
from inlay.core.routed import Factors

RUNS = {
    "LoRA r=1": {"fields": {"r": 1}},
    "LoRA r=16": {},
    "LoRA r=16, rate x 4": {"factor": 4.0},
    "LoRA r=64": {"fields": {"r": 64}},
    "full fine-tuning": {"method": "full", "factor": 0.1},
    "full fine-tuning, rate x 4": {"method": "full", "factor": 0.4},
}


def main(model: str, data: str, task: str = "e2e") -> None:
    """Train and measure one after the other."""
    base = inlay.load(model)
    print("| | task | other text | size of the change | intruders | in maps |\n|---|---|---|---|---|---|")
    for name, differs in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows = splits(task, data, folder)
            learn(Run(task, **differs), base, rows["train"], f"{folder}/it")
            losses = [held_out_loss(base, "it", rows[which], LENGTH, too_long(task)) for which in ("test", "other")]
            changed = changes(f"{folder}/it", model)
        base.detach("it")
        size = mean((change.norm() / weight.norm()).item() for weight, change in changed.values())
        counts = [_count(weight, change) for weight, change in changed.values()]
        print(f"| {name} | {losses[0]:.4f} | {losses[1]:.4f} | {100 * size:.1f} %", end=" | ")
        print(f"{sum(counts)} | {sum(map(bool, counts))} of {len(counts)} |", flush=True)


def _count(weight: Tensor, change: Tensor) -> int:
    """How many intruder dimensions a weight has when it is changed so."""
    (new,) = intruders(weight, Factors(change, torch.eye(len(change)), 1.0))
    return len(new.A)


if __name__ == "__main__":
    main(*sys.argv[1:])
