"""Dataclasses as flags: the fields of a command or a method, with the docstring under each as its help."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from inlay import plugins
from inlay.options import flag
from inlay.options.flag import Described, Flag
from inlay.options.types import Mark

_PLAIN = {
    bool: (flag.SWITCH, ""),
    int: (flag.WHOLE, "INT"),
    float: (flag.NUMBER, "NUMBER"),
    str: (flag.TEXT, ""),
    Path: (flag.PATH, "PATH"),
}
"""Type -> its kind, and what stands for a value in help; for text, the last word of the flag's name."""


def command(module: Any) -> Described:
    """A command, by the module that defines it."""
    about = module.__doc__.strip()
    if not hasattr(module, "VERBS"):
        return Described(f"{about}\n\n{_first(module.Command)}", tuple(_flags(module.Command)))
    verbs = [(name, Described(_first(cls), tuple(_flags(cls)))) for name, cls in module.VERBS.items()]
    return Described(about, verbs=tuple(verbs), verb=getattr(module, "VERB", ""))


def method(cls: Any, start: Any = None) -> Described:
    """The settings of a method, whose defaults are those of `start` where that is given."""
    return Described(_first(cls), tuple(_flags(cls, start)))


def _first(cls: Any) -> str:
    """The first paragraph of a class's docstring."""
    return str(cls.__doc__).strip().partition("\n\n")[0]


def _flags(cls: Any, start: Any = None) -> Iterator[Flag]:
    """The fields of a dataclass, those of what it nests among them."""
    hints = get_type_hints(cls, include_extras=True)
    said = {name: text for above in reversed(cls.__mro__[:-1]) for name, text in _docstrings(above).items()}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _flags(hint)
            continue
        is_made = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if is_made else field.default  # type: ignore[misc]  # it is one
        default = default if start is None else getattr(start, field.name)
        mark = _mark(hint)
        found = _typed(Flag(field.name, said.get(field.name, "")), hint)
        if field.name == "initializer":  # of a method, which knows nothing of flags
            from inlay import initializers

            mark = Mark(choices=(initializers.UNIFORM, *initializers.TABLE.ours()), plugins=initializers.TABLE.group)
        yield found._replace(
            kind=flag.OFF if default is True else found.kind,
            default=_shown(default),
            is_required=default is dataclasses.MISSING or mark.is_required,
            num_values=1 if mark.repeats else found.num_values,
            **_marked(mark),
        )


def _docstrings(cls: type) -> dict[str, str]:
    return plugins.docstrings(cls) if dataclasses.is_dataclass(cls) else {}


def _mark(hint: Any) -> Mark:
    """What stands beside the type of a field."""
    return next((part for part in get_args(hint)[1:] if isinstance(part, Mark)), Mark())


def _marked(mark: Mark) -> dict[str, Any]:
    """The values of a flag that its mark gives, but for those that `_flags` decides."""
    given = {field.name: getattr(mark, field.name) for field in dataclasses.fields(mark)}
    return {name: value for name, value in given.items() if value and name != "is_required"}


def _typed(found: Flag, hint: Any) -> Flag:
    """A flag with what its type says of it."""
    from inlay.methods.contract import Layers
    from inlay.names import Names

    origin, parts = get_origin(hint), get_args(hint)
    if hint == Names:
        return found._replace(metavar="NAMES")
    if hint in (Layers, Layers | None):
        return found._replace(metavar="LAYERS" if "layers" in found.name else "NUMBERS")
    if origin is Annotated:
        return _typed(found, parts[0])
    if origin in (Union, types.UnionType):
        return _typed(found, next(part for part in parts if part is not type(None)))
    if origin is Literal:
        return found._replace(choices=tuple(map(str, parts)))
    if origin is tuple:
        return _typed(found, parts[0])._replace(num_values=0 if parts[-1] is ... else len(parts))
    if origin is Mapping:
        kind, metavar = _PLAIN[parts[1]]
        return found._replace(kind=kind, metavar=f"NAME {metavar}", num_values=0, is_map=True)
    kind, metavar = _PLAIN[hint]
    return found._replace(kind=kind, metavar=found.name.rpartition("_")[2].upper() if hint is str else metavar)


def _shown(default: Any) -> str:
    """A default for help; nothing where the words beside the flag say what happens without it."""
    if (
        default is dataclasses.MISSING
        or default is None
        or isinstance(default, bool)
        or default in ("", (), {}, Path())
    ):
        return ""
    if isinstance(default, float):
        return f"{default:g}"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
