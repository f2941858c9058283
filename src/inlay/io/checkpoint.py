"""A model on disk: a directory that `transformers` knows, its weights in safetensors, or a name on the hub.

config.json                           the architecture
model.safetensors                     the weights, or
model.safetensors.index.json          which of several files holds which
tokenizer.json, tokenizer_config.json, chat_template.jinja ...
"""

import dataclasses
import glob
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inlay.core.product import DTYPES
from inlay.errors import FormatError, UnknownNameError, explain, few, nearest
from inlay.fields import MISFIT, fit, shown
from inlay.io import counts, json_files, safetensors

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SNAPSHOT = re.compile(r"[/\\]models--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)[/\\]snapshots[/\\][0-9a-f]{7,64}[/\\]?$")
_FORMS = re.compile(r"[-_.]?(bnb|unsloth|gptq|awq|gguf|hf|[48]bit|int[48]|fp8|nf4|bf16|fp16|float16|bfloat16)\b")
"""Parts of the names of models that say in which form the same weights are."""

INDEX = "model.safetensors.index.json"
"""The file that says which of several weight files holds which tensor."""

MAX_INDEX_BYTES = json_files.MAX_TOKENIZER_BYTES
"""Largest index that is read: a line for each tensor, of which some models have many thousands."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
"""Ends of the names of files that hold weights."""

_READ_WHOLE = ("*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt")
"""Names of files that `transformers` reads whole; other texts lie beside a model as notes."""

_SETTINGS = ("*config.json", "special_tokens_map.json", "*.jinja", "chat_template.json")
"""Those among them that are no tokenizer, vocabulary or index, and as short as settings are."""

_LEFT_BY_TRAINERS = ("trainer_state.json", "*_results.json")
"""Names of files that tell how a model was trained: nobody reads them to load it, and a long run has a long one."""

_SINGLE = "model.safetensors"
"""The one weight file of a model that is not spread over several."""

MODEL_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "README.md"]
"""What is fetched of a model before its weights: of these only the files that are read, see `_fetch_weights`."""

_LARGEST_BESIDE = 100_000_000
"""Files beside the weights that are longer, in bytes, are not copied: no tokenizer is as long."""

_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""Files without which the copy of a model can't be loaded."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model directory whose headers have been checked; no weight has been read."""

    directory: Path
    name: str
    """For people: a path's last part, or the name on the hub."""
    config: dict[str, Any]
    tensors: dict[str, safetensors.TensorEntry]
    """Every tensor of the checkpoint, in the order of its files."""
    reference: str = ""
    """By what others find it: its name on the hub, else its absolute path."""
    opened: dict[Path, tuple[Any, ...]] = dataclasses.field(default_factory=dict, compare=False)
    """What `identity` said of each weight file when its header was read."""
    packed: dict[str, tuple[str, dict[str, safetensors.TensorEntry]]] = dataclasses.field(default_factory=dict)
    """The weights of a GGUF file, by module: their type, and where their tensors lie; a tied one twice."""

    @property
    def files(self) -> list[Path]:
        """The safetensors files, each once."""
        return list(dict.fromkeys(entry.file for entry in self.tensors.values()))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most bytes; what the configuration says where they are quantised; float32 where that is none of ours."""
        if self.config.get("quantization_config"):
            return DTYPES.get(str(self.config.get("dtype", self.config.get("torch_dtype"))), torch.float32)
        bytes_of = Counter[str]()
        for entry in self.tensors.values():
            bytes_of[entry.dtype] += entry.stop - entry.start
        stored = safetensors.TORCH_DTYPES.get(bytes_of.most_common(1)[0][0] if bytes_of else "F32")
        return stored if stored is not None and stored in DTYPES.values() else torch.float32


def open_checkpoint(source: str | Path) -> Checkpoint:
    """The model at a directory, or of a name on the hub (from the local cache where it is there).

    **Raises:**

    - `UnknownNameError`: there is no such directory or name.
    - `FormatError`: the directory holds no model, only pickles, or a broken file.
    """
    model = open_config(source, MODEL_FILES)
    if not os.path.isdir(os.path.expanduser(source)):
        _fetch_weights(model)
    tensors: dict[str, safetensors.TensorEntry] = {}
    opened = {file: identity(file) for file in _weight_files(model.directory)}
    for file in opened:
        tensors |= safetensors.read_header(file).tensors
    counts.check(model.directory / "config.json", model.config, tensors)
    return dataclasses.replace(model, tensors=tensors, opened=opened)


def identity(file: Path) -> tuple[Any, ...]:
    """What the system says of a file: path, size, inode, device, times of change of content and inode. Another answer means
    that the content may be another."""
    stat = file.stat()
    return (str(file.resolve()), stat.st_size, stat.st_ino, stat.st_dev, stat.st_mtime_ns, stat.st_ctime_ns)


def open_config(source: str | Path, patterns: Sequence[str] = ("config.json",)) -> Checkpoint:
    """The same without its weights, which need not be there: what the architecture alone can tell."""
    directory = fetch(source, "model", list(patterns))
    if not (directory / "config.json").is_file():
        wrong, found = "this directory is not a model: it has no config.json", f"{directory} with {_listing(directory)}"
        do = "inlay inspect shows what an adapter is; a model directory is what save_pretrained wrote"
        raise FormatError(explain(wrong, found=found, do=do))
    _check_sizes(directory)
    config = json_files.read_json(directory / "config.json")
    _check_plain(directory, config)
    _check_kinds(directory / "config.json", config)
    counts.check(directory / "config.json", config, {})
    is_local = os.path.exists(os.path.expanduser(source))
    on_hub = hub_name(str(directory)) if is_local else str(source)
    return Checkpoint(directory, on_hub or directory.name, config, {}, on_hub or str(directory))


def hub_name(reference: str) -> str | None:
    """The name on the hub that `reference` is, or whose snapshot in the hub's cache it is; None where it is neither.

    What is a directory here is none, whatever its name looks like.
    """
    if cached := _SNAPSHOT.search(reference):
        return f"{cached['org']}/{cached['name']}"
    return reference if _HUB_NAME.fullmatch(reference) and not os.path.isdir(reference) else None


def name_others(one: str, other: str) -> bool:
    """Both are names on the hub, of models that are not the same: without the organisation and the form of the weights."""
    stems = [_FORMS.sub("", name.partition("/")[2].lower()) for name in map(hub_name, (one, other)) if name]
    return len(stems) == 2 and stems[0] != stems[1]


def _check_kinds(path: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration whose parts that are read here are of another kind."""
    kinds = {"architectures": tuple[str, ...] | None, "model_type": str | None, "id2label": Mapping[str, Any] | None}
    found = [f"{path}: {key}={shown(config[key])}" for key in kinds if fit(config.get(key), kinds[key]) is MISFIT]
    if found:
        wrong = "this configuration has values of another kind"
        raise FormatError(explain(wrong, found=found, do="fetch the model again"))


def _check_sizes(directory: Path) -> None:
    """Refuse a file that `transformers` would read whole, whatever its size, or wait for."""
    beside = [*directory.iterdir(), *directory.glob("additional_chat_templates/*")]
    problems = []
    read = (file for file in beside if any(file.match(name) for name in _READ_WHOLE))
    for file in (file for file in read if not any(file.match(name) for name in _LEFT_BY_TRAINERS)):
        limit = json_files.MAX_JSON_BYTES if any(file.match(name) for name in _SETTINGS) else MAX_INDEX_BYTES
        if file.is_file() and file.stat().st_size > limit:
            problems.append(f"{file}: {file.stat().st_size:,} bytes; at most {limit:,} are read")
        elif not file.is_file() and not file.is_dir():
            problems.append(f"{file}: no regular file")
    if problems:
        raise FormatError(explain("this model has files larger than any of their kind", found=few(problems)))


def _check_plain(directory: Path, config: dict[str, Any]) -> None:
    """Refuse what would make `transformers` compute with other weights than those that are checked and fingerprinted here."""
    found = [f"{directory / 'config.json'}: transformers_weights"] if config.get("transformers_weights") else []
    if (directory / "adapter_config.json").exists():
        found.append(str(directory / "adapter_config.json"))
    if found:
        wrong = "this directory says that a model's weights are changed as it is loaded"
        do = "a directory with the base's own files; an adapter lies in another one, for --adapter"
        raise FormatError(explain(wrong, found=found, do=do))


def fetch(source: str | Path, what: str, patterns: Iterable[str]) -> Path:
    """The local directory of `source`: itself, or the hub's copy of that name.

    **Arguments:**

    - `what`: the kind of thing, for messages: model or adapter.
    - `patterns`: the files that are fetched from the hub; looked at for that alone.

    **Raises:**

    - `UnknownNameError`: neither a directory nor a name that the hub, or its local cache, has.
    """
    path = Path(os.path.expanduser(source))  # os.path takes names as they come: too long, or of no user
    if os.path.isdir(path):
        return path.resolve()
    if os.path.exists(path) or not _HUB_NAME.fullmatch(str(source)):
        raise _missing(path, what)
    return _fetched(str(source), what, list(patterns))


def _fetched(name: str, what: str, patterns: list[str], revision: str | None = None) -> Path:
    """The hub's copy of `name` with the files of these patterns."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownNameError(
            explain(
                f"there is no such {what}",
                found=[f"{name} is not a directory here", f"as a name on the hub: {reason}"],
                do="check the path or the name, the connection, and `hf auth login` where it is private",
            )
        ) from None


def _fetch_weights(model: Checkpoint) -> None:
    """Fetch the weight files of a model of the hub: those that are read, and no other forms of them.

    Repositories hold the same weights several times, for other programs and in other precisions. What is read is the single
    file where there is one, else those that the index names.
    """
    name, revision = model.reference, model.directory.name
    index, single = model.directory / INDEX, model.directory / _SINGLE
    if not single.is_file():
        _fetched(name, "model", [_SINGLE], revision)
    if not single.is_file() and index.is_file():
        weight_map = json_files.read_json(index, MAX_INDEX_BYTES).get("weight_map")
        names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
        if any(not (model.directory / file).is_file() for file in names):
            _fetched(name, "model", [glob.escape(file) for file in names], revision)


def beside(directory: Path) -> tuple[list[Path], list[str]]:
    """The files beside the weights that a copy of the model has too, in folders as well; and in words, what is left out.

    Left out are links that lead out of the model: a download can bring one to a file of yours, and a copy is there to be
    shared. In the hub's cache all files are links, to the place where it keeps the contents of that repository. What is longer
    than `_LARGEST_BESIDE` is nothing that a model is loaded with.

    **Raises:**

    - `FormatError`: a file that loading needs is such a link.
    """
    own = [directory.resolve()]
    if hub_name(str(directory.resolve())):
        own.append((directory.resolve().parents[1] / "blobs").resolve())
    kept, left_out = [], []
    for path in _not_weights(directory):
        name = path.relative_to(directory)
        if path.is_dir() or not any(path.resolve().is_relative_to(folder) for folder in own):
            left_out.append(f"{name}, a link out of the model, to {path.resolve()}")
        elif path.stat().st_size > _LARGEST_BESIDE:
            left_out.append(f"{name}, of {path.stat().st_size / 1e6:,.0f} MB")
        else:
            kept.append(name)
    if needed := [words for words in left_out if words.partition(",")[0] in _NEEDED]:
        raise FormatError(
            explain(
                "a file of this model lies elsewhere, and is not copied",
                found=[f"{directory}: {words}" for words in needed],
                do=f"cp -rL {directory} COPY follows its links; then use that",
            )
        )
    return kept, left_out


def _not_weights(directory: Path) -> Iterator[Path]:
    """The files of a model but its weights, in folders as well, and its links to folders; nothing hidden."""
    for folder, folders, names in os.walk(directory):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
        for path in (Path(folder) / name for name in sorted([*names, *links]) if not name.startswith(".")):
            if path.suffix not in WEIGHTS and (path.is_file() or path.name in links):
                yield path


def copy_rest(source: Path, target: Path) -> None:
    """Copy what `beside` finds: configuration, tokenizer, templates, licence; the card under another name. What is left out is
    said."""
    kept, left_out = beside(source)
    for name in kept:
        into = target / ("README.base.md" if str(name) == "README.md" else name)
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, into)
    if left_out:
        warnings.warn(f"not copied: {'; '.join(few(left_out))}", stacklevel=2)


def beside_bytes(directory: Path) -> int:
    """What `copy_rest` writes."""
    return sum((directory / name).stat().st_size for name in beside(directory)[0])


def _missing(path: Path, what: str) -> UnknownNameError:
    parent = path.parent if os.path.isdir(path.parent) else Path()
    near = nearest(path.name, [child.name for child in parent.iterdir() if child.is_dir()])
    return UnknownNameError(
        explain(
            f"there is no such {what}",
            found=f"{path} is a file" if os.path.exists(path) else f"{path} does not exist",
            do=str(path.parent / near) if near else "a directory, or a name on the hub such as Qwen/Qwen3-0.6B",
        )
    )


def _weight_files(directory: Path) -> list[Path]:
    index, single = directory / INDEX, directory / _SINGLE
    if single.is_file():  # where both are, it is the one that transformers loads
        return [single]
    if not index.is_file():
        raise safetensors.refuse_pickles(directory, _SINGLE)
    weight_map = json_files.read_json(index, MAX_INDEX_BYTES).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    outside = [name for name in names if Path(name).name != name]
    missing = [name for name in names if name not in outside and not os.path.isfile(directory / name)]
    if not names or outside or missing:
        found = [f"{index}: {name}" for name in (outside + missing)[:10]] or f"{index}: no weight_map"
        wrong = "the index of this model names files that are not there"
        raise FormatError(explain(wrong, found=found, do="fetch the model again"))
    return [directory / name for name in names]


def _listing(directory: Path) -> str:
    names = sorted(child.name for child in directory.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "no file in it"
