"""Whether a model takes virtual tokens for tokens, found by trying a few once.

    prompt   [E(a) E(b); tokens] as virtual tokens       must say what the tokens  a b tokens  say
    prefix   [P_K; K], [P_V; V] as virtual tokens        must say what a cache of `transformers` that holds P_K and P_V says

Models whose attention does not go through the functions of `transformers` never see a prefix: they keep the keys and values
that they made of its tokens themselves. Others look at the numbers of tokens in a second place, or have no keys and values.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import CompatibilityError, explain
from inlay.layout.layout import Layout
from inlay.methods import name_of
from inlay.methods.contract import PromptMethod
from inlay.methods.prefix import Prefix
from inlay.methods.prompt import Prompt
from inlay.model import attention
from inlay.model.adapter import Adapter
from inlay.model.batch import PLAIN, Batch, Current, Router
from inlay.modules import trial

VIRTUAL = 2
"""Virtual tokens that a model is tried on."""

EFFECT = 0.2
"""How far they may differ, as part of what the virtual tokens do to them."""


class PromptTrials:
    """What trials of virtual tokens on a model found, each kind tried once."""

    def __init__(self, model: nn.Module, router: Router, layout: Layout):
        self.model, self.router, self.layout = model, router, layout
        self._refusals: dict[bool, str | None] = {}

    def check(self, method: PromptMethod) -> None:
        """Refuse virtual tokens that this model, which has its forward for them already, does not take for tokens.

        **Raises:**

        - `CompatibilityError`: they would do something else than they should.
        """
        if method.is_prefix not in self._refusals:
            self._refusals[method.is_prefix] = self._refused_because(method)
        reason = self._refusals[method.is_prefix]
        if reason is not None:
            raise CompatibilityError(
                explain(
                    f"this model does not take the virtual tokens of {name_of(method)} tuning for tokens",
                    found=f"{type(self.model).__name__}: {reason}",
                    do="--method prompt, or --method lora" if method.is_prefix else "--method lora",
                )
            )

    def _refused_because(self, method: PromptMethod) -> str | None:
        """Why virtual tokens of this kind do not do in this model what they should; None where they do."""
        if next(self.model.parameters()).is_meta:
            return None  # an outline can't be called
        numbers = self.layout.wanted(method, strict=False)[""]["prompt_embeddings"][1]
        table = self.layout.modules[self.layout.table or ""]
        try:
            with trial.undisturbed(self.model), torch.no_grad():
                if method.is_prefix and not attention.adopt_(self.model, self.router):
                    return "it computes otherwise where its attention function is called by another name"
                return _difference(self.model, self.router, table, method.is_prefix, numbers)
        except Exception as error:  # any model's code may refuse in any way
            first = next(iter(str(error).splitlines()), "")
            return f"it can't be called so: {type(error).__name__}{f': {first}' if first else ''}"


def _difference(model: Any, router: Router, table: nn.Module, is_prefix: bool, numbers: int) -> str | None:
    generator = torch.Generator().manual_seed(0)
    if is_prefix and any(not hasattr(layer, "update") for layer in _cache(model).layers):
        return "some of its layers have no keys and values"
    more = trial.example(model, 2)
    before, ids = more[1:, :VIRTUAL], more[:1]
    if is_prefix:
        virtual = torch.randn(VIRTUAL, numbers, generator=generator).to(ids.device)
        method: Prompt | Prefix = Prefix(num_virtual_tokens=VIRTUAL)
        plain: Callable[[], Tensor] = lambda: _cached(model, ids, virtual, table(ids).dtype)  # noqa: E731  # one of two
    else:
        virtual, method = table(before)[0].float(), Prompt(num_virtual_tokens=VIRTUAL)
        plain = lambda: _logits(model, torch.cat([before, ids], 1))[:, VIRTUAL:]  # noqa: E731  # likewise
    with router.using(PLAIN):
        expected, without = plain(), _logits(model, ids)
    adapter = Adapter("trial", method, {"": {"prompt_embeddings": virtual}})
    adapter.bind_(dict)
    with router.using(Current(None, Batch(adapter))):
        actual = _logits(model, ids)
    if actual.shape != expected.shape:
        return f"its answer is of shape {tuple(actual.shape)}, where {tuple(expected.shape)} was due"
    error, effect = (actual - expected).abs().max().item(), (without - expected).abs().max().item()
    allowed = trial.TOLERANCE.get(expected.dtype, 1e-3) * expected.abs().max().item()
    if error <= allowed and (error <= EFFECT * effect or error == 0):
        return None
    same = (actual - without).abs().max().item() <= allowed
    return "it ignores them" if same else f"its logits are off by {error:.3g}, where they do {effect:.3g}"


def _logits(model: Any, ids: Tensor) -> Tensor:
    return trial.called(model, ids).logits


def _cache(model: Any) -> Any:
    """A cache of `transformers` for the keys and values of this model."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _cached(model: Any, ids: Tensor, virtual: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits of tokens behind a cache that holds these keys and values: (virtual tokens, layers * 2 * heads * dim), in the
    dtype that the model computes in, which may be wider than that of its weights.

    Positions are the model's own: those that we would give may be no positions of it, as in RoBERTa, which counts from 2.
    """
    text = model.config.get_text_config()
    cache, count = _cache(model), len(virtual)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    layers = virtual.view(count, text.num_hidden_layers, 2, heads, -1).permute(1, 2, 3, 0, 4)[:, :, None].to(dtype)
    for number, (keys, values) in enumerate(layers):  # (1, heads, virtual tokens, dim) each
        cache.update(keys, values, number)
    mask = torch.ones(1, count + ids.shape[1], dtype=torch.long, device=ids.device)
    return model(input_ids=ids, past_key_values=cache, attention_mask=mask, use_cache=True).logits
