"""A command line and its configuration file as the dataclass of a command.

Fields of nested dataclasses (a run's settings, a method's configuration) become flags without a prefix, so that
`inlay.methods.lora.Lora.r` is `--r`. A YAML file given with `--config` fills the same fields under the same names. To read a
command line, and to write help, nothing is imported that computes; to make the dataclass, all that the command needs is.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from inlay.errors import ConfigError, UsageError, explain, few, nearest
from inlay.options import flag, help, peers, usage
from inlay.options.flag import Described, Flag

FLAGS = {"from_adapter": "from", "engine": "for"}
"""What the flags and keys of fields are called whose names would be words of Python's."""

METHOD_FIELD = "adapter"
"""The field of a command with a method that holds the method's configuration."""

DEFAULT_METHOD = "lora"


class Asked(NamedTuple):
    """What is asked of a command."""

    verb: str
    """What it is to do, where it has verbs."""
    values: dict[str, Any]
    """By the names of the fields that they fill; of a configuration file first, of flags over them."""
    file: dict[str, Any]
    """Those of the configuration file alone."""


def ask(command: str, described: Described, arguments: Sequence[str]) -> Asked | None:
    """What the arguments ask of a command; None where they ask for its help, which is printed.

    **Raises:**

    - `UsageError`: they can't be read so; see `usage.read`. Of a configuration file, and of an adapter to go on from, as these
      are read.
    """
    left = list(arguments)
    verb = _verb(command, described, left)
    asks_help = any(argument in ("-h", "--help") for argument in _before_end(left))
    if verb:
        command, described = f"{command} {verb}", dict(described.verbs)[verb]
    if described.verbs:
        print(help.text(command, described))
        return None
    config = {} if asks_help else _config(left)
    method = _method(described, left, config)
    if asks_help:
        print(help.text(command, described, method and (_method_name(left, config), method)))
        return None
    flags = [*described.flags, *(method.flags if method else ())]
    whole = help.usage(command, described)
    instead = lambda name: _instead(name, command, flags, whole)  # noqa: E731
    return Asked(verb, config | usage.read(flags, left, config, instead, whole), config)


def _verb(command: str, described: Described, left: list[str]) -> str:
    """The verb that the arguments begin with, which is taken off them; empty where there is none, or help is asked for."""
    verbs = [name for name, _ in described.verbs]
    if not verbs:
        return ""
    if left[:1] and left[0] in verbs:
        return left.pop(0)
    if left[:1] in (["-h"], ["--help"]):
        return ""
    if left and not left[0].startswith("-"):
        near = nearest(left[0], verbs)
        found = f"{left[0]!r}; it takes {', '.join(verbs)}"
        raise UsageError(
            explain(f"inlay {command} does no such thing", found=found, do=f"inlay {command} {near or '--help'}")
        )
    if not described.verb:
        do = f"inlay {command} --help"
        raise UsageError(explain(f"inlay {command} is to do one of these", found=", ".join(verbs), do=do))
    return described.verb


def _before_end(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _config(arguments: Sequence[str]) -> dict[str, Any]:
    """The values of the configuration file that the arguments name."""
    path = value_of("--config", arguments)
    if path is None:
        return {}
    from inlay.options.config import read_config

    return read_config(Path(path))


def _method_name(arguments: Sequence[str], config: dict[str, Any]) -> str:
    return str(value_of("--method", arguments) or config.get("method") or DEFAULT_METHOD)


def _method(described: Described, arguments: Sequence[str], config: dict[str, Any]) -> Described | None:
    """The flags of the method that a command is asked for, or of the adapter to go on from."""
    if "method" not in (own.name for own in described.flags):
        return None
    source = value_of("--from", arguments) or config.get("from")
    if source is not None:
        from inlay import formats
        from inlay.options import describe

        has = formats.outline(str(source)).method
        return describe.method(type(has), has)
    name = _method_name(arguments, config)
    if (found := flag.stored("methods", name)) is not None:
        return found
    if name not in usage.brought("inlay.methods"):
        return flag.stored("methods", DEFAULT_METHOD)  # the name is refused, as that of no method
    from inlay import methods
    from inlay.options import describe

    return describe.method(methods.find(name))


def _instead(name: str, command: str, flags: Sequence[Flag], whole: str) -> str:
    """What to type in place of a flag that a command has not."""
    here = [own.typed for own in flags if not own.is_positional]
    theirs = peers.ours(name)
    without = [own.name for own in flags if own.is_positional]
    if (argument := peers.argument(name)) in without:
        return f"{argument.upper()} without a flag: {whole}"
    meant = [name.replace("_", "-")] if theirs is None else re.findall(r"--[a-z-]+", theirs)
    if theirs is not None and set(meant) <= set(here):
        return theirs
    if "method" in (own.name for own in flags) and (method := _method_with(meant[0])):
        return f"--method {method} has {meant[0]}"
    if commands := [name for name in flag.names("commands") if meant[0] in _typed(name)]:
        return f"{meant[0]} is of inlay {', '.join(commands[:4])}"
    near = nearest(name.replace("_", "-"), here)
    takes = next((own.takes() for own in flags if own.typed == near), "")
    return f"{near} {takes}".rstrip() if near else f"inlay {command} --help"


def _method_with(typed: str) -> str | None:
    """The first method that has a flag, the usual one before others."""
    known = ((name, flag.stored("methods", name)) for name in (DEFAULT_METHOD, *flag.names("methods")))
    return next((name for name, found in known if found and typed in [own.typed for own in found.flags]), None)


def _typed(command: str) -> list[str]:
    """The flags of a command."""
    found = flag.stored("commands", command)
    return [] if found is None else [own.typed for own in found.flags if not own.is_positional]


def made(cls: Any, asked: Asked) -> Any:
    """The command `cls` as it is asked for.

    **Raises:**

    - `UsageError`: a value is out of its range, or does not go with another; `ConfigError` where it may be that of a file.
    """
    if asked.file:  # what is wrong in it is said, though a flag wins over it
        chosen = {name: asked.values[name] for name in ("method", "from") if name in asked.values}
        build(cls, asked.values | asked.file | chosen)
    try:
        return build(cls, asked.values)
    except ConfigError as error:
        if asked.file or "from" in asked.values:
            raise
        raise UsageError(str(error)) from error


def build(cls: Any, values: dict[str, Any]) -> Any:
    """The command `cls` with its values, and with the method that they name where it has one.

    **Raises:**

    - `ConfigError`: a value is out of its range, or does not go with another.
    """
    if "method" in (field.name for field in dataclasses.fields(cls)):
        cls = with_method(cls, values)
    return from_mapping(cls, values)


def with_method(cls: Any, values: dict[str, Any]) -> Any:
    """The command `cls` with the flags of the method that its `given` values name, or of the adapter to go on from.

    **Raises:**

    - `ConfigError`: both are named, and the adapter is of another method.
    """
    from inlay import fields, methods

    name, source = values.get("method"), values.get("from")
    if source is None:
        start: Any = methods.find(fields.shown(name or DEFAULT_METHOD).strip("'"))
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
        near = peers.ours(unknown) or nearest(peers.argument(unknown), _names(cls)) or nearest(unknown, _names(cls))
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
    from inlay import fields
    from inlay.methods.contract import Layers
    from inlay.options.types import layers

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
            if isinstance(value, str) and hint in (Layers, Layers | None):
                value = layers(value)
            elif isinstance(value, str) and hint in (Path, Path | None):
                value = os.path.expanduser(value)
            given[field.name] = value
    values = fields.fitted(cls, given) | others
    return cls(**values) if start is None else dataclasses.replace(start, **values)


def _names(cls: Any) -> list[str]:
    hints = get_type_hints(cls)
    names: list[str] = []
    for field in dataclasses.fields(cls):
        nested = hints[field.name]
        names += _names(nested) if dataclasses.is_dataclass(nested) else [FLAGS.get(field.name, field.name)]
    return names
