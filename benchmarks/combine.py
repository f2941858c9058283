"""Adapters into one, and out of a checkpoint: python -m benchmarks.combine [svd WIDTH equal|unequal | shape | extract]

(none)   svd 4096 equal, shape and extract, one after the other
svd      two adapters of rank 16 (unequal: 16 and 8, the second with rsLoRA) on one map of WIDTH x WIDTH, into one of rank 16:
         the median of three of ours, one of peft's, and how far each is from the best of the full sum in float64
shape    `inlay combine` of eight adapters of rank 16 of Llama-3.2-1B's shape, files read and the result written: seconds, peak
extract  `inlay extract` at rank 32 of a checkpoint of 135m's shape of which every matrix differs from the base's: likewise
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import inlay
from benchmarks import shapes
from inlay import formats
from inlay.cli import main as command
from inlay.combine import sources
from inlay.combine.combine import combine
from inlay.combine.ways import find
from inlay.formats.contract import AdapterFile, Layer, ModelFacts
from inlay.process import peak_rss_bytes

R, ROUNDS, ADAPTERS = 16, 3, 8
MAPS = {
    "self_attn.q_proj": (2048, 2048),
    "self_attn.k_proj": (512, 2048),
    "self_attn.v_proj": (512, 2048),
    "self_attn.o_proj": (2048, 2048),
    "mlp.gate_proj": (8192, 2048),
    "mlp.up_proj": (8192, 2048),
    "mlp.down_proj": (2048, 8192),
}
NUM_LAYERS = 16


def written(
    folder: Path, maps: dict[str, tuple[int, int]], method: inlay.Lora, seed: int, record: dict[str, Any] | None = None
) -> Path:
    """A random adapter of these maps (out, in) in PEFT's form."""
    generator, params = torch.Generator().manual_seed(seed), {}
    for path, (out, width) in maps.items():
        A = torch.randn(method.r, width, generator=generator) * width**-0.5
        params[path] = {"lora_A": A, "lora_B": torch.randn(out, method.r, generator=generator) * 0.02}
    layers = {path: Layer("linear", {"out": out, "in": width}) for path, (out, width) in maps.items()}
    folder.mkdir(parents=True)
    about = ModelFacts(layers=layers)
    formats.write(folder, AdapterFile(method=method, params=params, model=about, record=record or {}))
    return folder


def svd(width: int, case: str) -> None:
    """Time both on one large map, and look at what they made."""
    second = inlay.Lora(r=R) if case == "equal" else inlay.Lora(r=R // 2, use_rslora=True)
    with tempfile.TemporaryDirectory() as folder:
        maps = {"map": (width, width)}
        places = [written(Path(folder) / f"a{i}", maps, m, i) for i, m in enumerate((inlay.Lora(r=R), second))]
        files = sources.opened([str(place) for place in places])
        weights = dict(zip(files, (1.0, 0.5), strict=True))
        best = _best(files, weights)
        ours = list[float]()
        for _ in range(ROUNDS):
            start = time.perf_counter()
            found = combine(files, weights, find("svd", {"r": R}))
            ours.append(time.perf_counter() - start)
        tensors, seconds = found.file.params["map"], statistics.median(ours)
        error = _off(tensors["lora_B"].double() @ tensors["lora_A"].double(), best)
        print(f"{width} {case}: inlay {seconds:.3f} s, {error:.1e} from the best", flush=True)
        model = _peft(places, width)
        start = time.perf_counter()
        model.add_weighted_adapter(["a0", "a1"], [1.0, 0.5], "both", combination_type="svd", svd_rank=R)
        theirs = time.perf_counter() - start
        error = _off(model.base_model.model.map.get_delta_weight("both").double(), best)
        print(f"{width} {case}: peft {theirs:.1f} s ({theirs / seconds:.0f} times ours), {error:.1e} from the best")


def _best(files: dict[str, AdapterFile], weights: dict[str, float]) -> torch.Tensor:
    """The best of rank `R` of the sum, which is of rank 2 `R` at most: so a search in more directions is exact."""
    full = torch.zeros(())
    for name, weight in weights.items():
        tensors = files[name].params["map"]
        full = full + weight * files[name].method.scaling * tensors["lora_B"].double() @ tensors["lora_A"].double()
    U, s, V = torch.svd_lowrank(full, 2 * R + 8, niter=4)
    return (U[:, :R] * s[:R]) @ V[:, :R].T


def _off(made: torch.Tensor, best: torch.Tensor) -> float:
    return float((made - best).norm() / best.norm())


def _peft(places: list[Path], width: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        base = nn.Module()
        base.map = nn.Linear(width, width, bias=False)
        model = peft.PeftModel.from_pretrained(base, str(places[0]), adapter_name="a0")
        model.load_adapter(str(places[1]), adapter_name="a1")
    return model


def shape() -> None:
    """The whole command, on files of a real shape."""
    maps = {f"model.layers.{i}.{name}": sizes for i in range(NUM_LAYERS) for name, sizes in MAPS.items()}
    with tempfile.TemporaryDirectory() as folder:
        places = [str(written(Path(folder) / f"a{i}", maps, inlay.Lora(r=R), i)) for i in range(ADAPTERS)]
        for how in (["svd"], ["cat"], ["ties"]):
            start = time.perf_counter()
            assert command(["combine", *places, "--how", *how, "--output", f"{folder}/{how[0]}"]) == 0
            print(
                json.dumps({"how": how[0], "seconds": time.perf_counter() - start, "peak": peak_rss_bytes()}),
                flush=True,
            )


def extract() -> None:
    """The whole command, on checkpoints of a real shape."""
    with tempfile.TemporaryDirectory() as folder:
        base, tuned = shapes.directory("135m", Path(folder) / "base"), Path(folder) / "tuned"
        shutil.copytree(base, tuned)
        tensors, generator = load_file(tuned / "model.safetensors"), torch.Generator().manual_seed(0)
        for name, tensor in tensors.items():
            if tensor.dim() == 2:
                tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
        start = time.perf_counter()
        assert command(["extract", str(base), str(tuned), "--r", "32", "--output", f"{folder}/taken"]) == 0
        print(json.dumps({"extract": "135m", "seconds": time.perf_counter() - start, "peak": peak_rss_bytes()}))


def main(what: str = "", width: str = "4096", case: str = "equal") -> None:
    """What the command line asks for, or all three."""
    if what in ("", "svd"):
        svd(int(width), case)
    if what in ("", "shape"):
        shape()
    if what in ("", "extract"):
        extract()


if __name__ == "__main__":
    main(*sys.argv[1:])
