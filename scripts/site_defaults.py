"""What the reference shows as a value: of a default that, not the name that it has in the source; nothing where it is code."""

from typing import Any

import griffe

from inlay.training.settings import Settings

PREFIX = f"{Settings.__name__}."


def shown(default: str) -> str:
    """The default of an argument as the reference shows it."""
    if default.startswith(PREFIX):
        return repr(getattr(Settings, default.removeprefix(PREFIX)))
    return "..." if default.startswith("lambda") else default


class Values(griffe.Extension):
    """Called by mkdocstrings for all that it has read."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Show the defaults of a function's arguments."""
        for parameter in func.parameters:
            if parameter.default is not None and (text := shown(str(parameter.default))) != str(parameter.default):
                parameter.default = text

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Show no value that is made when the program runs: the type says enough."""
        if "lambda" in str(attr.value) or str(attr.value).startswith("dataclasses.field("):
            attr.value = None
