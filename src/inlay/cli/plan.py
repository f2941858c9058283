"""Say what an adapter of a method would be on a base, before any weight is read."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from inlay import methods, screen
from inlay.base import meta_model
from inlay.cli.inspect import modules
from inlay.gguf.opening import open_outline
from inlay.layout.decoder import decoder_of
from inlay.layout.layout import Layout
from inlay.options.flags import Common, Model
from inlay.options.parse import METHOD_FIELD, given, with_method
from inlay.screen import count, say, size

BYTES_PER_WEIGHT = 16
"""Of a trained weight in float32: itself, its gradient, and the optimiser's two moments."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """The base's configuration is enough."""

    model: Model
    """The base: a directory, or a name on the hub."""

    method: str = "lora"
    """How to adapt."""

    def run(self) -> int:
        """Count and print."""
        checkpoint = open_outline(self.model)
        method = getattr(self, METHOD_FIELD)
        model = meta_model.meta(checkpoint)
        layout = Layout(model, lambda: decoder_of(model, None))
        shapes = layout.wanted(method)
        total, trained = sum(parameter.numel() for parameter in model.parameters()), layout.count(method)
        say("base", f"{checkpoint.name} · {count(total)} weights")
        where = modules(path for path in shapes if path) or "rows"
        say("adapter", f"{methods.name_of(method)} {method.describe()} on {where}")
        say("trained", f"{trained:,} weights ({100 * trained / total:.2g} % of the base)")
        say("file", size(4 * sum(math.prod(shape) for own in shapes.values() for shape in own.values())))
        say("memory", f"{size(BYTES_PER_WEIGHT * trained)} to train them, beside the base and its activations")
        if self.json:
            screen.emit({"trainable_parameters": trained, "base_parameters": total, "method": methods.name_of(method)})
        return 0


def command(arguments: Sequence[str]) -> Any:
    """The command with the flags of the method that the arguments name."""
    return with_method(Plan, given(arguments))
