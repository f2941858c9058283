"""One attention function for all layers of a model, which looks at the batch under way.

    packed rows      each token sees the tokens of its own row up to itself, and of the one that this continues
                     (`inlay.core.attention`)
    virtual tokens   their keys and values are the adapter's and replace what the layer made of them
    anything else    as `transformers` computes it

It reaches the layers through the table that `transformers` keeps of attention functions, under a name that a model gets once.
A layer whose mask is not that of whole rows, such as one with a sliding window shorter than a row, is computed with the mask
that it was given.
"""

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from inlay.errors import CompatibilityError, explain
from inlay.kernels.attention import document_attention
from inlay.model.batch import PLAIN, Router, Virtual, passing
from inlay.modules import trial

NAME = "inlay"
"""What it is called among the functions of `transformers`, with the name of the one that it replaces."""

USUAL = {"scaling", "dropout", "sliding_window", "position_ids", "use_cache", "cache_position"}
"""Arguments that don't stand in the way of packed rows; another one may mean anything."""


def of(config: Any) -> str:
    """The attention function that a configuration chose for itself."""
    return str(config._attn_implementation).removeprefix(f"{NAME}_")


def adopt_(model: Any, router: Router) -> bool:
    """Replace a model's attention function by ours, once; False: it computes something else then, and keeps its own.

    Some models ask what their function is called, and make their masks by that.
    """
    config = model.base_model.config
    inner = config._attn_implementation
    if str(inner).startswith(f"{NAME}_"):
        return True
    _register(inner)
    if next(model.parameters()).is_meta:  # an outline can't be called
        config._attn_implementation = f"{NAME}_{inner}"
        return True
    ids = trial.example(model, 2)
    with router.using(PLAIN), trial.undisturbed(model), torch.no_grad():
        before = trial.called(model, ids)[0]
        config._attn_implementation = f"{NAME}_{inner}"
        try:
            is_same = torch.equal(trial.called(model, ids)[0], before)
        except Exception:  # any model's code may refuse in any way
            is_same = False
    if not is_same:
        config._attn_implementation = inner
    return is_same


@functools.cache
def _register(inner: str) -> None:
    """Make our function over the one called `inner` known to `transformers`, with the masks of that."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(f"{NAME}_{inner}", functools.partial(_attention, inner))
    if inner in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(f"{NAME}_{inner}", ALL_MASK_ATTENTION_FUNCTIONS[inner])


def _attention(
    inner: str, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Any]:
    """An attention function as `transformers` calls it: (rows, heads, t, dim) in, (rows, t, heads, dim) out."""
    batch = passing()
    if batch is not None and batch.virtual:
        first = key.shape[2] - query.shape[2]  # what a cache holds already is in front
        for virtual in batch.virtual:
            key = _substituted(key, virtual, module.layer_idx, 0, first)
            value = _substituted(value, virtual, module.layer_idx, 1, first)
    if batch is not None and batch.kept is not None:
        return batch.kept.attended(module, query, key, value, {"sliding_window": None, **settings}), None
    is_square = key.shape[2] == query.shape[2] and query.shape[-1] == value.shape[-1]
    lying = None if batch is None else batch.lying
    if lying and is_square and _is_plain(module, settings) and lying.is_of_rows(attention_mask):
        scaling = settings.get("scaling") or query.shape[-1] ** -0.5
        return document_attention(query[0], key[0], value[0], lying.lengths, scaling, lying.parents)[None], None
    if lying and lying.parents:
        wrong, found = "this layer's attention does not let rows go on from others", type(module).__name__
        raise CompatibilityError(explain(wrong, found=found, do="each row by itself"))
    return _inner(inner, module)(module, query, key, value, attention_mask, **settings)


def _inner(name: str, module: Any) -> Any:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def _is_plain(module: Any, settings: dict[str, Any]) -> bool:
    """This call is causal attention and nothing else, but for its mask."""
    others = any(value is not None for name, value in settings.items() if name not in USUAL)
    return bool(getattr(module, "is_causal", True)) and not others and not settings.get("dropout")


def _substituted(tensor: Tensor, virtual: Virtual, layer: int, which: int, first: int) -> Tensor:
    """Keys (which 0) or values (1) of a layer, those of the virtual tokens replaced by the prefix's.

    Without gradients they are written into the tensor itself, which is the cache's where there is one.
    """
    method = virtual.adapter.prompt
    assert method is not None, "only prompts have virtual tokens"
    _, heads, _, dim = tensor.shape
    made = method.virtual(virtual.adapter.params[""])[virtual.numbers]  # (places, layers * 2 * heads * dim)
    own = made.view(len(made), -1, 2, heads, dim)[:, layer, which].to(tensor.dtype)
    target = tensor.clone() if torch.is_grad_enabled() else tensor
    target[virtual.rows, :, virtual.columns + first] = own
    return target
