"""What the commands share: common flags, and dataclasses as command lines.

Fields of nested dataclasses (a run's settings, a method's configuration) become flags without a prefix, so that
`inlay.methods.lora.Lora.r` is `--r`. A YAML file given with `--config` fills the same fields under the same names.
"""

import contextlib
import dataclasses
import importlib
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from inlay import fields, quant
from inlay.cli import _peers, _screen
from inlay.cli._choices import one_of
from inlay.cli._config import read_config
from inlay.errors import ConfigError, explain, few, nearest

if TYPE_CHECKING:
    from inlay.base.base import Base
    from inlay.cli._tasks import Chosen

MAX_LAYER = 100_000
"""Layers are counted up to here."""

_CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Flags that every command has."""

    json: bool = False
    """Print one JSON object as the last line of stdout."""

    debug: bool = False
    """Show the traceback of an error."""


def run(command: str, arguments: Sequence[str]) -> int:
    """Parse the arguments of one command and run it."""
    module = importlib.import_module(f"inlay.cli.{command}")
    cls = module.command(arguments) if hasattr(module, "command") else module.Command
    return parse(cls, command, arguments).run()


def parse(cls: Any, command: str, arguments: Sequence[str]) -> Any:
    """An instance of the dataclass `cls` from a command line; wrong usage prints help and exits with status 2."""
    config = value_of("--config", arguments)
    filled = {"default": from_mapping(cls, read_config(Path(config)))} if config else {}
    with _types():
        return tyro.cli(
            cls,
            prog=f"inlay {command}",
            description=importlib.import_module(f"inlay.cli.{command}").__doc__,
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
        near = _peers.ours(unknown) or nearest(unknown, _names(cls))
        raise ConfigError(explain(wrong, found=found, do=near or "see --help"))
    return result


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


class _Types:
    """How types of ours are written on the command line."""

    def __init__(self) -> None:
        self._asked: list[Any] = []
        """The types whose own rule is looked for."""

    @contextlib.contextmanager
    def _asking(self, kind: Any) -> Iterator[None]:
        self._asked.append(kind)
        try:
            yield
        finally:
            self._asked.pop()

    def struct(self, info: tyro.constructors.StructTypeInfo) -> Any:
        """A method whose help lists the initialisers that exist."""
        from inlay import initializers
        from inlay.methods.contract import Method

        if info.type in self._asked or not (isinstance(info.type, type) and issubclass(info.type, Method)):
            return None
        with self._asking(info.type):
            found: Any = tyro.constructors.ConstructorRegistry.get_struct_spec(info)
        chosen = Annotated[str, one_of([initializers.UNIFORM, *initializers.names()])]
        listed = [f if f.name != "initializer" else dataclasses.replace(f, type=chosen) for f in found.fields]
        return dataclasses.replace(found, fields=tuple(listed))

    def primitive(self, info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        """Paths, names, numbers of layers; and values that need not be given."""
        from inlay.methods.contract import Layers, Names

        own: dict[Any, Any] = {
            Path: _spec("PATH", lambda text: Path(os.path.expanduser(text)), str),
            Names: _spec("NAMES", str, lambda value: value if isinstance(value, str) and value else _commas(value)),
            Layers: (numbers := _spec("LAYERS", layers, lambda value: "all" if value is None else _commas(value))),
            Layers | None: numbers,
        }
        if found := next((spec for kind, spec in own.items() if info.type == kind), None):
            return found
        if info.type not in self._asked and (info.type is str or get_origin(info.type) is Mapping):
            return self._optional(info.type, info, "none", lambda value: not value)
        kinds = get_args(info.type) if get_origin(info.type) in (Union, types.UnionType) else ()
        if len(kinds) == 2 and type(None) in kinds:
            kind = next(kind for kind in kinds if kind is not type(None))
            return self._optional(kind, info, "unset", lambda value: value is None)
        return None

    def _optional(
        self, kind: Any, info: tyro.constructors.PrimitiveTypeInfo, word: str, is_absent: Callable[[Any], bool]
    ) -> Any:
        """A value that need not be given, written as one of `kind`; help calls its absence `word`. What then happens is in the
        words beside the flag."""
        with self._asking(kind):
            made = tyro.constructors.PrimitiveTypeInfo.make(kind, set(info.markers))
            spec: Any = tyro.constructors.ConstructorRegistry.get_primitive_spec(made)
        if not isinstance(spec, tyro.constructors.PrimitiveConstructorSpec):  # it has no form on the command line
            return None
        return dataclasses.replace(
            spec,
            is_instance=lambda value: is_absent(value) or spec.is_instance(value),
            str_from_instance=lambda value: [word] if is_absent(value) else spec.str_from_instance(value),
        )


def _types() -> tyro.constructors.ConstructorRegistry:
    registry, ours = tyro.constructors.ConstructorRegistry(), _Types()
    registry.struct_rule(ours.struct)
    registry.primitive_rule(ours.primitive)
    return registry


def _commas(values: Sequence[Any]) -> str:
    return ",".join(map(str, values)) or "none"


def _spec(metavar: str, read: Any, write: Any) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda arguments: read(arguments[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


def layers(text: str) -> tuple[int, ...] | None:
    """'0-5,11' as layer numbers; 'all' as None."""
    if text == "all":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        valid = all(number.isdecimal() and len(number) < 10 for number in (first, last or first))
        if not valid or int(last or first) > MAX_LAYER or len(numbers) > MAX_LAYER:
            raise ConfigError(
                explain("this names no layers", found=fields.shown(text), do="--layers-to-transform 0-5,11")
            )
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


Verbose = Annotated[bool, tyro.conf.arg(aliases=["-v"])]
"""A switch that is `-v` too."""

Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Data = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
AdapterDirectory = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnBase(Common):
    """Flags of the commands that compute with a base."""

    model: Model
    """The base: a directory, or a name on the hub."""

    quantize: Annotated[str | None, one_of(quant.names())] = None
    """Compute over the base's linear layers quantised so; made once, and kept in Inlay's cache for the next time."""

    dtype: Annotated[str | None, one_of(("bfloat16", "float16", "float32"))] = None
    """What the base computes in; by default bfloat16 where the processor multiplies it."""

    device: str = "auto"
    """Where to compute: cpu or cuda; auto takes a CUDA device if there is one, else the CPU."""

    device_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """Memory of the device that a quantised base may take, such as 24GB; layers beyond that travel there as they are used."""

    def load(self, chosen: "Chosen | None" = None) -> "Base":
        """The base that the flags name, for next tokens unless for something else."""
        from inlay.base.load import load

        memory = None if self.device_memory is None else num_bytes("--device-memory", self.device_memory)
        how: dict[str, Any] = dict(dtype=self.dtype, device=self.device, device_memory=memory)
        how |= {} if chosen is None else {"task": chosen.spec, "labels": chosen.labels}
        source = self.model if chosen is None else chosen.checkpoint
        if self.quantize is not None:
            with _screen.bar("quantizing", _screen.size) as update:
                base = load(source, quantize=self.quantize, progress=update, **how)
        else:
            base = load(source, **how)
        if (device := base.model.device).type != "cpu":
            _screen.say("device", f"{device}{' (--device cpu: the processor)' if self.device == 'auto' else ''}")
        return base


def num_bytes(flag: str, text: str) -> int:
    """A size such as 24GB or 500MB in bytes.

    **Raises:**

    - `ConfigError`: it is no number with a unit.
    """
    match = re.fullmatch(r"(\d+\.?\d*)\s*([kMGT]?B)", text)
    if not match:
        raise ConfigError(explain("this is no size", found=f"{flag} {text}", do=f"{flag} 24GB"))
    return int(float(match[1]) * 1000 ** ("B", "kB", "MB", "GB", "TB").index(match[2]))


def repeated(help_type: Any) -> Any:
    """A flag that may be given several times."""
    return Annotated[tuple[help_type, ...], tyro.conf.UseAppendAction]
