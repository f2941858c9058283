"""What the library of LoRA's authors saves, `lora_state_dict`: tensors alone, beside which somebody has to say lora_alpha.

    adapter_config.json            {"lora_alpha": 32}; of a MergedLinear its enable_lora too, such as [true, false, true]
    ANY.bin, .pt or .safetensors   model.layers.0.q_proj.lora_A (r, in), model.layers.0.q_proj.lora_B (out, r), biases

A `MergedLinear` holds n maps of one input in a weight, and adapts those that enable_lora says: A has their factors one after
the other, (n r, in), and B theirs, (n out, r). It is one change of rank n r, whose B has a block for each:

    [B_1   .   ]  [A_1]
    [ .    .   ]  [A_3]     scaling = lora_alpha / r = (n lora_alpha) / (n r)
    [ .   B_3  ]

A pickle is read by `inlay.pickled`, which runs nothing of it. Source: loralib 0.1.2, layers.py.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import Tensor

from inlay import fields, pickled
from inlay.errors import FormatError, explain, few
from inlay.formats.contract import AdapterFile, Format, ModelFacts, linear_layers
from inlay.hub.files import files_like
from inlay.io import json_files, safetensors
from inlay.methods.contract import Params
from inlay.methods.lora import Lora

CONFIG = "adapter_config.json"

ENDS = (".lora_A", ".lora_B")
"""What its names end with; those of PEFT go on with .weight."""

PICKLES = (".pt", ".bin", ".pth", ".ckpt")

MAX_BYTES = 64_000_000
"""As much of a pickle is searched for its names before it is read: they stand at its beginning."""


class _Config(TypedDict, total=False):
    lora_alpha: float
    enable_lora: tuple[bool, ...] | None


class Loralib(Format):
    """The files of loralib."""

    files, tensors = (CONFIG, "*.safetensors", *(f"*{end}" for end in PICKLES)), ""

    def detect(self, directory: Path) -> bool:
        path = directory / CONFIG
        if path.is_file() and not set(json_files.read_json(path)) <= set(_Config.__annotations__):
            return False
        return _file(directory) is not None

    def read(self, directory: Path, *, outline: bool) -> AdapterFile:
        path, file = directory / CONFIG, _file(directory)
        assert file is not None, "it was found when the format was"
        with json_files.about(path):
            about = fields.fitted(_Config, json_files.read_json(path) if path.is_file() else {})
        if "lora_alpha" not in about:
            found, do = f"{file}, and no lora_alpha in {path}", f"echo '{json.dumps({'lora_alpha': 32})}' > {path}"
            wrong = "these are tensors of loralib, and nothing says which lora_alpha they were trained with"
            raise FormatError(explain(wrong, found=found, do=do))
        tensors = pickled.read_tensors(file) if file.suffix in PICKLES else safetensors.read_tensors(file)
        if outline:
            tensors = {name: tensor.to("meta") for name, tensor in tensors.items()}
        pairs = _pairs(file, tensors)
        enabled = about.get("enable_lora") or (True,)
        params, counts = dict[str, Params](), {path: _count(pair, enabled) for path, pair in pairs.items()}
        for path, pair in pairs.items():
            is_merged = len(enabled) > 1 and counts[path] == sum(enabled)
            B = _apart(pair["lora_B"], enabled) if is_merged else pair["lora_B"]
            params[path] = {"lora_A": pair["lora_A"], "lora_B": B}
        layers = linear_layers(params)
        biases = {key.removesuffix(".bias"): tensor for key, tensor in tensors.items() if key.endswith(".bias")}
        with json_files.about(directory / CONFIG):
            method = _method(about["lora_alpha"], params, counts, biases)
        for path, bias in biases.items():
            params.setdefault(path, {})["bias"] = bias
        return AdapterFile(method=method, params=params, model=ModelFacts(layers=layers))

    def placed(self, file: AdapterFile, model: ModelFacts) -> AdapterFile:
        return file

    def problems(self, file: AdapterFile) -> list[str]:
        return ["nothing is written in this form, which has no place for lora_alpha"]

    def write(self, directory: Path, file: AdapterFile) -> None:
        """Never called: no adapter is without problems."""

    def readers(self, directory: Path) -> dict[str, list[str]]:
        return {"inlay": []}


def _method(
    lora_alpha: float, params: Mapping[str, Params], counts: Mapping[str, int], biases: Mapping[str, Tensor]
) -> Lora:
    """The settings that these tensors have: the rank and lora_alpha of most layers, and patterns for the others."""
    found = {path: (len(pair["lora_A"]), lora_alpha * counts[path]) for path, pair in params.items()}
    (r, alpha), _ = Counter(found.values()).most_common(1)[0]
    others = {path: pair for path, pair in found.items() if pair != (r, alpha)}
    bias: Literal["none", "lora_only", "all"] = "lora_only" if set(biases) <= set(params) else "all"
    return Lora(
        r=r,
        lora_alpha=alpha,
        rank_pattern={path: rank for path, (rank, _) in others.items()},
        alpha_pattern={path: alpha for path, (_, alpha) in others.items()},
        bias=bias if biases else "none",
        target_modules=tuple(params),
    )


def _pairs(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Params]:
    """The factors of each layer."""
    pairs: dict[str, Params] = {}
    problems = []
    for key, tensor in sorted(tensors.items()):
        path, _, name = key.rpartition(".")
        if not path or name not in ("lora_A", "lora_B", "bias") or tensor.dim() != (1 if name == "bias" else 2):
            problems.append(f"{key}: no tensor of a layer of loralib has that name and {tensor.dim()} dimensions")
        elif not tensor.is_floating_point() or not (tensor.is_meta or safetensors.is_finite(tensor)):
            problems.append(f"{key}: holds NaN or infinite values, or whole numbers")
        elif name != "bias":
            pairs.setdefault(path, {})[name] = tensor
    problems += [f"{path}: one factor without the other" for path, pair in pairs.items() if len(pair) < 2]
    problems += [f"{path}: a rank of 0" for path, pair in pairs.items() if not all(t.numel() for t in pair.values())]
    if problems or not pairs:
        wrong, do = "these tensors are not those of a LoRA", "ask its author for a whole file"
        raise FormatError(explain(wrong, found=few([f"{file}: {problem}" for problem in problems]), do=do))
    return pairs


def _count(pair: Params, enabled: tuple[bool, ...]) -> int:
    """How many maps the factors of a layer are of."""
    rows, columns = len(pair["lora_A"]), pair["lora_B"].shape[1]
    count = 1 if rows == columns else sum(enabled)
    if not count or rows != count * columns or len(pair["lora_B"]) % count:
        found = f"lora_A of {rows} rows, lora_B of {columns} columns; enable_lora={list(enabled)}"
        do = f'"enable_lora" in {CONFIG}, as the MergedLinear had it, such as [true, false, true]'
        raise FormatError(explain("these factors are of several maps, or do not go together", found=found, do=do))
    return count


def _apart(B: Tensor, enabled: tuple[bool, ...]) -> Tensor:
    """B of all maps, with a block for each that is adapted."""
    parts = iter(B.chunk(sum(enabled)))
    width, r = len(B) // sum(enabled), B.shape[1]
    whole, number = torch.zeros(len(enabled) * width, sum(enabled) * r, dtype=B.dtype, device=B.device), 0
    for place, is_on in enumerate(enabled):
        if is_on:
            whole[place * width : (place + 1) * width, number * r : (number + 1) * r] = next(parts)
            number += 1
    return whole


def _file(directory: Path) -> Path | None:
    """The first file of these tensors."""
    return next((file for file in files_like(directory, "*") if _has_its_names(file)), None)


def _has_its_names(file: Path) -> bool:
    if file.suffix == ".safetensors":
        return any(name.endswith(ENDS) for name in safetensors.read_header(file).tensors)
    if file.suffix not in PICKLES:
        return False
    with file.open("rb") as opened:
        return b".lora_A" in opened.read(MAX_BYTES)  # looked for, not unpickled
