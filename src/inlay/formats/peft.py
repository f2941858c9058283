"""The exchange format: an adapter as a directory that `peft`, `transformers`, vLLM and the rest read.

    adapter_config.json          peft_type, the method's fields, base_model_name_or_path, target_modules as a list
    adapter_model.safetensors    base_model.model.<module path>.<tensor>, metadata {"format": "pt"}
    README.md                    a model card
    inlay.json                   what the format has no place for: the base's fingerprint, how the adapter was trained

Read strictly: `peft` drops tensors and keys that it does not know, and the adapter is then silently another one. Here a key
that would change the meaning, a tensor without a place or a value that is not finite refuses the file, with everything
that is wrong in one message.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from safetensors.torch import save
from torch import Tensor

from inlay import fields, methods
from inlay.errors import CompatibilityError, FormatError, explain, few
from inlay.formats import adapterhub, loralib
from inlay.formats.card import card
from inlay.formats.engines import loading
from inlay.formats.peft_forms import flat, flattened, kernel, one_table, whole
from inlay.io import json_files, records, safetensors
from inlay.io.checkpoint import fetch
from inlay.methods.contract import LinearMethod, Method, Own, Params
from inlay.names import Names, joined, parents, selects

CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
FILES = (CONFIG, TENSORS, CARD, records.RECORD)

OWN = ("weight", "bias")
"""What modules call their own tensors."""

BROUGHT = ("embed_tokens", "lm_head")
"""The modules that PEFT adds to a file with a weight of their own."""

INNER = ".base_layer"
"""What PEFT calls the module that a wrapper of its own holds."""

_PREFIX = "base_model.model."
_SHARED_PREFIX = "base_model."
_COPY = "copy of the base's weight"
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


class PeftAdapter(NamedTuple):
    """An adapter as a file holds it: no model is needed to read one."""

    method: Method
    params: dict[str, Params]
    """Module path -> tensor name -> tensor; '' is the path of the model itself."""
    shared: Params
    """Frozen tensors that all modules share."""
    copies: Params
    """Weights of the base that the file holds beside the adapter, by module path: PEFT adds those of adapted embeddings."""
    base_name: str | None
    """What the file calls the base that it belongs to."""
    record: dict[str, Any]
    """The content of `inlay.json`; empty where there is none."""
    task_type: str | None = None
    """What the file calls the kind of model that it belongs to."""
    parameters: Names = ()
    """The parameters of fused experts that it changes, by name; their tensors are where the file has them."""
    model_type: str | None = None
    """The kind of model whose body has the module paths; AdapterHub's files alone say it."""


def read(source: str | Path, fits: Callable[[PeftAdapter], Any] = lambda outline: None) -> PeftAdapter:
    """The adapter in a directory, or of a name on the hub.

    **Arguments:**

    - `fits`: called before a tensor is read, with the adapter whose tensors have shapes and dtypes alone (on the meta device);
      it raises where that one can't be used, however large its file is.

    **Raises:**

    - `UnknownNameError`: there is no such directory or name.
    - `FormatError`: it is no adapter, a pickle, broken, or holds numbers that are not finite.
    - `CompatibilityError`: it uses something that Inlay does not do; every such thing is named.
    """
    directory = fetched(source)
    if not (directory / CONFIG).is_file():
        raise loralib.no_adapter(directory, CONFIG)
    config = one_table(directory / CONFIG, json_files.read_json(directory / CONFIG))
    record = records.read(directory)
    if adapterhub.wrote(config):
        bottleneck, places = adapterhub.read(directory, config)
        base_name = config.get("model_name") or None
        file = PeftAdapter(bottleneck, places, {}, {}, base_name, record, model_type=config["model_type"])
        fits(file)
        return file
    method = _method(directory / CONFIG, config)
    if not (directory / TENSORS).is_file():
        raise safetensors.refuse_pickles(directory, TENSORS)
    fits(_adapter(directory, config, method, safetensors.outlines(directory / TENSORS), record))
    return _adapter(directory, config, method, safetensors.read_tensors(directory / TENSORS), record)


def _adapter(
    directory: Path, config: Mapping[str, Any], method: Method, tensors: Mapping[str, Tensor], record: dict[str, Any]
) -> PeftAdapter:
    """The adapter that these tensors make."""
    method = _with_brought(method, tensors)
    params, shared, copies = _params(directory / TENSORS, tensors, method)
    if isinstance(method, LinearMethod) and config.get("target_modules") is None:  # as in files of old versions
        method = dataclasses.replace(method, target_modules=tuple(params))
    parameters = fields.fitted(_AboutTheBase, config).get("target_parameters") or ()  # checked with the method
    base_name, task_type = config.get("base_model_name_or_path"), config.get("task_type")
    return PeftAdapter(method, params, shared, copies, base_name, record, task_type, parameters)


def fetched(source: str | Path) -> Path:
    """The directory of an adapter: `source` itself, or the hub's copy of that name."""
    return fetch(source, "adapter", [*FILES, adapterhub.TENSORS, *adapterhub.BESIDE])


def write(
    directory: Path,
    method: Method,
    params: Mapping[str, Params],
    *,
    shared: Params,
    base_name: str | None,
    target_modules: Sequence[str],
    names: Mapping[str, Sequence[str]] | None = None,
    fan_in_fan_out: bool,
    record: Mapping[str, Any],
    modules_to_save: Sequence[str] = (),
    embeddings: Collection[str] = (),
    kernels: Mapping[str, Sequence[int]] | None = None,
    experts: Mapping[str, str] | None = None,
    task_type: str | None = None,
) -> None:
    """Write the four files into `directory`, which exists.

    **Arguments:**

    - `shared`: frozen tensors that all modules share.
    - `target_modules`: the adapted modules, as the format names them: last components or whole paths.
    - `names`: the modules that other fields of the method mean, likewise; all of them are among `target_modules`.
    - `fan_in_fan_out`: the base stores these weights as (in, out).
    - `record`: the content of `inlay.json`, without its format number.
    - `modules_to_save`: the modules that are kept whole, likewise.
    - `kernels`: the shapes of the weights of those that are convolutions, by path.
    - `experts`: where PEFT has the tensors of those that are parameters of fused experts, by path.
    - `embeddings`: the modules that are embeddings, by path: their tensors have names of their own.
    - `task_type`: what PEFT calls the kind of model.
    """
    about = {"base_model_name_or_path": base_name, "inference_mode": True, "task_type": task_type}
    about["modules_to_save"] = list(modules_to_save) or None
    config = _config(method) | about
    known = {*method.peft.accepts, *method.peft.ignores} | {field.name for field in dataclasses.fields(method)}
    optional = {"fan_in_fan_out": fan_in_fan_out, "target_modules": list(target_modules)}
    optional["target_parameters"] = list(experts or ()) or None
    optional |= {"lora_dropout": 0} if experts else {}  # PEFT has none beside parameters; only training reads it
    optional |= {field: list(modules) for field, modules in (names or {}).items()}
    config |= {key: value for key, value in optional.items() if key in known}
    tensors = {f"{_SHARED_PREFIX}{name}": tensor for name, tensor in shared.items()}
    for path, module in params.items():
        place, shape = (experts or {}).get(path), (kernels or {}).get(path)
        if place is not None:
            path, module = place, {name: flattened(name, tensor) for name, tensor in module.items()}
        if shape is not None:
            module = {name: kernel(tensor, method.peft.kernels.get(name), shape) for name, tensor in module.items()}
        tensors |= _keys(method, path, module, path in embeddings)
    stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    (directory / TENSORS).write_bytes(save(stored, metadata={"format": "pt"}))
    engines = loading(config, {key: tensor.shape for key, tensor in stored.items()})
    (directory / CARD).write_text(card(method, base_name, task_type, record, engines), "utf-8")
    records.write(directory, record)


def num_bytes(directory: Path) -> int:
    """Size of the tensors on disk."""
    return (directory / TENSORS).stat().st_size


def _method(path: Path, config: Mapping[str, Any]) -> Method:
    peft_type = config.get("peft_type")
    candidates = [cls for cls in map(methods.find, methods.names()) if _type_name(cls) == peft_type]
    if not candidates:
        known = ", ".join(_type_name(methods.find(name)) for name in methods.names())
        raise CompatibilityError(
            explain(
                "this kind of adapter is not known here",
                found=f"{path}: peft_type {fields.shown(peft_type)}; known are {known}",
                do="inlay reads these kinds only; convert the adapter with the tool that made it",
            )
        )
    problems = {cls: _unsupported(cls, config) for cls in candidates}
    chosen = min(candidates, key=lambda cls: (len(problems[cls]), len(set(cls.peft.writes) - set(config))))
    if problems[chosen]:
        raise CompatibilityError(
            explain(
                "this adapter uses something that Inlay does not do, and would be another one without it",
                found=[f"{path}: {problem}" for problem in problems[chosen]],
                do="merge it with peft, or save it there as plain LoRA",
            )
        )
    values = {
        field.name: config[field.name] for field in dataclasses.fields(chosen) if config.get(field.name) is not None
    }
    with json_files.about(path):
        fields.fitted(_AboutTheBase, config)
        return chosen(**fields.fitted(chosen, {**chosen.peft.defaults, **values}))


def _with_brought(method: Method, tensors: Iterable[str]) -> Method:
    """`method` with the embeddings that the file brings whole: PEFT adds them where the vocabulary has been resized."""
    ends = tuple(f".{name}.weight" for name in BROUGHT)
    paths = sorted(key.removeprefix(_PREFIX).removesuffix(".weight") for key in tensors if key.endswith(ends))
    brought = [path for path in paths if not _may_be_own(method, path, "weight")]
    if not brought:
        return method
    return dataclasses.replace(method, modules_to_save=joined(method.modules_to_save, brought))


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


def _params(path: Path, tensors: Mapping[str, Tensor], method: Method) -> tuple[dict[str, Params], Params, Params]:
    """The tensors of the modules, those that all share, and the copies of the base's weights."""
    params: dict[str, Params] = {}
    shared: Params = {}
    copies: Params = {}
    problems: list[str] = []
    for key in sorted(tensors):
        found = _split(key, method)
        if found is None:
            problems.append(f"{key}: no tensor of {_type_name(type(method))} has that name")
            continue
        if not tensors[key].is_floating_point():
            problems.append(f"{key}: holds whole numbers ({tensors[key].dtype}), which are no weights of an adapter")
        elif not tensors[key].is_meta and not safetensors.is_finite(tensors[key]):
            problems.append(f"{key}: holds NaN or infinite values")
        module, name = found
        if key.startswith(_SHARED_PREFIX) and not key.startswith(_PREFIX):
            shared[name] = tensors[key]
        elif name == _COPY:
            copies[module] = tensors[key]
        else:
            params.setdefault(module, {})[name] = flat(tensors[key], method.peft.kernels.get(name))
    unexpected = [f"{path}{INNER}.weight" for path in copies if path not in params]
    problems += [f"{key}: no tensor of {_type_name(type(method))} has that name" for key in unexpected]
    if not tensors:
        problems.append("no tensor at all")
    if problems:
        raise FormatError(
            explain(
                "the tensors of this adapter are not those of its method",
                found=few([f"{path}: {problem}" for problem in problems]),
                do=loralib.HINT + ": these are loralib's names"
                if loralib.is_named_so(tensors)
                else "ask its author for a whole file; a training that diverged has to be run again",
            )
        )
    return params, shared, copies


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
    return any(map(method.trains, owns)) or (bool(saved) and any(selects(saved, part) for part in parents(path)))


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


def _config(method: Method) -> dict[str, Any]:
    """The method's fields as the format has them; what `target_modules` says already is left out."""
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    left_out = {"exclude_modules", "layers_to_transform", *method.peft.omits}
    values = {key: value for key, value in values.items() if key not in left_out} | dict(method.peft.writes)
    return {"peft_type": _type_name(type(method))} | {key: whole(value) for key, value in values.items()}


def _type_name(cls: type[Method]) -> str:
    return cls.peft.type or cls.__name__.upper()
