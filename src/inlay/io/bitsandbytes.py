"""Quantised checkpoints, as `transformers` writes them with bitsandbytes: which tensors make up which weight.

config.json                 quantization_config: quant_method bitsandbytes, the scheme, the layers that were left alone
PATH.weight                 the codes
PATH.weight.absmax ...      the rest, under the names that a scheme's `Packed` has; those without a dot in front
PATH.SCB ...                stand beside the weight
inlay.json                  from `inlay quantize`: the source's fingerprint, and each layer's error
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from inlay import quant
from inlay.errors import CompatibilityError, FormatError, explain
from inlay.io import json_files, records, safetensors
from inlay.io.checkpoint import Checkpoint
from inlay.quant.contract import Scheme

METHOD = "bitsandbytes"
"""What a configuration calls this way to quantise."""

VERSION = 1
"""Version of what `inlay quantize` writes; a newer one is refused."""

_STATE = ".weight.quant_state.bitsandbytes__"

Quantized = dict[str, tuple[str, dict[str, safetensors.TensorEntry]]]
"""The quantised weights of a checkpoint: module path -> the scheme's name, and where each of its tensors lies."""


def tensor_name(path: str, key: str) -> str:
    """What the tensor `key` of the quantised weight at `path` is called in a checkpoint."""
    return f"{path}.weight{key}" if key == "" or key.startswith(".") else f"{path}.{key}"


def quantized_weights(checkpoint: Checkpoint) -> Quantized:
    """The quantised weights of a checkpoint; none where it has no such configuration.

    **Raises:**

    - `CompatibilityError`: it is quantised in another way, or by a newer Inlay.
    - `FormatError`: it says that it is quantised and has no such tensors.
    """
    config = checkpoint.config.get("quantization_config")
    if not config or checkpoint.packed:
        return checkpoint.packed
    method = config.get("quant_method") if isinstance(config, dict) else None
    where = checkpoint.directory / "config.json"
    brought = (pair for pair in quant.TABLE.others() if pair[1].config.get("quant_method") == method)
    schemes = list(quant.TABLE.own() if method == METHOD else brought)
    if not schemes:
        said = record(checkpoint.directory)
        quant.TABLE.check_installed(str(said.get("scheme")), said.get("needs"), where)
        found = f"{where}: quantization_config with quant_method {method!r}; {METHOD} can be"
        do = "the same model in bfloat16 or float32, and --quantize nf4"
        raise CompatibilityError(explain("weights quantised in this way can't be read", found=found, do=do))
    _check_types(checkpoint)
    check_version(checkpoint.directory)
    found = _found(checkpoint, schemes)
    if not found:
        raise FormatError(
            explain(
                "this checkpoint says that it is quantised, and has no quantised weight",
                found=str(where),
                do="remove quantization_config from it where the weights are plain, or fetch it again",
            )
        )
    tensors: Quantized = {path: (scheme, {}) for path, scheme in found.items()}
    for name, entry in checkpoint.tensors.items():
        path, key = _split(name, found)
        if path is not None:
            tensors[path][1][key] = entry
    return tensors


def plain_tensors(checkpoint: Checkpoint, quantized: Quantized) -> dict[str, safetensors.TensorEntry]:
    """The tensors of a checkpoint that belong to no quantised weight, by name."""
    taken = {tensor_name(path, key) for path, (_, entries) in quantized.items() for key in entries}
    return {name: entry for name, entry in checkpoint.tensors.items() if name not in taken}


def configuration(scheme: Scheme, kept: Sequence[str]) -> dict[str, Any]:
    """The quantization_config of a checkpoint whose linear layers are quantised, but for those called `kept`."""
    return {"quant_method": METHOD, **scheme.config, "llm_int8_skip_modules": list(kept)}


def record(directory: Path) -> dict[str, Any]:
    """What `inlay quantize` wrote down; nothing where it was another tool."""
    path = directory / records.RECORD
    made = json_files.read_json(path).get("quantized") if path.is_file() else None
    return made if isinstance(made, dict) else {}


def check_version(directory: Path) -> None:
    """Refuse what a newer Inlay has quantised.

    **Raises:**

    - `CompatibilityError`: it is of a version that is not known here.
    """
    version = record(directory).get("version", VERSION)
    if type(version) is not int or version > VERSION:
        raise CompatibilityError(
            explain(
                "this base was quantised by a newer Inlay",
                found=f"{directory / records.RECORD}: version {version!r}, known here up to {VERSION}",
                do="pip install --upgrade inlay",
            )
        )


def source(directory: Path) -> dict[str, Any]:
    """The name and the digests of what a base was quantised from, as far as they are known."""
    made = record(directory).get("source")
    return made if isinstance(made, dict) else {}


def _check_types(checkpoint: Checkpoint) -> None:
    """Refuse four-bit codes that no scheme reads."""
    known = {
        name for name, scheme in quant.TABLE.own() if f"{_STATE}{name}" in [f".weight{mark}" for mark in scheme.marks]
    }
    types = {name.partition(_STATE)[2] for name in checkpoint.tensors if _STATE in name}
    if types - known:
        found = f"{checkpoint.directory}: {', '.join(sorted(types - known))}; {', '.join(sorted(known))} can be"
        do = "the same model in bfloat16 or float32, and --quantize nf4"
        raise CompatibilityError(explain("weights in this code can't be read", found=found, do=do))


def _found(checkpoint: Checkpoint, schemes: Iterable[tuple[str, Scheme]]) -> dict[str, str]:
    """The modules whose weights these schemes have quantised -> the scheme's name."""
    ends = [(end, name) for name, scheme in schemes for end in scheme.marks]
    of = {tensor.removesuffix(end): name for end, name in ends for tensor in checkpoint.tensors if tensor.endswith(end)}
    return {path.removesuffix(".weight"): name for path, name in of.items()}


def _split(name: str, paths: dict[str, str]) -> tuple[str | None, str]:
    """The quantised module that a tensor belongs to, and its key there; (None, '') where it belongs to none."""
    path, found, key = name.rpartition(".weight")
    if found and path in paths and (key == "" or key.startswith(".")):
        return path, key
    path, _, key = name.rpartition(".")
    return (path, key) if path in paths and key != "bias" else (None, "")
