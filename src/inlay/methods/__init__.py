"""Adapter methods, one file each: the file's name is the method's name, and nothing else lists them."""

from inlay import plugins
from inlay.methods.contract import Method


def names() -> list[str]:
    """The methods that exist, by name: the files of this folder."""
    return plugins.names(__path__)


def find(name: str) -> type[Method]:
    """The method called `name`: the one class that its file defines.

    **Raises:**

    - `UnknownNameError`: there is no file of that name.
    """
    return plugins.find(__name__, names(), name, Method, "adapter method", "--method lora")


def name_of(method: Method) -> str:
    """The name of a method: that of the file which defines its class."""
    return type(method).__module__.rpartition(".")[2]
