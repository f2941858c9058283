"""Write what the commands and methods are, for help and for command lines: src/inlay/options/flags.json.

python scripts/make_flags.py
"""

import importlib
import json

from inlay import cli, methods
from inlay.options import describe, flag


def found() -> str:
    """The content of the file, as the classes are; a flag in each line."""
    commands = {name: describe.command(importlib.import_module(f"inlay.cli.{name}")) for name in cli.commands()}
    ours = {name: describe.method(cls) for name, cls in methods.TABLE.own()}
    return _lines({"commands": _as_json(commands), "methods": _as_json(ours)}) + "\n"


def _as_json(described: dict[str, flag.Described]) -> dict[str, object]:
    return {name: each.as_json() for name, each in described.items()}


def _lines(value: object, key: str = "") -> str:
    """JSON whose objects are spread over lines, but for flags."""
    if isinstance(value, dict) and "name" not in value:
        parts = [f"{json.dumps(name)}: {_lines(part, name)}" for name, part in value.items()]
        return "{\n" + ",\n".join(parts) + "\n}"
    if key == "flags" and isinstance(value, list):
        return "[\n" + ",\n".join(map(_lines, value)) + "\n]"
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    flag.FILE.write_text(found(), "utf-8")
