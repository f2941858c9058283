"""What `--sweep NAME=VALUE,VALUE` says."""

import json
from collections.abc import Sequence
from typing import Any, get_type_hints

from inlay.errors import ConfigError, explain
from inlay.methods.contract import Layers, Method, Names
from inlay.options.types import layers


def swept(flags: Sequence[str], method: Method | str | None) -> dict[str, tuple[Any, ...]]:
    """What `--sweep NAME=VALUE,VALUE` flags say: each name with its values, `+` between the parts of one.

    **Raises:**

    - `ConfigError`: one names nothing, or something a second time.
    """
    found: dict[str, tuple[Any, ...]] = {}
    hints = get_type_hints(type(method)) if isinstance(method, Method) else {}
    for flag in flags:
        name, _, text = flag.partition("=")
        key = name.strip().removeprefix("--").replace("-", "_")
        if not text or not key or key in found:
            wrong = "a sweep names something, once, and its values"
            raise ConfigError(explain(wrong, found=f"--sweep {flag}", do="--sweep learning-rate=1e-4,1e-3"))
        found[key] = tuple(_value(part.strip(), hints.get(key)) for part in text.split(","))
    return found


def _value(text: str, hint: Any) -> Any:
    if hint == Names:
        return text.replace("+", ",")
    if hint == Layers | None:
        return layers(text.replace("+", ","))
    try:
        return json.loads(text)
    except ValueError:
        return None if text == "none" else text
