"""Dataclasses as command lines.

Fields of nested dataclasses (a run's settings, a method's configuration) become flags without a prefix, so that
`inlay.methods.lora.Lora.r` is `--r`. A YAML file given with `--config` fills the same fields under the same names.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import tyro

from inlay import fields
from inlay.errors import ConfigError, explain, few, nearest
from inlay.options import peers
from inlay.options.config import read_config
from inlay.options.types import layers, registry

_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands)


def parse(cls: Any, command: str, arguments: Sequence[str], about: str | None = None) -> Any:
    """An instance of the dataclass `cls` from the arguments of a command; wrong usage prints help and exits with status 2.

    **Arguments:**

    - `about`: what the help says of the command.
    """
    config = value_of("--config", arguments)
    filled = {"default": from_mapping(cls, read_config(Path(config)))} if config else {}
    with registry():
        return tyro.cli(
            cls,
            prog=f"inlay {command}",
            description=about,
            args=list(arguments),
            config=_CONFIG,
            **filled,
        )


FLAGS = {"from_adapter": "from"}
"""What the flags and keys of fields are called whose names would be words of Python's."""

METHOD_FIELD = "adapter"
"""The field of a command with a method that holds the method's configuration."""


def with_method(cls: Any, values: dict[str, Any]) -> Any:
    """The command `cls` with the flags of the method that its `given` values name, or of the adapter to go on from.

    **Raises:**

    - `ConfigError`: both are named, and the adapter is of another method.
    """
    from inlay import methods

    name, source = values.get("method"), values.get("from")
    if source is None:
        start: Any = methods.find(fields.shown(name or "lora").strip("'"))
        default = dataclasses.field(default_factory=start)
    else:
        from inlay import formats
        from inlay.training import going_on

        has = formats.outline(str(source)).method
        going_on.check_method(str(source), has, None if name is None else str(name))
        start, default = type(has), dataclasses.field(default=has)
    return dataclasses.make_dataclass(
        f"{cls.__name__}WithMethod", [(METHOD_FIELD, start, default)], bases=(cls,), frozen=True, kw_only=True
    )


def given(arguments: Sequence[str]) -> dict[str, Any]:
    """What decides which flags there are: the values of a few of them, unparsed, or of the configuration file."""
    config = value_of("--config", arguments)
    values = read_config(Path(config)) if config else {}
    flags = {name: value_of(f"--{name.replace('_', '-')}", arguments) for name in ("method", "from", "show_tokens")}
    return values | {name: value for name, value in flags.items() if value is not None}


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag in unparsed arguments, or None."""
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def from_mapping(cls: Any, values: dict[str, Any]) -> Any:
    """An instance of `cls` whose fields, nested ones included, come from `values`; what is missing stays open.

    **Raises:**

    - `ConfigError`: a name is no field, the nearest is shown; or a value is not of its field's type.
    """
    left = dict(values)
    result = _filled(cls, left)
    if left:
        unknown = next(iter(left))
        wrong, found = "the configuration has a name that is no setting", ", ".join(few(list(left)))
        near = peers.ours(unknown) or nearest(unknown, _names(cls))
        raise ConfigError(explain(wrong, found=found, do=near or "see --help"))
    return result


def to_mapping(command: Any) -> dict[str, Any]:
    """The values of a command and of what it nests, by the names that `from_mapping` takes, as JSON can hold them."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if dataclasses.is_dataclass(value):
            values |= to_mapping(value)
        else:
            values[FLAGS.get(field.name, field.name)] = str(value) if isinstance(value, Path) else value
    return values


def _filled(cls: Any, left: dict[str, Any], start: Any = None) -> Any:
    """An instance of `cls`, or `start` with other values."""
    from inlay.methods.contract import Layers

    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], FLAGS.get(field.name, field.name)
        if dataclasses.is_dataclass(hint):
            has_default = dataclasses.is_dataclass(field.default)
            others[field.name] = _filled(hint, left, field.default if has_default else None)
        elif name in left:
            value = left.pop(name)
            if isinstance(value, str) and hint == Layers | None:
                value = layers(value)
            elif isinstance(value, str) and hint in (Path, Path | None):
                value = os.path.expanduser(value)
            given[field.name] = value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            others[field.name] = tyro.MISSING
    values = fields.fitted(cls, given) | others
    return cls(**values) if start is None else dataclasses.replace(start, **values)


def _names(cls: Any) -> list[str]:
    hints = get_type_hints(cls)
    names: list[str] = []
    for field in dataclasses.fields(cls):
        nested = hints[field.name]
        names += _names(nested) if dataclasses.is_dataclass(nested) else [FLAGS.get(field.name, field.name)]
    return names
