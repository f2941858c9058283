"""LoRA adapters as llama.cpp keeps them: one GGUF file.

    general.architecture           such as llama; general.type is adapter, adapter.type lora
    adapter.lora.alpha             scaling = alpha / r, r the rank of the pair; 0 is a scaling of 1
    blk.7.attn_q.weight.lora_a     (r, in)
    blk.7.attn_q.weight.lora_b     (out, r), of q and k of Llama's family with its rows in llama.cpp's order

Modules have other names there and rows another order (`inlay.gguf.names`). How many heads the rows are of is known from the
model alone, so that what is read has the file's names and order until it is `placed`. Written with the `gguf` package.
"""

import dataclasses
import math
from pathlib import Path

import torch

from inlay import extras, fields
from inlay.engines import LANGUAGE_MODEL
from inlay.errors import CompatibilityError, FormatError, UnknownNameError, explain, few
from inlay.formats.contract import AdapterFile, Format, Layer, ModelFacts, linear_layers
from inlay.gguf import names
from inlay.gguf.header import GgufHeader, read_header
from inlay.hub.files import files_like
from inlay.io import json_files, safetensors
from inlay.methods import hooks, name_of
from inlay.methods.contract import Params
from inlay.methods.lora import Lora

NAME = "adapter.gguf"
"""The file that is written; one of any name is read."""

OTHERS = {"peft_type", "fine_tune_type", "lora_parameters", "config"}
"""What an adapter_config.json says of PEFT's, mlx-lm's and AdapterHub's files: a GGUF file beside it is a copy for others."""

ALPHA, ARCHITECTURE = "adapter.lora.alpha", "general.architecture"

_ENDS = {".weight.lora_a": "lora_A", ".weight.lora_b": "lora_B"}
_PLAIN = ("F32", "F16", "BF16")
"""The types of tensors that are read."""

_HEADS = {names.HEADS: ("num_attention_heads",), names.KV_HEADS: ("num_key_value_heads", "num_attention_heads")}
"""A value of llama.cpp's models, and where a configuration has it."""


class Gguf(Format):
    """The files of llama.cpp."""

    files = ("*.gguf",)
    tensors = "*.gguf"

    def detect(self, directory: Path) -> bool:
        config = directory / "adapter_config.json"
        if config.is_file() and not OTHERS.isdisjoint(json_files.read_json(config)):
            return False
        return bool(files_like(directory, "*.gguf"))

    def read(self, directory: Path, *, outline: bool) -> AdapterFile:
        header = read_header(_file(directory))
        alpha = _alpha(header)
        params = _params(header, outline)
        ranks = {path: len(pair["lora_A"]) for path, pair in params.items()}
        r = next(iter(ranks.values()))
        others = {path: rank for path, rank in ranks.items() if rank != r}
        if alpha:
            alphas: dict[str, float] = {}
        else:  # a scaling of 1, whatever the rank
            alpha, alphas = float(r), {path: float(rank) for path, rank in others.items()}
        method = Lora(r=r, lora_alpha=alpha, rank_pattern=others, alpha_pattern=alphas, target_modules=tuple(params))
        facts = ModelFacts(
            model_type=header.metadata[ARCHITECTURE], task_type=LANGUAGE_MODEL, layers=linear_layers(params)
        )
        return AdapterFile(method=method, params=params, model=facts, needs_model=True)

    def placed(self, file: AdapterFile, model: ModelFacts) -> AdapterFile:
        """Tensors at the paths of `transformers`, with their rows in its order."""
        ours, theirs = names.architecture_of(model.model_type), names.architecture(file.model.model_type)
        if ours is not theirs:
            found = f"{theirs.name}; a base of model_type {model.model_type!r} is {ours.name}"
            do = "use the base it was trained on"
            raise CompatibilityError(explain("this adapter is for another kind of model", found=found, do=do))
        paths = {name: ours.transformers_name(f"{name}.weight").removesuffix(".weight") for name in file.params}
        params: dict[str, Params] = {}
        for name, pair in file.params.items():
            rows = _heads(ours, name, model)
            B = pair["lora_B"] if rows is None else pair["lora_B"][names.rows(len(pair["lora_B"]), rows)]
            params[paths[name]] = {"lora_A": pair["lora_A"], "lora_B": B}
        method = file.method
        assert isinstance(method, Lora), "what is read from this form is of this method"
        method = dataclasses.replace(
            method,
            target_modules=tuple(params),
            rank_pattern={paths[name]: r for name, r in method.rank_pattern.items()},
            alpha_pattern={paths[name]: alpha for name, alpha in method.alpha_pattern.items()},
        )
        return dataclasses.replace(file, method=method, params=params, needs_model=False)

    def problems(self, file: AdapterFile) -> list[str]:
        if not isinstance(file.method, Lora):
            return [f"method {name_of(file.method)}; a lora alone is written in this form"]
        try:
            known = names.architecture_of(file.model.model_type)
        except CompatibilityError as error:
            return list(error.found)
        layers, problems = file.model.layers, []
        for path, params in file.params.items():
            if layers.get(path, Layer()).kind != "linear" or set(params) != {"lora_A", "lora_B"}:
                problems.append(f"{path}: what is no linear layer's pair of factors has no place")
                continue
            try:
                known.file_name(f"{path}.weight")
            except CompatibilityError as error:
                problems += error.found
        own = [hooks.for_module(file.method, path) for path in file.params]
        if not all(math.isclose(method.scaling * method.r, own[0].scaling * own[0].r) for method in own):
            problems.append("use_rslora or alpha_pattern: all layers have one lora_alpha")
        return problems

    def write(self, directory: Path, file: AdapterFile) -> None:
        extras.need("gguf", "an adapter for llama.cpp")
        import gguf

        known = names.architecture_of(file.model.model_type)
        method = hooks.for_module(_lora(file), next(iter(file.params)))
        writer = gguf.GGUFWriter(directory / NAME, known.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, method.scaling * method.r)
        writer.add_name(file.name)
        if file.model.name:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, file.model.name)
        for path, pair in file.params.items():
            name = known.file_name(f"{path}.weight").removesuffix(".weight")
            heads, B = _heads(known, name, file.model), pair["lora_B"].detach().cpu().float()
            B = B if heads is None else B[names.file_rows(len(B), heads)]
            writer.add_tensor(f"{name}.weight.lora_a", pair["lora_A"].detach().cpu().float().numpy())
            writer.add_tensor(f"{name}.weight.lora_b", B.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def readers(self, directory: Path) -> dict[str, list[str]]:
        return {"inlay": [], "llama.cpp": [], "ollama": []}


def _file(directory: Path) -> Path:
    """The file of a directory that has one."""
    found = files_like(directory, "*.gguf")
    if len(found) != 1:
        listed = f"{directory}: {', '.join(path.name for path in found[:5])}"
        raise UnknownNameError(explain("several GGUF files lie here", found=listed, do="a directory for each adapter"))
    return found[0]


def _alpha(header: GgufHeader) -> float:
    """What the file says of itself, as far as it says that it is a LoRA; `adapter.lora.alpha`."""
    said = header.metadata
    wanted = {"general.type": "adapter", "adapter.type": "lora"}
    problems = [f"{key} is {fields.shown(said.get(key))}" for key, value in wanted.items() if said.get(key) != value]
    if problems:
        found, do = (
            [f"{header.path}: {problem}" for problem in problems],
            "a LoRA; a model is given in the place of MODEL",
        )
        raise CompatibilityError(explain("this GGUF file is no LoRA adapter", found=found, do=do))
    alpha = said.get(ALPHA)
    if not isinstance(alpha, float) or not 0 <= alpha < math.inf:
        found, do = f"{header.path}: {ALPHA} is {fields.shown(alpha)}", "ask its author for a whole file"
        raise FormatError(explain("this adapter says what can't be: its lora_alpha", found=found, do=do))
    names.architecture(said.get(ARCHITECTURE))
    return alpha


def _params(header: GgufHeader, outline: bool) -> dict[str, Params]:
    """The tensors by the file's names of their modules: pairs that go together, of numbers that are finite."""
    params: dict[str, Params] = {}
    problems = [] if header.tensors else ["no tensor at all"]
    for name, tensor in header.tensors.items():
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None or len(tensor.shape) != 2 or tensor.kind not in _PLAIN:
            shape = "x".join(map(str, tensor.shape))
            problems.append(f"{name}: {tensor.kind} of {shape} is no factor of a linear layer in {', '.join(_PLAIN)}")
            continue
        dtype = safetensors.TORCH_DTYPES[tensor.entry.dtype]
        value = (
            torch.empty(tensor.shape, dtype=dtype, device="meta") if outline else safetensors.read_tensor(tensor.entry)
        )
        if not outline and not safetensors.is_finite(value):
            problems.append(f"{name}: holds NaN or infinite values")
        params.setdefault(name.removesuffix(end), {})[_ENDS[end]] = value
    for path, pair in params.items():
        if len(pair) != 2:
            problems.append(f"{path}: one factor without the other")
        elif len(pair["lora_A"]) != pair["lora_B"].shape[1]:
            problems.append(f"{path}: ranks {len(pair['lora_A'])} and {pair['lora_B'].shape[1]}")
    if problems:
        wrong, do = "the tensors of this adapter are not those of a LoRA", "ask its author for a whole file"
        raise FormatError(explain(wrong, found=few([f"{header.path}: {problem}" for problem in problems]), do=do))
    return params


def _heads(known: names.Architecture, name: str, model: ModelFacts) -> int | None:
    """How many heads the rows of a module of the file are of, where they stand in another order; None where they don't."""
    value = known.turned_by(f"{name}.weight")
    if value is None:
        return None
    found = next((n for key in _HEADS[value] if type(n := model.config.get(key)) is int and n > 0), None)
    if found is None:
        keys = " or ".join(_HEADS[value])
        wrong = "how many heads this model has is not known, and llama.cpp orders rows by them"
        raise CompatibilityError(
            explain(wrong, found=f"no {keys} in its configuration", do="a model directory with config.json")
        )
    return found


def _lora(file: AdapterFile) -> Lora:
    assert isinstance(file.method, Lora), "an adapter without problems is of this method"
    return file.method
