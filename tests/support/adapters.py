"""What the files of an adapter do to each weight, in float64: from the bytes and PEFT's rules, with nothing of ours."""

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

PREFIX = "base_model.model."


def changes(directory):
    """Module path -> scaling B A, (out, in), of a LoRA in PEFT's form."""
    config = json.loads((Path(directory) / "adapter_config.json").read_text())
    tensors = load_file(Path(directory) / "adapter_model.safetensors")
    found = {}
    for key in tensors:
        if key.endswith(".lora_A.weight") or key.endswith(".lora_embedding_A"):
            path = key.removeprefix(PREFIX).removesuffix(".lora_A.weight").removesuffix(".lora_embedding_A")
            A, B = tensors[key].astype(np.float64), tensors[key.replace("_A", "_B")].astype(np.float64)
            A, B = A.reshape(len(A), -1), B.reshape(len(B), -1)
            found[path] = scaling(config, path) * (B @ A)
            assert len(A) == _by_pattern(config, "rank_pattern", path, config["r"]), path
    return found


def scaling(config, path):
    """lora_alpha / r of a module, or lora_alpha / sqrt(r)."""
    r = _by_pattern(config, "rank_pattern", path, config["r"])
    alpha = _by_pattern(config, "alpha_pattern", path, config["lora_alpha"])
    return alpha / (r**0.5 if config.get("use_rslora") else r)


def _by_pattern(config, pattern, path, default):
    for key, value in (config.get(pattern) or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", path):
            return value
    return default


def total(*parts):
    """The sum of (weight, changes), module by module; where one has no change, it adds none."""
    found = {}
    for weight, own in parts:
        for path, change in own.items():
            found[path] = found.get(path, 0) + weight * change
    return found


def best(matrix, r):
    """The best approximation of rank r of a matrix."""
    U, s, Vt = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :r] * s[:r]) @ Vt[:r]


def rank(matrix):
    """How many of its singular values are not rounding."""
    s = np.linalg.svd(matrix, compute_uv=False)
    return int((s > 1e-9 * s[0]).sum())


def distance(one, other):
    """How far two changes of a model are from each other, as part of the size of the second."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    off = sum(np.square(one[path] - other[path]).sum() for path in one)
    return float(np.sqrt(off / sum(np.square(change).sum() for change in other.values())))


def ties(matrices, weights, density):
    """The paper's algorithm 1, entry by entry: trim, elect, mean."""
    kept = []
    for matrix, weight in zip(matrices, weights, strict=True):
        sizes = np.sort(np.abs(matrix).ravel())[::-1]
        least = sizes[max(1, round(density * matrix.size)) - 1]
        kept.append(np.where(np.abs(matrix) >= least, weight * matrix, 0.0))
    merged = np.zeros_like(kept[0])
    for place in np.ndindex(merged.shape):
        values = [matrix[place] for matrix in kept]
        agreeing = [value for value in values if value and np.sign(value) == np.sign(sum(values))]
        merged[place] = sum(agreeing) / max(1, len(agreeing))
    return merged


def reference(directories, path):
    """The paper's reference basis of a module: the left singular vectors of all B side by side, the right ones of all A."""
    Bs, As = [], []
    for directory in directories:
        tensors = load_file(Path(directory) / "adapter_model.safetensors")
        if f"{PREFIX}{path}.lora_A.weight" in tensors:
            As.append(tensors[f"{PREFIX}{path}.lora_A.weight"].astype(np.float64))
            Bs.append(tensors[f"{PREFIX}{path}.lora_B.weight"].astype(np.float64))
    return np.linalg.svd(np.hstack(Bs), full_matrices=False)[0], np.linalg.svd(np.vstack(As), full_matrices=False)[2].T


def slerp(one, other, t):
    """Shoemake's formula for two matrices."""
    angle = np.arccos((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other)))
    return (np.sin((1 - t) * angle) * one + np.sin(t * angle) * other) / np.sin(angle)
