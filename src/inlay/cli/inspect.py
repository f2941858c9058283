"""Show what an adapter is: method, size, base, how it was made."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inlay import formats, methods, screen
from inlay.export import engines
from inlay.formats.contract import AdapterFile
from inlay.io.fingerprint import short
from inlay.options.flags import AdapterDirectory, Common
from inlay.screen import count, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspect(Common):
    """No model is needed."""

    adapter: AdapterDirectory
    """The adapter: a directory, name@version in the store, or a name on the hub."""

    def run(self) -> int:
        """Print what the files say."""
        file = formats.read(self.adapter)
        method, params, base_name, record = file.method, file.params, file.model.name, file.record
        tensors = [tensor for module in params.values() for tensor in module.values()]
        num_weights = sum(tensor.numel() for tensor in tensors)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        dtypes = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
        fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
        name = Path(self.adapter).resolve().name
        screen.fact("", f"{name}: {methods.name_of(method)} {method.describe()} on {modules(params)}")
        screen.fact("weights", f"{count(num_weights)}, {dtypes}, {size(num_bytes)}")
        if task := record.get("task", {}).get("name"):
            labels = record["task"].get("labels") or ()
            screen.fact("task", task + (f" · {len(labels)} classes: {', '.join(labels)}" if labels else ""))
        screen.fact("base", f"{_base(base_name, record.get('base', {}))}")
        screen.fact("trained", _training(record))
        self._say_engines(file)
        if self.json:
            screen.emit(
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

    def _say_engines(self, file: AdapterFile) -> None:
        """Which programs load it as it is, which do not, and which it can be exported for."""
        readers = formats.readers(self.adapter)
        loading = [name for name, reasons in readers.items() if not reasons]
        screen.fact("loads in", ", ".join(loading or ["inlay"]))
        if loading and len(loading) < len(readers):  # of a method of Inlay alone nobody wants to know who lacks it
            reasons = [f"{name} ({', '.join(reasons)})" for name, reasons in readers.items() if reasons]
            screen.fact("not in", "; ".join(reasons))
        if exported := [name for name in engines.served(file) if name not in loading]:
            screen.fact("exports", f"for {', '.join(exported)}")


def modules(paths: Iterable[str]) -> str:
    """The adapted modules in words: 'q k v, layers 0-27'."""
    paths = list(paths)
    names = dict.fromkeys(path.rpartition(".")[2].removesuffix("_proj") for path in paths)
    numbers = sorted({int(part) for path in paths for part in path.split(".") if part.isdigit()})
    layers = f", layers {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else ""
    gaps = " with gaps" if numbers and len(numbers) < numbers[-1] - numbers[0] + 1 else ""
    return " ".join(names) + layers + gaps


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
