"""The model card of an adapter: what the hub shows of it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inlay import methods
from inlay.methods._contract import Method

_PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "FEATURE_EXTRACTION": "sentence-similarity",
}
"""What a model card calls a task, by what adapter_config.json calls it; the rest is text-generation."""


def card(
    method: Method, base_name: str, task_type: str | None, record: Mapping[str, Any], engines: Sequence[str]
) -> str:
    """The README.md of an adapter directory.

    **Arguments:** those of `inlay.io.peft.write`, and

    - `engines`: what else loads the adapter's files.
    """
    name = methods.name_of(method)
    base = base_name if "/" in base_name else f"path/to/{base_name}"
    task = record.get("task", {}).get("name")
    pipeline = _PIPELINES.get(task_type or "", "text-generation")
    said = record.get("text", {})
    ends = " or ".join(f"`{token}`" for token in said.get("stop_tokens", ()))
    asked = "It goes on with a text as it is, without the chat template" if said.get("form") == "text" else "It answers"
    text = f"{asked}, and ends with {ends}.\n\n" if ends else ""
    command = f"predict {base} rows.jsonl" if task else f"chat {base}"
    loads = f"load in {', '.join(engines)}" if engines else "load in Inlay alone"
    library = "peft" if engines else "inlay"
    return (
        f"---\nbase_model: {json.dumps(base_name)}\nlibrary_name: {library}\npipeline_tag: {pipeline}\n"
        f"tags:\n- {name}\n- inlay\n---\n\n"
        f"A {name} adapter for {base_name}.\n\n{text}"
        "```\n"
        f"inlay {command} --adapter .\n"
        "```\n\n"
        f"`adapter_config.json` and `adapter_model.safetensors` {loads};\n"
        "`inlay.json` says which base it was trained on and how.\n"
    )
