"""Adapter methods, one file each: the file's name is the method's name, and nothing else lists them."""

from typing import Any

from inlay import plugins
from inlay.errors import CompatibilityError, explain
from inlay.methods.contract import Method


def _method(module: Any) -> type[Method]:
    cls = plugins.class_of(Method)(module)
    parameters: Any = vars(cls).get("__dataclass_params__")
    if not getattr(parameters, "frozen", False):
        found = f"{cls.__name__} in {module.__name__}"
        raise CompatibilityError(explain("it is no frozen dataclass", found=found))
    return cls


TABLE = plugins.Table(
    room=__name__,
    folder=tuple(__path__),
    group="inlay.methods",
    what="adapter method",
    choice="--method lora",
    take=_method,
)
"""The methods that exist."""

names, find = TABLE.names, TABLE.find


def name_of(method: Method) -> str:
    """The name of a method: that of the file which defines its class."""
    return type(method).__module__.rpartition(".")[2]
