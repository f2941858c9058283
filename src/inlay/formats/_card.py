"""The model card of an adapter: what the hub shows of it."""

import json
from collections.abc import Sequence
from pathlib import Path

from inlay import methods
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
    loads = f"load in {', '.join(engines)}" if engines else "load in Inlay alone"
    library = "peft" if engines else "inlay"
    return (
        f"---\n{about_base}library_name: {library}\npipeline_tag: {pipeline}\n"
        f"tags:\n- {name}\n- inlay\n---\n\n"
        f"A {name} adapter for {on_hub or folder}.\n\n{text}"
        "```\n"
        f"inlay {command} --adapter .\n"
        "```\n\n"
        f"`adapter_config.json` and `adapter_model.safetensors` {loads};\n"
        "`inlay.json` says which base it was trained on and how.\n"
    )
