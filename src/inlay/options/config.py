"""Configuration files: YAML that gives each name once, and no more of it than anybody writes."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from inlay.errors import FormatError, UnknownNameError, explain

MAX_CONFIG_BYTES, MAX_CONFIG_VALUES = 200_000, 100_000
"""The largest configuration file, and the most values in one."""


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its keys as field names.

    **Raises:**

    - `UnknownNameError`: there is no such file.
    - `FormatError`: it is not YAML, not a mapping, or gives a name twice.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UnknownNameError(explain("there is no such configuration file", found=str(path), do="--config run.yaml"))
    from inlay.io import json_files

    content = json_files.read_bytes(path, MAX_CONFIG_BYTES)
    try:
        values = yaml.load(content, _named(str(path))) or {}
        _check_unfolded(values, path)
    except FormatError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number that is none
        found = f"{path}: {' '.join(str(error).split())}"
        raise FormatError(
            explain("this configuration is not YAML", found=found, do="one `name: value` in a line")
        ) from None
    if not isinstance(values, dict):
        raise FormatError(
            explain(
                "this configuration does not map names to values",
                found=f"{path}: a {type(values).__name__}",
                do="one `name: value` in a line",
            )
        )
    names = [str(key).replace("-", "_") for key in values]
    _check_once(names, str(path))
    return dict(zip(names, values.values(), strict=True))


class _Yaml(yaml.SafeLoader):
    """YAML whose names stand once in their mapping, and whose 1e-4 is a number, as YAML 1.2 has it and 1.1 has not."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _check_once([str(key.value) for key, _ in node.value], f"{self.name}:{node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        """Merge keys (`<<`), which multiply where mappings merge others that merge others."""
        size = 0
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(part, yaml.MappingNode):
                        self.flatten_mapping(part)
                        size += len(part.value)
                    if size > MAX_CONFIG_VALUES:
                        raise _unfolded(f"{self.name}:{node.start_mark.line + 1}")
        super().flatten_mapping(node)


def _named(name: str) -> Any:
    """A loader that calls what it reads so."""

    class Named(_Yaml):
        def __init__(self, stream: Any):
            super().__init__(stream)
            self.name = name

    return Named


_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _check_unfolded(value: Any, path: Path) -> None:
    """Refuse aliases of aliases, of which 500 bytes unfold to more values than any memory holds."""
    left, stack = MAX_CONFIG_VALUES, [value]
    while stack:
        item = stack.pop()
        left -= 1
        if left < 0:
            raise _unfolded(str(path))
        if isinstance(item, dict):
            stack += [*item, *item.values()]
        elif isinstance(item, list | tuple | set):
            stack += item


def _unfolded(where: str) -> FormatError:
    found = f"{where}: more than {MAX_CONFIG_VALUES:,} values once its aliases are written out"
    return FormatError(explain("this configuration unfolds without bounds", found=found, do="values without *aliases"))


def _check_once(names: Sequence[str], where: str) -> None:
    """Refuse a mapping that has a name twice: its last value would win in silence."""
    twice = next((name for name, number in Counter(names).items() if number > 1), None)
    if twice is not None:
        raise FormatError(
            explain("this configuration gives a name twice", found=f"{where}: {twice} twice", do=f"remove one {twice}")
        )
