"""What the laws run over: every method file that exists, each with settings that hide nothing, on every family of models."""

import dataclasses

from inlay import methods

SETTINGS = {"lora": dict(r=3, lora_alpha=5)}
"""Settings with no accidental ones; a method that is not here is tried with its defaults."""


def every_method():
    """(name, method) of every method file."""
    return [(name, methods.find(name)(**SETTINGS.get(name, {}))) for name in methods.names()]


def other(method):
    """The same method on fewer modules, so that two adapters of a batch differ in what they adapt."""
    return dataclasses.replace(method, layers_to_transform=(0, 2))
