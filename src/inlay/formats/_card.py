"""The model card of an adapter: what the hub shows of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inlay import licenses, methods
from inlay.errors import printable
from inlay.formats.contract import AdapterFile
from inlay.io.checkpoint import hub_name

_PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "FEATURE_EXTRACTION": "sentence-similarity",
}
"""What a model card calls a task, by what adapter_config.json calls it; the rest is text-generation."""


def card(file: AdapterFile, engines: Sequence[str]) -> str:
    """The README.md of an adapter directory. `engines`: what else loads the adapter's files."""
    base_name, record = file.model.name, file.record
    name = methods.name_of(file.method)
    on_hub, folder = hub_name(base_name or ""), Path(base_name or "a model of your own").name
    base = on_hub or f"path/to/{folder}"
    task = record.get("task", {}).get("name")
    pipeline = _PIPELINES.get(file.model.task_type or "", "text-generation")
    # the hub takes any other word for a name of its own
    about_base = f"base_model: {json.dumps(on_hub)}\n" if on_hub else ""
    said = record.get("text", {})
    ends = " or ".join(f"`{token}`" for token in said.get("stop_tokens", ()))
    asked = "It goes on with a text as it is, without the chat template" if said.get("form") == "text" else "It answers"
    text = f"{asked}, and ends with {ends}.\n\n" if ends else ""
    command = f"predict {base} rows.jsonl" if task else f"chat {base}"
    licence = record.get("base", {}).get("license")
    if licence:  # the hub takes no other names than its own
        is_known = licence in licenses.KNOWN
        about_base += f"license: {licence}\n" if is_known else f"license: other\nlicense_name: {json.dumps(licence)}\n"
    loads = f"load in {', '.join(engines)}" if engines else "load in Inlay alone"
    library = "peft" if engines else "inlay"
    return (
        f"---\n{about_base}library_name: {library}\npipeline_tag: {pipeline}\n"
        f"tags:\n- {name}\n- inlay\n---\n\n"
        f"A {name} adapter for {on_hub or folder}.\n\n{text}"
        "```\n"
        f"inlay {command} --adapter .\n"
        "```\n\n"
        f"{_facts(file, on_hub or str(folder))}"
        f"`adapter_config.json` and `adapter_model.safetensors` {loads};\n"
        "`inlay.json` says which base it was trained on and how.\n"
    )


def _facts(file: AdapterFile, base: str) -> str:
    """What it was made of and how good it is, as a table; the command that makes it again."""
    record = file.record
    about_base, data, training = (record.get(part, {}) for part in ("base", "data", "training"))
    rows = {
        "base": [base, _weights(about_base), _licence(about_base)],
        "data": [data.get("source"), _rows(data), _licence(data)] if data else [],
        "method": [methods.name_of(file.method), file.method.describe()],
        "loss on held-out rows": _losses(training),
        "scores": [f"{name} {value:.4g}" for name, value in (training.get("scores") or {}).items()],
    }
    cells = {name: " · ".join(_cell(part) for part in parts if part) for name, parts in rows.items()}
    lines = [f"| {name} | {text} |\n" for name, text in cells.items() if text]
    command = training.get("command")
    made = f"Made by:\n\n```\n{_cell(command)}\n```\n\n" if command else ""
    return f"| | |\n|---|---|\n{''.join(lines)}\n{made}"


def _weights(about: dict[str, Any]) -> str:
    return f"weights sha256 {about['weights'][:16]}" if about.get("weights") else ""


def _licence(about: dict[str, Any]) -> str:
    return f"licence: {about.get('license') or 'not stated'}"


def _rows(data: dict[str, Any]) -> str:
    digest = f", sha256 {str(data['sha256'])[:16]}" if data.get("sha256") else ""
    return f"{data['rows']:,} rows{digest}" if isinstance(data.get("rows"), int) else ""


def _losses(training: dict[str, Any]) -> list[str]:
    before, after = training.get("eval_loss_before"), training.get("eval_loss")
    return [f"{before:.3f} → {after:.3f}"] if before is not None and after is not None else []


def _cell(text: Any) -> str:
    """A text that stays in its cell."""
    return " ".join(printable(str(text), in_one_line=True).split()).replace("|", "\\|")
