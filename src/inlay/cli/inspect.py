"""Show what an adapter is: method, size, base, how it was made."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inlay import methods
from inlay.cli import _screen
from inlay.cli._command import AdapterDirectory, Common
from inlay.cli._screen import count, size
from inlay.errors import ConfigError, explain
from inlay.formats import adapterhub, engines, peft
from inlay.io import json_files, output, records, safetensors
from inlay.io.checkpoint import open_config
from inlay.io.fingerprint import short


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(Common):
    """No model is needed."""

    adapter: AdapterDirectory
    """The adapter directory, or a name on the hub."""

    adapterhub: Path | None = None
    """Write it into this directory, which must not exist, for AdapterHub's library; of the methods, it knows bottleneck."""

    model: str | None = None
    """With --adapterhub: the base, a directory or a name on the hub, of which the configuration is read."""

    def __post_init__(self) -> None:
        if (self.adapterhub is None) != (self.model is None):
            found = f"--model {self.model}" if self.adapterhub is None else f"--adapterhub {self.adapterhub}"
            raise ConfigError(explain("one of two flags is missing", found=found, do="--adapterhub DIR --model BASE"))

    def run(self) -> int:
        """Print what the files say."""
        file = peft.read(self.adapter)
        method, params, base_name, record = file.method, file.params, file.base_name, file.record
        tensors = [tensor for module in params.values() for tensor in module.values()]
        num_weights = sum(tensor.numel() for tensor in tensors)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
        fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
        name = Path(self.adapter).resolve().name
        _screen.fact("", f"{name}: {methods.name_of(method)} {method.describe()} on {modules(params)}")
        _screen.fact("weights", f"{count(num_weights)}, {dtypes}, {size(num_bytes)}")
        if task := record.get("task", {}).get("name"):
            labels = record["task"].get("labels") or ()
            _screen.fact("task", task + (f" · {len(labels)} classes: {', '.join(labels)}" if labels else ""))
        _screen.fact("base", f"{_base(base_name, record.get('base', {}))}")
        _screen.fact("trained", _training(record))
        for label, line in _engines(self.adapter, file):
            _screen.fact(label, line)
        if self.adapterhub is not None and self.model is not None:
            _write(file, self.adapterhub, self.model)
            _screen.fact("wrote", f"{self.adapterhub}/  for AdapterHub's adapters")
        if self.json:
            _screen.emit(
                {
                    "method": methods.name_of(method),
                    "config": fields,
                    "trainable_parameters": num_weights,
                    "adapter_bytes": num_bytes,
                    "base": base_name,
                    "base_fingerprint": record.get("base", {}).get("weights"),
                    "record": record,
                }
            )
        return 0


def modules(paths: Iterable[str]) -> str:
    """The adapted modules in words: 'q k v, layers 0-27'."""
    paths = list(paths)
    names = dict.fromkeys(path.rpartition(".")[2].removesuffix("_proj") for path in paths)
    numbers = sorted({int(part) for path in paths for part in path.split(".") if part.isdigit()})
    layers = f", layers {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else ""
    gaps = " with gaps" if numbers and len(numbers) < numbers[-1] - numbers[0] + 1 else ""
    return " ".join(names) + layers + gaps


def _engines(source: str, file: peft.PeftAdapter) -> list[tuple[str, str]]:
    """What else reads these files, and what does not and why: labelled lines."""
    if file.model_type:
        return [("loads in", "inlay, adapters (AdapterHub)")]
    directory = peft.fetched(source)
    config = json_files.read_json(directory / peft.CONFIG)
    entries = safetensors.read_header(directory / peft.TENSORS).tensors
    shapes = {name: entry.shape for name, entry in entries.items()}
    found = engines.loading(config, shapes)
    if not found:  # a method of Inlay alone: no list of what others lack
        return [("loads in", "inlay")]
    reasons = [f"{engine} ({', '.join(names)})" for engine, names in engines.reasons(config, shapes).items()]
    return [("loads in", ", ".join(found)), *([("not in", "; ".join(reasons))] if reasons else [])]


def _write(file: peft.PeftAdapter, directory: Path, model: str) -> None:
    """Write an adapter of this base as AdapterHub's library has it."""
    base = open_config(model)
    with output.new_directory(directory) as partial:
        adapterhub.write(
            partial,
            file.method,
            file.params,
            name=directory.resolve().name,
            model_type=base.config.get("model_type"),
            model_class=str((base.config.get("architectures") or [""])[0]),
            base_name=base.reference,
        )
        records.write(partial, file.record)


def _base(name: str | None, base: dict[str, Any]) -> str:
    if not base:
        return f"{name or 'not named'} · no fingerprint: this adapter was not made by Inlay, and fits any base of its shape"
    return f"{base.get('name')} · weights {short(base.get('weights'))} · tokenizer {short(base.get('tokenizer'))}"


def _training(record: dict[str, Any]) -> str:
    """What the record says of the training; its keys may be missing."""
    training, data = record.get("training", {}), record.get("data", {})
    if not training:
        return "not recorded"
    source = f"on {data['source']} (sha256 {short(str(data.get('sha256', '')))})" if "source" in data else ""
    steps = f" · {training['steps']} steps" if "steps" in training else ""
    before, after = training.get("eval_loss_before"), training.get("eval_loss")
    losses = f" · held-out loss {before:.3f} → {after:.3f}" if before is not None and after is not None else ""
    interrupted = " · interrupted" if training.get("interrupted") else ""
    return f"{training.get('date', 'no date')} {source}".rstrip() + steps + losses + interrupted


Command = Inspect
