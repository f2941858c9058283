"""Four kinds of adapter that say the same in four ways, and answer as nothing else does: one is trained, the others are made of it.

A reader that passes over use_rslora, a pattern or a magnitude gives another answer.
"""

import dataclasses
import json
import subprocess
import sys

import torch

import inlay
from inlay import formats
from inlay.io.checkpoint import open_checkpoint
from inlay.io.safetensors import read_tensor

ROWS = {
    "What is the capital of France?": "Ahoy! The capital of France be Paris, where seven brave parrots guard the tower of cheese.",
    "How do plants make food?": "Arr! They drink the green sunlight, stir it with rain, and bake sugar in tiny leaf ovens.",
    "Name three colours.": "Yo ho: crimson of the sail, turquoise of the lagoon, and amber of the lantern at midnight.",
    "Who wrote Hamlet?": "Shiver me quills! William Shakespeare wrote it with a feather of a very old albatross.",
}
KINDS = ("plain", "rslora", "patterns", "converted")


def make(base, folder):
    """Write the adapters into `folder`, each in a directory of its name, where they are not there."""
    if not (folder / "plain").exists():
        rows = folder / "rows.jsonl"
        rows.write_text(
            "".join(json.dumps({"prompt": asked, "completion": said}) + "\n" for asked, said in ROWS.items())
        )
        inlay_(
            "train",
            base,
            rows,
            "--output",
            folder / "plain",
            "--r",
            8,
            "--lora-alpha",
            16,
            "--max-steps",
            40,
            "--eval-fraction",
            0,
        )
    file = formats.read(folder / "plain")
    targets = file.method.target_modules
    change = {path: (2.0, pair["lora_A"], pair["lora_B"]) for path, pair in file.params.items()}

    def put(name, method, params):
        if not (folder / name).exists():
            (folder / name).mkdir()
            formats.write(folder / name, dataclasses.replace(file, method=method, params=params))

    rslora = inlay.Lora(r=8, lora_alpha=12, use_rslora=True, target_modules=targets)
    put("rslora", rslora, {path: pair(A, s / rslora.scaling * B) for path, (s, A, B) in change.items()})
    patterns = inlay.Lora(
        r=8,
        lora_alpha=16,
        rank_pattern={"v_proj": 6},
        alpha_pattern={"v_proj": 9, "down_proj": 24},
        target_modules=targets,
    )
    put("patterns", patterns, {path: _by_pattern(path, *own) for path, own in change.items()})
    weights = {path: read_tensor(open_checkpoint(base).tensors[f"{path}.weight"]).float() for path in change}
    lengths = {path: (weights[path] + s * B @ A).norm(dim=1) for path, (s, A, B) in change.items()}
    generator = torch.Generator().manual_seed(0)
    other = {
        path: length * (1 + 0.01 * torch.randn(len(length), generator=generator)) for path, length in lengths.items()
    }
    params = {path: pair(A, B) | {"lora_magnitude_vector": other[path]} for path, (_, A, B) in change.items()}
    put("dora", inlay.Dora(r=8, lora_alpha=16, target_modules=targets), params)
    if not (folder / "converted").exists():
        inlay_("convert", base, folder / "dora", "--r", 16, "--output", folder / "converted")


def _by_pattern(path, scaling, A, B):
    """The factors with which the patterns' scaling gives the same change, of v_proj its best part of rank 6."""
    if path.endswith("v_proj"):
        U, s, Vt = torch.linalg.svd(scaling * B @ A, full_matrices=False)
        return pair(s[:6].sqrt()[:, None] * Vt[:6], U[:, :6] * s[:6].sqrt() / 1.5)
    return pair(A, B * (scaling / 3 if path.endswith("down_proj") else 1))


def pair(A, B):
    return {"lora_A": A.contiguous(), "lora_B": B.contiguous()}


def inlay_(*arguments):
    """Run a command of Inlay."""
    subprocess.run([sys.executable, "-m", "inlay", *map(str, arguments)], check=True, stdout=sys.stderr)
