"""The exchange format: an adapter as a directory that `peft`, `transformers`, vLLM and the rest read.

    adapter_config.json          peft_type, the method's fields, base_model_name_or_path, target_modules as a list
    adapter_model.safetensors    base_model.model.<module path>.<tensor>, metadata {"format": "pt"}
    README.md                    a model card
    inlay.json                   what the format has no place for: the base's fingerprint, how the adapter was trained

Read strictly: `peft` drops tensors and keys that it does not know, and the adapter is then silently another one. Here a key
that would change the meaning, a tensor of no module or a value that is not finite refuses the file, with everything
that is wrong in one message.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from safetensors.torch import save
from torch import Tensor

from inlay import engines, fields, methods
from inlay.errors import CompatibilityError, FormatError, explain, few
from inlay.formats._card import card
from inlay.formats._peft_forms import (
    INNER,
    Targets,
    flat,
    flattened,
    kernel,
    layer_of,
    one_table,
    short_names,
    targets_of,
    unnested,
    whole,
)
from inlay.formats.contract import AdapterFile, Format, Layer, ModelFacts
from inlay.io import json_files, safetensors
from inlay.methods import hooks
from inlay.methods.contract import TOKEN_ROWS, Method, Own, Params
from inlay.names import is_named, is_regex, joined, parents, selects, split

CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"

OWN = ("weight", "bias")
"""What modules call their own tensors."""

BROUGHT = ("embed_tokens", "lm_head")
"""The modules that PEFT adds to a file with a weight of their own."""

_PREFIX = "base_model.model."
_SHARED_PREFIX = "base_model."
_COPY = "copy of the base's weight"
_LORALIB = "name them base_model.model.MODULE.lora_A.weight: these are loralib's names"
_ABOUT_THE_FILE = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "layers_pattern",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    ]
)


class _AboutTheBase(TypedDict, total=False):
    base_model_name_or_path: str | None
    target_parameters: tuple[str, ...] | None
    task_type: str | None


class Peft(Format):
    """The directories of PEFT."""

    files = (CONFIG, TENSORS, CARD)
    tensors = TENSORS

    def detect(self, directory: Path) -> bool:
        if not (directory / CONFIG).is_file():
            return False
        config = json_files.read_json(directory / CONFIG)
        return "peft_type" in config or "config" not in config  # AdapterHub's file of this name has its settings there

    def read(self, directory: Path, *, outline: bool) -> AdapterFile:
        config = one_table(directory / CONFIG, json_files.read_json(directory / CONFIG))
        method = _method(directory / CONFIG, config)
        if not (directory / TENSORS).is_file():
            raise safetensors.refuse_pickles(directory, TENSORS)
        tensors = (safetensors.outlines if outline else safetensors.read_tensors)(directory / TENSORS)
        method = _with_brought(method, tensors)
        names = {key: _split(key, method) for key in sorted(tensors)}
        params, shared, base_weights = _params(directory / TENSORS, tensors, names, method)
        if _has(method, "target_modules") and config.get("target_modules") is None:  # as in files of old versions
            method = dataclasses.replace(method, target_modules=tuple(params))
        about = fields.fitted(_AboutTheBase, config)  # checked with the method
        return AdapterFile(
            method=method,
            params=params,
            shared=shared,
            base_weights=base_weights,
            parameters=about.get("target_parameters") or (),
            model=ModelFacts(
                about.get("base_model_name_or_path"),
                about.get("task_type"),
                layers=_layers(tensors, names, method, bool(config.get("fan_in_fan_out"))),
            ),
        )

    def placed(self, file: AdapterFile, model: ModelFacts) -> AdapterFile:
        return unnested(file, model.layers)

    def problems(self, file: AdapterFile) -> list[str]:
        layers = file.model.layers
        return [f"{path}: what this layer is is not known" for path in file.params if path and path not in layers]

    def write(self, directory: Path, file: AdapterFile) -> None:
        config, tensors = described(file)
        stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        (directory / CONFIG).write_text(json.dumps(dict(sorted(config.items())), indent=2), "utf-8")
        (directory / TENSORS).write_bytes(save(stored, metadata={"format": "pt"}))
        write_card(directory, file)

    def readers(self, directory: Path) -> dict[str, list[str]]:
        entries = safetensors.read_header(directory / TENSORS).tensors
        config = json_files.read_json(directory / CONFIG)
        found = engines.reasons(config, {name: entry.shape for name, entry in entries.items()})
        return {name: [feature.name for feature in found.get(name, ())] for name in engines.reading("peft")}


def described(file: AdapterFile) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter as the files have it: the content of adapter_config.json, and the tensors by their names."""
    targets = targets_of(file, [path for path in file.params if not set(file.params[path]) <= {TOKEN_ROWS, *OWN}])
    tensors = {f"{_SHARED_PREFIX}{name}": tensor for name, tensor in file.shared.items()}
    for path, module in file.params.items():
        layer = file.model.layers.get(path, Layer())
        is_target = path in targets.modules
        if path in targets.parameters:
            path, module = targets.parameters[path], flattened(module)
        elif layer.kind == "conv2d" and is_target:
            kinds = file.method.peft.kernels
            shape = tuple(layer.sizes.values())
            module = {name: kernel(tensor, kinds.get(name), shape) for name, tensor in module.items()}
        tensors |= _keys(file.method, path, module, layer.kind == "embedding" and is_target)
    return _config(file, targets), tensors


def write_card(directory: Path, file: AdapterFile) -> None:
    """Write the card of an adapter whose other files are there."""
    config, header = json_files.read_json(directory / CONFIG), safetensors.read_header(directory / TENSORS)
    loading = engines.loading(config, {name: entry.shape for name, entry in header.tensors.items()})
    (directory / CARD).write_text(card(file, loading), "utf-8")


def _named(file: AdapterFile, targets: Targets, parameters: Sequence[str]) -> tuple[Any, Any, dict[str, Any]]:
    """(target_modules, modules_to_save, the selections among the first by field), each as short as it can be said."""
    method, adapted, modules = file.method, targets.modules, targets.every
    saved = short_names([path for path in modules if selects(method.modules_to_save, path)], modules)
    short = short_names(adapted or [path for path in file.params if path and path not in parameters], modules)
    if not file.model.class_name:  # which modules the model has beside these is not known: the method's own names stand
        names = getattr(method, "target_modules", "")
        saved, short = split(method.modules_to_save), list(names) if isinstance(names, tuple) else adapted
    selections = {}
    for field in method.peft.selections:
        some = [path for path in adapted if selects(getattr(method, field), path)]
        selections[field] = short_names(some, modules)
        if not set(selections[field]) <= set(short):  # PEFT looks for each of them among its target modules
            short, selections[field] = adapted, some
    return list(short), saved, selections


def _config(file: AdapterFile, targets: Targets) -> dict[str, Any]:
    """The content of adapter_config.json."""
    method, layers, adapted = file.method, file.model.layers, targets.modules
    parameters = [*targets.parameters] or [*file.parameters]
    short, saved, selections = _named(file, targets, parameters)
    known = {*method.peft.accepts, *method.peft.ignores} | {field.name for field in dataclasses.fields(method)}
    optional = {
        "fan_in_fan_out": bool(adapted) and all(next(iter(layers[path].sizes)) == "in" for path in adapted),
        "target_modules": short,
        "target_parameters": parameters or None,
        **({"lora_dropout": 0} if parameters else {}),  # PEFT has none beside parameters; only training reads it
        **selections,
    }
    return {
        **_settings(method),
        "base_model_name_or_path": file.model.name,
        "inference_mode": True,
        "task_type": file.model.task_type,
        "modules_to_save": saved or None,
        **{key: value for key, value in optional.items() if key in known},
    }


def _method(path: Path, config: Mapping[str, Any]) -> Method:
    peft_type = config.get("peft_type")
    problems: dict[type[Method], list[str]] = {}
    for some in (methods.TABLE.own(), methods.TABLE.others()):  # the others are not looked at where one of ours does it
        if all(problems.values()):
            problems |= {cls: _unsupported(cls, config) for _, cls in some if _type_name(cls) == peft_type}
    if not problems:
        known = ", ".join(
            dict.fromkeys(_type_name(cls) for _, cls in methods.TABLE.known())
        )  # several methods may share one
        raise CompatibilityError(
            explain(
                "this kind of adapter is not known here",
                found=f"{path}: peft_type {fields.shown(peft_type)}; known are {known}",
                do="inlay reads these kinds only; convert the adapter with the tool that made it",
            )
        )
    chosen = min(problems, key=lambda cls: (len(problems[cls]), len(set(cls.peft.writes) - set(config))))
    if problems[chosen]:
        raise CompatibilityError(
            explain(
                "this adapter uses something that Inlay does not do, and would be another one without it",
                found=[f"{path}: {problem}" for problem in problems[chosen]],
                do="merge it with peft, or save it there as plain LoRA",
            )
        )
    values = {
        field.name: config[field.name]
        for field in dataclasses.fields(chosen)
        if config.get(field.name) is not None or (field.name in config and field.name in _NUMBERS)
    }
    with json_files.about(path):
        fields.fitted(_AboutTheBase, config)
        return chosen(**fields.fitted(chosen, {**chosen.peft.defaults, **values}))


_NUMBERS = ("r", "lora_alpha")
"""What peft computes with, so that a file in which it is null has no meaning there."""


def _has(method: Method, field: str) -> bool:
    return any(own.name == field for own in dataclasses.fields(method))


def _with_brought(method: Method, tensors: Iterable[str]) -> Method:
    """`method` with the modules that the file brings whole, where its own `modules_to_save` does not mean them.

    PEFT adds embeddings where the vocabulary has been resized, and takes a name for the end of any other: `norm` means
    `input_layernorm` there. A name that has no other meaning in the file gives way to the paths.
    """
    unclaimed = [key for key in sorted(tensors) if key.startswith(_PREFIX) and _split(key, method) is None]
    paths = {key: key.removeprefix(_PREFIX).rpartition(".")[0] for key in unclaimed}
    ends = tuple(f".{name}.weight" for name in BROUGHT)
    brought = [path for key, path in paths.items() if key.endswith(ends)]
    saved, longer = method.modules_to_save, list[str]()
    if saved and not is_regex(saved):
        longer = [part for path in paths.values() for part in parents(path) if part.endswith(tuple(split(saved)))]
        there = {part for key in tensors for part in parents(key.removeprefix(_PREFIX))}
        saved = tuple(name for name in split(saved) if not _is_end_alone(name, longer, there))
    if not brought and not longer:
        return method
    return dataclasses.replace(method, modules_to_save=joined(saved, list(dict.fromkeys([*brought, *longer]))))


def _is_end_alone(name: str, longer: Iterable[str], there: Iterable[str]) -> bool:
    """`name` is the end of a name in `longer`, and no module of its own among those that are there."""
    return any(part.endswith(name) for part in longer) and not any(is_named(name, part) for part in there)


def _unsupported(cls: type[Method], config: Mapping[str, Any]) -> list[str]:
    """The keys whose values this method can't honour: those with no field, unless the value changes nothing."""
    known = {field.name for field in dataclasses.fields(cls)}
    inert = {key: value for key, value in config.items() if key not in known | _ABOUT_THE_FILE | {*cls.peft.ignores}}
    accepts = cls.peft.accepts
    return [
        f"{key}={fields.cut(json.dumps(value))}"
        for key, value in inert.items()
        if value not in accepts.get(key, (None, False, [], {}))
    ]


_Names = Mapping[str, tuple[str, str] | None]
"""What `_split` says of each key of a file, in order."""


def _params(
    path: Path, tensors: Mapping[str, Tensor], names: _Names, method: Method
) -> tuple[dict[str, Params], Params, Params]:
    """The tensors of the modules, those that all share, and the weights of the base that the file has."""
    params: dict[str, Params] = {}
    shared: Params = {}
    base_weights: Params = {}
    problems: list[str] = []
    for key, found in names.items():
        if found is None:
            problems.append(f"{key}: no tensor of {_type_name(type(method))} has that name")
            continue
        problems += [f"{key}: holds {fault}" for fault in _faults(tensors[key])]
        module, name = found
        if key.startswith(_SHARED_PREFIX) and not key.startswith(_PREFIX):
            shared[name] = tensors[key]
        elif name == _COPY:
            base_weights[module] = tensors[key]
        else:
            params.setdefault(module, {})[name] = flat(tensors[key], method.peft.kernels.get(name))
    unexpected = [f"{path}{INNER}.weight" for path in base_weights if path not in params]
    problems += [f"{key}: no tensor of {_type_name(type(method))} has that name" for key in unexpected]
    if not tensors:
        problems.append("no tensor at all")
    if problems:
        raise FormatError(
            explain(
                "the tensors of this adapter are not those of its method",
                found=few([f"{path}: {problem}" for problem in problems]),
                do=_LORALIB
                if method.peft.tensors.get("lora_A") == "lora_A.weight"
                and any(key.endswith(".lora_A") for key in tensors)
                else "ask its author for a whole file; a training that diverged has to be run again",
            )
        )
    return params, shared, base_weights


def _layers(tensors: Mapping[str, Tensor], names: _Names, method: Method, in_first: bool) -> dict[str, Layer]:
    """What the file tells of the modules whose tensors it has: those with a pair of factors, and the rest by name alone."""
    found: dict[str, dict[str, Tensor]] = {}
    embeddings = set[str]()
    for key, tensor in tensors.items():
        path, name = names[key] or ("", "")
        found.setdefault(path, {})[name] = tensor
        embeddings |= {path} if key.endswith(f".{method.peft.embedding_tensors.get(name)}") else set()
    pairs = {
        path: (named["lora_A"], named["lora_B"]) for path, named in found.items() if {"lora_A", "lora_B"} <= {*named}
    }
    layers = {path: layer_of(*pair, path in embeddings, in_first) for path, pair in pairs.items()}
    return dict.fromkeys((path for path in found if path), Layer()) | layers


def _faults(tensor: Tensor) -> list[str]:
    """What a tensor holds that no weight of an adapter does."""
    if not tensor.is_floating_point():
        return [f"whole numbers ({tensor.dtype}), which are no weights of an adapter"]
    return ["NaN or infinite values"] if not tensor.is_meta and not safetensors.is_finite(tensor) else []


def _split(key: str, method: Method) -> tuple[str, str] | None:
    """Module path and tensor name of a key of the file; None where it has no such form."""
    if method.peft.tensors.get(key) == key:
        return "", key
    if not key.startswith(_PREFIX):
        name = key.removeprefix(_SHARED_PREFIX)
        return ("", name) if name in method.peft.shared else None
    rest = key.removeprefix(_PREFIX)
    for names in (method.peft.tensors, method.peft.embedding_tensors):
        for name, written in names.items():
            if rest.endswith(f".{written}"):
                return rest.removesuffix(f".{written}"), name
    module, _, name = rest.rpartition(".")
    inner = module.removesuffix(INNER)
    if name == "weight" and inner != module:
        return inner, _COPY
    if _may_be_own(method, inner, name):
        return inner, name
    return None if method.peft.tensors or name in OWN else (module, name)


def _may_be_own(method: Method, path: str, name: str) -> bool:
    """The method may train this tensor of the model itself."""
    kinds = ("linear", "embedding", "conv2d", "norm", "other")
    owns = (Own(path, name, kind, is_adapted) for kind in kinds for is_adapted in (False, True))
    saved = method.modules_to_save
    is_saved = bool(saved) and any(selects(saved, part) for part in parents(path))
    return is_saved or any(hooks.trains(method, own) for own in owns)


def _keys(method: Method, path: str, module: Params, is_embedding: bool) -> dict[str, Tensor]:
    """The tensors of one module by what the file calls them."""
    names = {**method.peft.tensors, **(method.peft.embedding_tensors if is_embedding else {})}
    if not path:
        return {names.get(name, name): tensor for name, tensor in module.items()}
    own = {name for name in module if name in OWN and name not in names}
    inner = INNER if len(own) < len(module) else ""  # beside what the method adds, PEFT has the module one deeper
    return {
        f"{_PREFIX}{path}{inner if name in own else ''}.{names.get(name, name)}": tensor
        for name, tensor in module.items()
    }


def _settings(method: Method) -> dict[str, Any]:
    """The method's fields as the format has them; what `target_modules` says already is left out."""
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    left_out = {"exclude_modules", "layers_to_transform", *method.peft.omits}
    values = {key: value for key, value in values.items() if key not in left_out} | dict(method.peft.writes)
    return {"peft_type": _type_name(type(method))} | {key: whole(value) for key, value in values.items()}


def _type_name(cls: type[Method]) -> str:
    return cls.peft.type or cls.__name__.upper()
