"""Bottleneck adapters as AdapterHub's `adapters` keeps them.

    adapter_config.json    name, model_type, hidden_size, version and, under config, the fields of its BnConfig
    adapter.safetensors    <module path>.adapters.<name>.adapter_down.0.weight, .bias, adapter_up.weight, .bias

The library can put an adapter anywhere around the norms and sums of a layer. Inlay's reads the block's output, before the layer
adds it to the residual stream; three of the library's compute the same, on the models of `FAMILIES`:

    houlsby     DoubleSeqBnConfig(); on T5 with cross_adapter=True
    pfeiffer    BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=16, non_linearity="relu")
    parallel    ParBnConfig(), on DistilBERT alone: elsewhere the two networks do not read the same

Its SeqBnConfig() is none of them: its network reads the norm of the sum of block and residual stream
(original_ln_before). Read strictly, as `inlay.formats.peft` has it: whatever would make another adapter of it refuses the file.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save
from torch import Tensor

from inlay.errors import CompatibilityError, FormatError, explain, few
from inlay.formats.contract import AdapterFile, Format, ModelFacts
from inlay.io import json_files, safetensors
from inlay.methods import name_of
from inlay.methods.bottleneck import Bottleneck
from inlay.methods.contract import Block, Params

CONFIG, TENSORS = "adapter_config.json", "adapter.safetensors"
BESIDE = ("head_config.json", "adapter_interface.json")
"""Files that change what the adapter is: a prediction head of its own, sites in a model that the library does not know."""
VERSION = "adapters.1.3.0"
"""The library whose form is written, and with which `tests/interop/adapterhub_golden.py` compares."""


class Site(NamedTuple):
    """Where a layer holds an adapter: the module in the library, and here the output projection of the block."""

    theirs: str
    ours: str
    role: str


class Family(NamedTuple):
    """How the library names the sites of a kind of model."""

    prefix: str
    """What holds the model's body, in classes with a head."""
    stacks: Mapping[str, tuple[Site, ...]]
    """The sites of a layer, by the list that holds the layers."""
    cross: bool = False
    """There is a cross-attention, which the library adapts only if told."""
    parallel: bool = False
    """A network beside the MLP reads the same in both: the MLP is one module, and takes the residual stream itself."""


def _beside(attention: str, mlp: str) -> tuple[Site, ...]:
    """The sites of a layer that holds its adapters itself."""
    return Site("attention_adapters", attention, "attention"), Site("output_adapters", mlp, "mlp")


_BERT = {
    "encoder.layer": (
        Site("attention.output", "attention.output.dense", "attention"),
        Site("output", "output.dense", "mlp"),
    )
}
_LLAMA = {"layers": _beside("self_attn.o_proj", "mlp.down_proj")}
_T5_SELF = Site("layer.0", "layer.0.SelfAttention.o", "attention")
_T5 = {
    "encoder.block": (_T5_SELF, Site("layer.1", "layer.1.DenseReluDense.wo", "mlp")),
    "decoder.block": (
        _T5_SELF,
        Site("layer.1", "layer.1.EncDecAttention.o", "attention"),
        Site("layer.2", "layer.2.DenseReluDense.wo", "mlp"),
    ),
}
FAMILIES = {
    "bert": Family("bert", _BERT),
    "distilbert": Family("distilbert", {"transformer.layer": _beside("attention.out_lin", "ffn.lin2")}, parallel=True),
    "electra": Family("electra", _BERT),
    "gpt2": Family("transformer", {"h": _beside("attn.c_proj", "mlp.c_proj")}),
    "llama": Family("model", _LLAMA),
    "mistral": Family("model", _LLAMA),
    "roberta": Family("roberta", _BERT),
    "t5": Family("transformer", _T5, cross=True),
    "xlm-roberta": Family("roberta", _BERT),
}
"""The models on which both compute the same, by model_type; each has its file in tests/interop/adapterhub."""

_NAMES = {
    "adapter_down.0.weight": "adapter_down",
    "adapter_down.0.bias": "adapter_down_bias",
    "adapter_up.weight": "adapter_up",
    "adapter_up.bias": "adapter_up_bias",
}
_FUNCTIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish", "tanh": "tanh"}
_PLACEMENTS = {(True, True, False): "houlsby", (False, True, False): "pfeiffer", (False, True, True): "parallel"}
"""(mh_adapter, output_adapter, is_parallel) -> placement."""

_ABOUT_THE_FILE = {"config", "hidden_size", "model_class", "model_name", "model_type", "name", "version"}
_TOP: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_type": (lambda value: str(value) in FAMILIES, f"; known are {', '.join(FAMILIES)}"),
    "hidden_size": (lambda value: type(value) is int and value > 0, ""),
    "name": (lambda value: value is None or isinstance(value, str), ""),
    "model_name": (lambda value: value is None or isinstance(value, str), ""),
    "version": (lambda value: str(value).startswith("adapters."), ", not of the library `adapters`"),
}
"""Fields about the file -> (the values that are read, what is said of others)."""
_CHOSEN = {
    "mh_adapter",
    "output_adapter",
    "is_parallel",
    "cross_adapter",
    "reduction_factor",
    "non_linearity",
    "scaling",
}
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "architecture": (None,),
    "original_ln_before": (False,),
    "original_ln_after": (True,),
    "residual_before_ln": (True, False),
    "ln_before": (False,),
    "ln_after": (False,),
    "adapter_residual_before_ln": (False, True),
    "use_gating": (False,),
    "phm_layer": (False,),
    "inv_adapter": (None,),
    "leave_out": ([],),
}
"""The values that make the adapter one of ours; of several, each computes the same. The first of each is written."""
_INERT = {
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter_reduction_factor": None,
    "phm_dim": 4,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "phm_rank": 1,
    "phm_bias": True,
}
"""What only training, fresh tensors or other settings read: any value will do. These are written."""
_MISSING = {"scaling": 1.0, "is_parallel": False, "cross_adapter": False}
"""What the library takes for a field that is not there."""
_DO = (
    "train it there with DoubleSeqBnConfig(), or BnConfig(mh_adapter=False, output_adapter=True, reduction_factor=16, "
    'non_linearity="relu"), and save_adapter(..., with_head=False, use_safetensors=True)'
)


class AdapterHub(Format):
    """The directories of AdapterHub's `adapters`."""

    files = (CONFIG, TENSORS, *BESIDE)
    tensors = TENSORS

    def detect(self, directory: Path) -> bool:
        if not (directory / CONFIG).is_file():
            return False
        config = json_files.read_json(directory / CONFIG)
        return "peft_type" not in config and {"config", "model_type", "name"} <= set(config)

    def read(self, directory: Path, *, outline: bool) -> AdapterFile:
        path, config = directory / CONFIG, json_files.read_json(directory / CONFIG)
        inner = config["config"] if isinstance(config["config"], dict) else {}
        problems = _unsupported(config, inner) + [f"{name} beside it" for name in BESIDE if (directory / name).exists()]
        if problems:
            wrong = "this adapter computes something that Inlay's bottleneck adapters do not"
            raise CompatibilityError(explain(wrong, found=[f"{path}: {problem}" for problem in problems], do=_DO))
        with json_files.about(path):
            method = Bottleneck(
                placement=_PLACEMENTS[_flags(inner)],  # type: ignore[arg-type]  # one of its three
                reduction_factor=inner["reduction_factor"],
                non_linearity=_FUNCTIONS[inner["non_linearity"].lower()],  # type: ignore[arg-type]
                scaling=inner.get("scaling", 1.0),
            )
        if not (directory / TENSORS).is_file():
            raise safetensors.refuse_pickles(directory, TENSORS)
        tensors = (safetensors.outlines if outline else safetensors.read_tensors)(directory / TENSORS)
        return AdapterFile(
            method=method,
            params=_params(directory / TENSORS, method, config, tensors),
            model=ModelFacts(config.get("model_name") or None, model_type=config["model_type"]),
            name=config["name"],
        )

    def placed(self, file: AdapterFile, model: ModelFacts) -> AdapterFile:
        """The class of the model may hold its body under a name, or be the body itself."""
        theirs = str(file.model.model_type)
        if model.model_type != theirs:  # whose layers may have the same shapes
            found = f"model_type {theirs!r}; this base's is {model.model_type!r}"
            wrong, do = "this adapter is for another kind of model", "use the base it was trained on"
            raise CompatibilityError(explain(wrong, found=found, do=do))
        prefix = FAMILIES[theirs].prefix
        dot = f"{prefix}." if prefix in model.layers else ""
        return dataclasses.replace(file, params={f"{dot}{path}": tensors for path, tensors in file.params.items()})

    def problems(self, file: AdapterFile) -> list[str]:
        method, model_type, params = file.method, file.model.model_type, file.params
        if not isinstance(method, Bottleneck):
            return [f"method {name_of(method)}; of Inlay's methods, bottleneck alone is written in this form"]
        family = FAMILIES.get(str(model_type))
        if family is None:
            return [f"model_type {model_type!r}; known are {', '.join(FAMILIES)}"]
        problems = []
        if method.is_parallel and not family.parallel:
            problems.append(f"placement='parallel': on {model_type} the two networks do not read the same")
        if method.layer_norm:
            what = "layer_norm=True"
            problems.append(f"{what}: the library has no safetensors of its norms, whose tensors it holds twice")
        return problems + _other_tensors(family, method, params)

    def write(self, directory: Path, file: AdapterFile) -> None:
        """Dots in the adapter's name, which the library's modules can't have in theirs, become hyphens."""
        method, model = file.method, file.model
        assert isinstance(method, Bottleneck), "an adapter without problems is of this method"
        family, label = FAMILIES[str(model.model_type)], file.name.replace(".", "-")
        dot = _common(f"{family.prefix}.", file.params)
        table = _table(family, method, [path.removeprefix(dot) for path in file.params])
        stored = {
            f"{dot}{table[path.removeprefix(dot)].theirs}.adapters.{label}.{theirs}": tensors[ours].detach().cpu()
            for path, tensors in file.params.items()
            for theirs, ours in _NAMES.items()
        }
        width, size = next(iter(file.params.values()))["adapter_up"].shape
        config = {
            "config": _config(method, family, width, size),
            "hidden_size": width,
            "version": VERSION,
            "name": label,
            "model_type": model.model_type,
            "model_class": model.class_name,
            "model_name": model.name or model.class_name,
        }
        (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
        (directory / TENSORS).write_bytes(save({key: tensor.contiguous() for key, tensor in stored.items()}))

    def readers(self, directory: Path) -> dict[str, list[str]]:
        return {"inlay": [], "adapters (AdapterHub)": []}


def _other_tensors(family: Family, method: Bottleneck, params: Mapping[str, Params]) -> list[str]:
    """Where the tensors of an adapter are not those that this form has for its method."""
    dot = _common(f"{family.prefix}.", params)
    table = _table(family, method, [path.removeprefix(dot) for path in params])
    problems = [f"{dot}{path}: no tensors" for path in table if f"{dot}{path}" not in params]
    problems += [f"{path}: no place for it" for path in params if path.removeprefix(dot) not in table]
    names = {name for tensors in params.values() for name in tensors} - {"adapter_norm", "adapter_norm_bias"}
    return problems + [f"{name}: no tensor of that name" for name in sorted(names - set(_NAMES.values()))]


def _unsupported(config: Mapping[str, Any], inner: Mapping[str, Any]) -> list[str]:
    """What the configuration asks for and Inlay's bottleneck adapters don't do."""
    problems = [f"{key}={json.dumps(value)}" for key, value in config.items() if key not in _ABOUT_THE_FILE]
    problems += [
        f"{key}={json.dumps(config.get(key))}{more}" for key, (fits, more) in _TOP.items() if not fits(config.get(key))
    ]
    wrong = dict.fromkeys(_wrong(FAMILIES.get(str(config.get("model_type"))), inner))
    return problems + [f"config.{key}={json.dumps(inner.get(key, _MISSING.get(key)))}" for key in wrong]


def _wrong(family: Family | None, inner: Mapping[str, Any]) -> list[str]:
    """The fields of BnConfig whose values make another adapter of it than one of ours."""
    wrong = [key for key, value in inner.items() if key not in _INERT and value not in _ALLOWED.get(key, (value,))]
    wrong += [key for key in inner if key not in {*_INERT, *_ALLOWED, *_CHOSEN}]
    if not isinstance(inner.get("non_linearity"), str) or inner["non_linearity"].lower() not in _FUNCTIONS:
        wrong.append("non_linearity")
    wrong += [key for key in ("reduction_factor", "scaling") if type(inner.get(key, 1.0)) not in (int, float)]
    placement = _PLACEMENTS.get(_flags(inner))
    if placement is None:
        wrong += ["mh_adapter", "output_adapter", "is_parallel"]
    if family is not None and placement is not None:
        crosses = family.cross and placement == "houlsby"
        wrong += ["cross_adapter"] * (inner.get("cross_adapter", False) is not crosses)
        wrong += ["is_parallel"] * (placement == "parallel" and not family.parallel)
    return wrong


def _params(
    path: Path, method: Bottleneck, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Params]:
    """The tensors of the file by our names: all of them there, and as large as the configuration says."""
    family = FAMILIES[config["model_type"]]
    dot = _common(f"{family.prefix}.", tensors)
    left = {key.removeprefix(dot): tensor for key, tensor in tensors.items()}
    params: dict[str, Params] = {}
    problems: list[str] = []
    for ours, site in _table(family, method, list(left)).items():
        shapes = method.shapes(Block(ours, site.role, config["hidden_size"]))
        for theirs, name in _NAMES.items():
            key = f"{site.theirs}.adapters.{config['name']}.{theirs}"
            tensor = left.pop(key, None)
            if tensor is None:
                problems.append(f"{dot}{key}: missing")
            elif tuple(tensor.shape) != shapes[name]:
                problems.append(f"{dot}{key}: shape {tuple(tensor.shape)}, not {shapes[name]}")
            elif not tensor.is_floating_point() or not (tensor.is_meta or safetensors.is_finite(tensor)):
                problems.append(f"{dot}{key}: holds NaN or infinite values, or whole numbers")
            else:
                params.setdefault(ours, {})[name] = tensor
    problems += [f"{dot}{key}: no tensor of this adapter has that name" for key in sorted(left)]
    if problems:
        raise FormatError(
            explain(
                "the tensors of this adapter are not those that its configuration asks for",
                found=few([f"{path}: {problem}" for problem in problems]),
                do="ask its author for a whole file; a training that diverged has to be run again",
            )
        )
    return params


def _table(family: Family, method: Bottleneck, found: Sequence[str]) -> dict[str, Site]:
    """Every site of the method, by our path in the model's body; as many layers as the names `found` there tell of."""
    table = {}
    for stack, sites in family.stacks.items():
        numbers = [int(match[1]) for name in found if (match := re.match(rf"{re.escape(stack)}\.(\d{{1,6}})\.", name))]
        for n in range(min(max(numbers, default=0) + 1, len(found) + 1)):
            for site in sites:
                if site.role in method.roles:
                    ours = site.ours.rpartition(".")[0] if method.is_parallel else site.ours
                    table[f"{stack}.{n}.{ours}"] = site._replace(theirs=f"{stack}.{n}.{site.theirs}")
    return table


def _config(method: Bottleneck, family: Family, width: int, size: int) -> dict[str, Any]:
    """The fields of the library's configuration."""
    where = next(where for where, placement in _PLACEMENTS.items() if placement == method.placement)
    factor = method.reduction_factor if method.bottleneck_size is None else width / size
    while int(width // factor) < size and method.bottleneck_size is not None:
        factor = math.nextafter(factor, 0)  # a division that was rounded up
    return {
        **{key: values[0] for key, values in _ALLOWED.items() if key != "architecture"},
        **_INERT,
        "init_weights": "mam_adapter" if method.is_parallel else "bert",
        **dict(zip(("mh_adapter", "output_adapter", "is_parallel"), where, strict=True)),
        "cross_adapter": family.cross and method.placement == "houlsby",
        "reduction_factor": int(factor) if factor == int(factor) else factor,
        "non_linearity": method.non_linearity,
        "scaling": float(method.scaling),
    }


def _flags(inner: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the configuration says of mh_adapter, output_adapter and is_parallel."""
    keys = ("mh_adapter", "output_adapter", "is_parallel")
    values = [inner.get(key, _MISSING.get(key)) for key in keys]
    return tuple(value if isinstance(value, bool) else None for value in values)


def _common(dot: str, names: Collection[str]) -> str:
    """`dot` where all names begin with it, otherwise nothing."""
    return dot if names and all(name.startswith(dot) for name in names) else ""
