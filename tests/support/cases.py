"""What the laws run over: every method file that exists, each with settings that hide nothing, on every family of models."""

import dataclasses
import functools

from inlay import methods
from inlay.layout.decoder import decoder_of
from inlay.layout.layout import Layout
from inlay.methods import hooks
from inlay.methods.contract import BlockMethod, LinearMethod, PromptMethod
from tests.support import models

SETTINGS = {
    "adalora": dict(init_r=4, target_r=3, lora_alpha=5),
    "bottleneck": dict(bottleneck_size=3, scaling=0.7, non_linearity="tanh", layer_norm=True),
    "dora": dict(r=3, lora_alpha=5),
    "loha": dict(r=2, alpha=3),
    "lokr": dict(r=3, alpha=5, decompose_both=True),
    "lora": dict(r=3, lora_alpha=5),
    "oft": dict(oft_block_size=4, use_cayley_neumann=False),
    "p_tuning": dict(num_virtual_tokens=3, encoder_hidden_size=7),
    "prefix": dict(num_virtual_tokens=3),
    "prompt": dict(num_virtual_tokens=3),
    "vera": dict(r=5),
}
"""Settings with no accidental ones; a method that is not here is tried with its defaults."""

VARIANTS = {
    "lora_biases": ("lora", dict(r=3, lora_alpha=5, bias="all")),
    "lora_pissa": ("lora", dict(r=3, lora_alpha=5, initializer="pissa")),
    "lora_pissa_patterns": (
        "lora",
        dict(r=2, lora_alpha=2, use_rslora=True, rank_pattern={"q_proj|c_attn": 3}, initializer="pissa"),
    ),
    "lora_tokens": ("lora", dict(r=3, lora_alpha=5, trainable_token_indices=tuple(range(40, 2, -1)))),
    "lora_and_norms": ("lora", dict(r=3, lora_alpha=5, modules_to_save=r".*norm|.*\.ln_f|.*layer_norm")),
    "dora_biases": ("dora", dict(r=3, lora_alpha=5, bias="lora_only")),
    "bottleneck_parallel": ("bottleneck", dict(placement="parallel", bottleneck_size=3, scaling=4.0)),
    "oft_series": ("oft", dict(oft_block_size=0, r=4, block_share=True)),
    "prefix_network": ("prefix", dict(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7)),
}
"""Other ways of the same methods."""


def every_method():
    """(name, method) of every method file."""
    return [(name, methods.find(name)(**SETTINGS.get(name, {}))) for name in methods.names()]


def every_variant():
    """(name, method) of every method file, and of other ways that methods have."""
    return every_method() + [(name, methods.find(of)(**settings)) for name, (of, settings) in VARIANTS.items()]


@functools.cache
def _layout(family):
    model = models.model(family)
    return Layout(model, lambda: decoder_of(model, None))


def fits(method, family):
    """A model of this family has something that the method can change: not every model has biases."""
    layout = _layout(family)
    if hooks.token_ids(method) and layout.table not in layout.maps:
        return False  # Gemma's embedding is no plain table
    return bool(layout.wanted(method, strict=False))


def other(method):
    """The same method on fewer modules, so that two adapters of a batch differ in what they adapt."""
    if isinstance(method, LinearMethod):
        return dataclasses.replace(method, layers_to_transform=(0, 2))
    if isinstance(method, BlockMethod):
        return dataclasses.replace(method, placement="pfeiffer")
    return dataclasses.replace(method, num_virtual_tokens=2) if isinstance(method, PromptMethod) else method
