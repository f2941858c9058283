"""How an adapter's change lies in its weight: python -m benchmarks.amplification MODEL DATA [TASK]

Table 7 of LoRA (Hu et al. 2021, arXiv 2106.09685), on a model's own weights. An adapter of rank r is trained on a task of
`benchmarks.evidence`, for r = 4 and 64. With the first r singular directions U (out, r), V (in, r) of its change D, of the
weight W itself, and of a random matrix, |U^T W V| says how much of W lies there (Frobenius norms); |D| / |U^T W V| for
those of D is by how much the change amplifies what it finds. Printed are medians over the layers, for the queries and for
all maps.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor

import inlay
from benchmarks import evidence
from inlay import formats
from inlay.combine.checks import change

RANKS = (4, 64)


def main(model: str, data: str, task: str = "e2e") -> None:
    """Train an adapter of each rank, and print its rows."""
    print("| r, maps | of D | of W | of random | norm of W | norm of D | amplified |\n|---|---|---|---|---|---|---|")
    for rank in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            rows = evidence.first(Path(data) / evidence.TASKS[task]["train"], 2000, Path(folder) / "rows.jsonl")
            base = inlay.load(model)
            inlay.train(
                base, rows, method=inlay.Lora(r=rank), output=f"{folder}/it", eval_fraction=0.0,
                max_steps=60, batch_size=8, max_length=256, too_long="drop", check="off", progress=False,
            )  # fmt: skip
            found = {name: lies(*matrices, rank) for name, matrices in changes(f"{folder}/it", model).items()}
        for which, end in (("queries", "q_proj"), ("all", "")):
            some = [row for name, row in found.items() if name.endswith(end)]
            cells = " | ".join(f"{median(column):.2f}" for column in zip(*some, strict=True))
            print(f"| {rank}, {which} | {cells} |", flush=True)


def changes(adapter: str, model: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each linear map that LoRA or full fine-tuning changed, its weight in the model and the change; by its path."""
    file, weights, found = formats.read(adapter), load_file(f"{model}/model.safetensors"), {}
    for path, tensors in file.params.items():
        if not path.endswith("_proj"):
            continue
        weight = weights[f"{path}.weight"].float()
        if "weight" in tensors:
            found[path] = weight, tensors["weight"].float() - weight
        elif factors := change(file, path):
            found[path] = weight, factors.scaling * factors.B.float() @ factors.A.float()
    return found


def lies(weight: Tensor, change: Tensor, rank: int) -> tuple[float, ...]:
    """|U^T W V| for the directions of the change, of W and of a random matrix; |W|, |D|, and by how much D amplifies."""
    random = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    in_change, in_weight, in_random = (
        (U.T @ weight @ V).norm().item() for U, V in (directions(matrix, rank) for matrix in (change, weight, random))
    )
    size = change.norm().item()
    return in_change, in_weight, in_random, weight.norm().item(), size, size / in_change


def directions(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first singular directions on either side: (out, r), (in, r)."""
    U, _, V = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], V[:rank].T


if __name__ == "__main__":
    main(*sys.argv[1:])
