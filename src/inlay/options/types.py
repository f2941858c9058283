"""How types of ours are written on the command line."""

import contextlib
import dataclasses
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import tyro

from inlay import fields
from inlay.errors import ConfigError, explain

MAX_LAYER = 100_000
"""Layers are counted up to here."""


def one_of(names: Iterable[str], *, several: bool = False) -> Any:
    """What a flag is marked with that takes one of these names, or several with commas between: its help lists them."""
    return tyro.conf.arg(metavar="{" + ",".join(names) + "}" + (",..." if several else ""))


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
        may_lack = info.type in (str, tuple[str, ...]) or get_origin(info.type) is Mapping
        if info.type not in self._asked and may_lack:
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


def registry() -> tyro.constructors.ConstructorRegistry:
    rules, ours = tyro.constructors.ConstructorRegistry(), _Types()
    rules.struct_rule(ours.struct)
    rules.primitive_rule(ours.primitive)
    return rules


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
