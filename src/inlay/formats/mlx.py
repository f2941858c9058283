"""LoRA adapters as mlx-lm keeps them.

    adapter_config.json     fine_tune_type, num_layers, lora_parameters: rank, scale, keys; the rest is how it was trained
    adapters.safetensors    <module path>.lora_a (in, r), <module path>.lora_b (r, out), of DoRA <module path>.m (out)

    y = W x + b + scale (x lora_a) lora_b,   so that A = lora_a^T, B = lora_b^T, lora_alpha = scale rank

Every layer has the rank and the scale of the configuration. It names the layers by what follows their number; those of them
that have no tensors change nothing. Read strictly, as `inlay.formats.peft` has it. What mlx-lm trains whole (fine_tune_type
full), of layers that hold several maps, or of an embedding, which it applies to a tied head too, is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from safetensors.torch import save
from torch import Tensor

from inlay import fields
from inlay.engines import LANGUAGE_MODEL
from inlay.errors import CompatibilityError, FormatError, explain, few
from inlay.formats.contract import AdapterFile, Format, Layer, ModelFacts, linear_layers
from inlay.io import json_files, safetensors
from inlay.methods import hooks, name_of
from inlay.methods.contract import Method, Params
from inlay.methods.dora import Dora
from inlay.methods.lora import Lora

CONFIG, TENSORS = "adapter_config.json", "adapters.safetensors"

_NAMES = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}
_METHODS: dict[str, type[Lora] | type[Dora]] = {"lora": Lora, "dora": Dora}
"""What `fine_tune_type` may say."""


class _Config(TypedDict, total=False):
    """The parts of the configuration that say what the adapter is."""

    fine_tune_type: str
    model: str | None
    lora_parameters: Mapping[str, Any]


class _Parameters(TypedDict, total=False):
    rank: int
    scale: float
    dropout: float
    keys: tuple[str, ...] | None


class Mlx(Format):
    """The directories of mlx-lm."""

    files = (CONFIG, TENSORS)
    tensors = TENSORS

    def detect(self, directory: Path) -> bool:
        if not (directory / CONFIG).is_file():
            return False
        config = json_files.read_json(directory / CONFIG)
        return "peft_type" not in config and bool({"fine_tune_type", "lora_parameters"} & set(config))

    def read(self, directory: Path, *, outline: bool) -> AdapterFile:
        path, config = directory / CONFIG, json_files.read_json(directory / CONFIG)
        with json_files.about(path):
            about = fields.fitted(_Config, config)
            settings = fields.fitted(_Parameters, about.get("lora_parameters", {}))
        _check(path, about)
        if not (directory / TENSORS).is_file():
            raise safetensors.refuse_pickles(directory, TENSORS)
        tensors = (safetensors.outlines if outline else safetensors.read_tensors)(directory / TENSORS)
        cls = _METHODS[about.get("fine_tune_type", "lora")]
        params = _params(directory / TENSORS, tensors, cls, settings["rank"])
        with json_files.about(path):
            method = cls(
                r=settings["rank"], lora_alpha=settings["scale"] * settings["rank"], target_modules=tuple(params)
            )
        facts = ModelFacts(about.get("model"), LANGUAGE_MODEL, layers=linear_layers(params))
        return AdapterFile(method=method, params=params, model=facts)

    def placed(self, file: AdapterFile, model: ModelFacts) -> AdapterFile:
        tables = [path for path in file.params if model.layers.get(path, Layer()).kind == "embedding"]
        if tables:
            wrong = "this adapter changes an embedding, and mlx-lm applies that to a head that is tied to it too"
            raise CompatibilityError(explain(wrong, found=few(tables), do="train it again without the embedding"))
        return file

    def problems(self, file: AdapterFile) -> list[str]:
        if not isinstance(file.method, Lora):
            return [f"method {name_of(file.method)}; a lora alone is written in this form"]
        layers, problems = file.model.layers, []
        for path, params in file.params.items():
            if layers.get(path, Layer()).kind != "linear" or set(params) != {"lora_A", "lora_B"}:
                problems.append(f"{path}: what is no linear layer's pair of factors has no place")
        own = {path: hooks.for_module(file.method, path) for path in file.params}
        if len({(method.r, method.scaling) for method in own.values()}) > 1:
            problems.append("rank_pattern or alpha_pattern: all layers have one rank and one scale")
        return problems

    def write(self, directory: Path, file: AdapterFile) -> None:
        paths = list(file.params)
        method = hooks.for_module(_lora(file.method), paths[0])
        keys = sorted({_split(path)[1] for path in paths})
        numbers = [_split(path)[0] for path in (*paths, *file.model.layers)]
        config = {
            "fine_tune_type": "lora",
            "model": file.model.name,
            "num_layers": max(numbers) + 1,
            "lora_parameters": {"rank": method.r, "scale": method.scaling, "dropout": 0.0, "keys": keys},
        }
        stored = {
            f"{path}.{_NAMES[name]}": tensor.detach().cpu().T.contiguous()
            for path, params in file.params.items()
            for name, tensor in params.items()
        }
        (directory / CONFIG).write_text(json.dumps(config, indent=2), "utf-8")
        (directory / TENSORS).write_bytes(save(stored))

    def readers(self, directory: Path) -> dict[str, list[str]]:
        return {"inlay": [], "mlx": []}


def _check(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse a configuration of something else than a LoRA or a DoRA."""
    settings, kind = about.get("lora_parameters", {}), about.get("fine_tune_type", "lora")
    problems = [] if kind in _METHODS else [f"fine_tune_type={fields.shown(kind)}; known are {', '.join(_METHODS)}"]
    known = set(_Parameters.__annotations__)
    problems += [f"lora_parameters.{key}={fields.shown(value)}" for key, value in settings.items() if key not in known]
    problems += [f"lora_parameters has no {key}" for key in ("rank", "scale") if settings.get(key) is None]
    if problems:
        wrong, do = (
            "this adapter uses something that Inlay does not do",
            "an adapter that mlx_lm.lora trained as lora or dora",
        )
        raise CompatibilityError(explain(wrong, found=[f"{path}: {problem}" for problem in problems], do=do))


def _params(path: Path, tensors: Mapping[str, Tensor], cls: type[Method], r: int) -> dict[str, Params]:
    """The tensors by our names: those of every layer there, in the shapes that go together."""
    ours = {theirs: name for name, theirs in _NAMES.items() if cls is Dora or theirs != "m"}
    params: dict[str, Params] = {}
    problems = [] if tensors else ["no tensor at all"]
    for key, tensor in sorted(tensors.items()):
        module, _, name = key.rpartition(".")
        if not module or name not in ours or tensor.dim() != (1 if name == "m" else 2):
            problems.append(
                f"{key}: no tensor of a linear layer's {cls.__name__} has that name and {tensor.dim()} dimensions"
            )
        elif not tensor.is_floating_point() or not (tensor.is_meta or safetensors.is_finite(tensor)):
            problems.append(f"{key}: holds NaN or infinite values, or whole numbers")
        else:
            params.setdefault(module, {})[ours[name]] = tensor.T.contiguous() if tensor.dim() == 2 else tensor
    problems += [problem for module, own in params.items() for problem in _misfits(module, own, ours, r)]
    if problems:
        wrong = "the tensors of this adapter are not those that its configuration asks for"
        do = "ask its author for a whole file; a training that diverged has to be run again"
        raise FormatError(explain(wrong, found=few([f"{path}: {problem}" for problem in problems]), do=do))
    return params


def _misfits(module: str, own: Params, ours: Mapping[str, str], r: int) -> list[str]:
    """What is wrong with the tensors of a layer beside each other; `ours`: our names of those that it has, by mlx-lm's."""
    if missing := [f"{module}.{theirs}: missing" for theirs, name in ours.items() if name not in own]:
        return missing
    ranks = {len(own["lora_A"]), own["lora_B"].shape[1]}
    if ranks != {r}:
        return [f"{module}: of rank {' and '.join(map(str, sorted(ranks)))}, lora_parameters says {r}"]
    magnitudes = own.get("lora_magnitude_vector", own["lora_B"])
    if len(magnitudes) != len(own["lora_B"]):
        return [f"{module}.m: {len(magnitudes)} numbers for {len(own['lora_B'])} outputs"]
    return []


def _lora(method: Method) -> Lora:
    assert isinstance(method, Lora), "an adapter without problems is of this method"
    return method


def _split(path: str) -> tuple[int, str]:
    """The number of the layer that a path lies in and what follows it; -1 and the path where there is none."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
    return (int(parts[at]), ".".join(parts[at + 1 :])) if at >= 0 else (-1, path)
