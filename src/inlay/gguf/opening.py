"""A GGUF file as a checkpoint: its matrices stay where they are, and what is small and said otherwise is written once.

    the file                          matrices, mapped: packed blocks, or numbers
    $INLAY_CACHE/gguf/DIGEST/         the rest, as any model directory has it
      config.json                     what the file says of its model
      tokenizer.json ...              its tokenizer and chat template
      model.safetensors               norms and biases, and for some matrices the order of their rows

DIGEST is that of all the file says but its matrices, and of the version of this. So everything that reads a directory of
`transformers` reads that one, and no weight is copied.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay import licenses
from inlay.errors import CompatibilityError, UnknownNameError, explain, few
from inlay.gguf import config, names, packed, tokenizer
from inlay.gguf.header import GgufHeader, GgufTensor, read_header
from inlay.io import counts, json_files, output, safetensors
from inlay.io.checkpoint import MODEL_FILES, Checkpoint, identity, open_checkpoint, open_config
from inlay.io.fingerprint import cache_directory
from inlay.io.safetensors import TensorEntry

LAYOUT = 1
"""Version of what is written beside a file."""

SUFFIX = ".gguf"
"""The end of the names of these files."""

METHOD = "gguf"
"""What a configuration calls weights in the types of GGUF."""


_ENDS = ("eos", "eot", "eom")
"""Tokens that end answers: of a text, a turn, and a message."""


def open_base(source: str | Path) -> Checkpoint:
    """The model at a directory, or of a name on the hub, or in a GGUF file; a directory may hold one such file in its place.

    **Raises:**

    - `UnknownNameError`: there is no such file, directory or name.
    - `FormatError`: it holds no model, or a broken file.
    - `CompatibilityError`: it is a GGUF file whose model or types are not known here.
    """
    path = _file_of(source)
    return open_checkpoint(source) if path is None else _opened(path)


def open_outline(source: str | Path, *, whole: bool = False) -> Checkpoint:
    """The same without the weights of a directory or a name, which need not be there; `whole`: with all that lies beside them,
    such as the tokenizer."""
    path = _file_of(source)
    if path is not None:
        return _opened(path)
    return open_config(source, MODEL_FILES) if whole else open_config(source)


def stored_as(checkpoint: Checkpoint) -> dict[str, str]:
    """What a record says of a GGUF file's weights: their types; nothing of others."""
    kinds = sorted({kind for kind, _ in checkpoint.packed.values()})
    return {"stored": f"GGUF: {', '.join(kinds)}"} if kinds else {}


def license_of(checkpoint: Checkpoint) -> str | None:
    """The licence of a base: of a GGUF file what it says itself, else the card beside it; of others their card."""
    if not checkpoint.packed:
        return licenses.of_card(checkpoint.directory)
    path = Path(checkpoint.reference)
    said = read_header(path).metadata.get("general.license")
    return (licenses.in_one_line(said) if isinstance(said, str) else None) or licenses.of_card(path.parent)


def _file_of(source: str | Path) -> Path | None:
    """The GGUF file that is meant; None where it is something else."""
    path = Path(os.path.expanduser(source))
    if path.suffix.lower() == SUFFIX and not os.path.isdir(path):
        if not os.path.isfile(path):
            raise UnknownNameError(explain("there is no such file", found=str(path), do="check the path"))
        return path.resolve()
    if not os.path.isdir(path) or (path / "config.json").exists() or next(path.glob("*.safetensors"), None):
        return None
    found = sorted(child for child in path.iterdir() if child.suffix.lower() == SUFFIX)
    if len(found) > 1:
        wrong, do = "this directory holds several GGUF files", f"inlay COMMAND {found[0]}"
        raise UnknownNameError(explain(wrong, found=few([child.name for child in found]), do=do))
    return found[0].resolve() if found else None


def _opened(path: Path) -> Checkpoint:
    before = identity(path)
    header = read_header(path)
    if header.metadata.get("split.count", 1) != 1:
        wrong, do = "this is a part of a model", "llama-gguf-split --merge FIRST_PART WHOLE"
        raise CompatibilityError(explain(wrong, found=f"{path}: split.count", do=do))
    architecture = names.architecture(header.metadata.get("general.architecture"))
    matrices = {name: tensor for name, tensor in header.tensors.items() if len(tensor.shape) > 1}
    _check_types(path, header)
    directory = _beside(header, architecture, matrices)
    rest = safetensors.read_header(directory / "model.safetensors").tensors
    tensors = {architecture.transformers_name(name): tensor.entry for name, tensor in matrices.items()} | rest
    content = json_files.read_json(directory / "config.json")
    counts.check(path, content, tensors)
    files = {path: before, directory / "model.safetensors": identity(directory / "model.safetensors")}
    return Checkpoint(
        directory, path.stem, content, tensors, str(path), files, _packed(architecture, matrices, tensors, content)
    )


def _check_types(path: Path, header: GgufHeader) -> None:
    """Refuse types that are not read, and matrices that are none."""
    strange = [
        f"{path}: {name} is of type {tensor.kind}, shape {tensor.shape}"
        for name, tensor in header.tensors.items()
        if len(tensor.shape) > 2 or tensor.kind not in (packed.READ if len(tensor.shape) == 2 else packed.NUMBERS)
    ]
    if strange:
        wrong, do = "weights of this form can't be read", f"the file in one of {', '.join(packed.READ)}"
        raise CompatibilityError(explain(wrong, found=few(strange), do=do))


def _packed(
    architecture: names.Architecture,
    matrices: Mapping[str, GgufTensor],
    tensors: Mapping[str, TensorEntry],
    content: Mapping[str, Any],
) -> dict[str, tuple[str, dict[str, TensorEntry]]]:
    """The matrices by module: their type, and where their tensors lie; a tied head is the embedding once more."""
    found = {}
    for name, tensor in matrices.items():
        own = architecture.transformers_name(name)
        entries = {key: tensors[f"{own}{key}"] for key in ("", packed.ORDER) if f"{own}{key}" in tensors}
        found[own.removesuffix(".weight")] = (tensor.kind, entries)
    if content["tie_word_embeddings"]:
        found["lm_head"] = found["model.embed_tokens"]
    return found


def _beside(header: GgufHeader, architecture: names.Architecture, matrices: Mapping[str, GgufTensor]) -> Path:
    """The directory with the rest of a file's model, written where it is not there."""
    small = {
        name: safetensors.read_tensor(tensor.entry) for name, tensor in header.tensors.items() if name not in matrices
    }
    folder = cache_directory() / METHOD
    key = _digest(header, small)
    if not (folder / key).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with output.new_directory(folder / "new", name=lambda: key) as partial:
            _write(partial, header, architecture, small)
    return folder / key


def _digest(header: GgufHeader, small: Mapping[str, Tensor]) -> str:
    """The digest of what a file says but its matrices."""
    digest = hashlib.sha256(f"{LAYOUT}\n".encode())
    with header.path.open("rb") as file:
        digest.update(file.read(header.data_start))
    for tensor in small.values():
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _write(directory: Path, header: GgufHeader, architecture: names.Architecture, small: dict[str, Tensor]) -> None:
    content = config.configuration(header, architecture, small.pop(config.ROPE_FACTORS, None))
    heads = {names.HEADS: content["num_attention_heads"], names.KV_HEADS: content["num_key_value_heads"]}
    made: dict[str, Tensor] = {}
    for name, tensor in header.tensors.items():
        if name == config.ROPE_FACTORS:
            continue
        own, by = architecture.transformers_name(name), architecture.turned_by(name)
        order = None if by is None else names.rows(tensor.shape[0], heads[by])
        if name in small:
            made[own] = small[name].float() if order is None else small[name].float()[order]
        elif order is not None:
            made[f"{own}{packed.ORDER}"] = order.int()
    safetensors.write_tensors(directory / "model.safetensors", made)
    (directory / "config.json").write_text(json.dumps(content, indent=2), "utf-8")
    for file, text in tokenizer.files(header.metadata).items():
        (directory / file).write_text(text, "utf-8")
    ends = [header.metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _ENDS]
    ids = list(dict.fromkeys(token for token in ends if token is not None))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids} if ids else {}), "utf-8")
