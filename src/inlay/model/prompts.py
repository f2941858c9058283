"""Virtual tokens in the rows of a language model: they are tokens with negative numbers, and the model takes them for tokens.

    ids   [.. v_0 v_1 .. v_n-1  t_0 t_1 ..],   v_k = -1 - k

So positions, masks, packing, caches and generation need to know nothing of them. Two places do. The input embedding gives v_k
the k-th embedding of the row's prompt. The attention of each layer gives v_k the k-th key and value of the row's prefix, in the
place of what the layer itself made of it; nothing else of a prefix token is ever looked at.

A row's adapter says how many it has. `prepended` puts them in front of rows; where a model is called with rows that have none
although an adapter wants them, `prompted` does it on the way in, and takes their logits away on the way out.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from inlay.core.cross_entropy import IGNORE
from inlay.errors import CompatibilityError, explain
from inlay.model.adapted import Adapted
from inlay.model.adapter import Adapter, Sum
from inlay.model.batch import Batch, Router, Virtual

_CACHES = ("past_key_values", "cache_params", "state")
"""What models call what they keep of earlier tokens."""


class PromptedEmbedding(Adapted):
    """The input embedding, with the embeddings of virtual tokens for negative ids."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        batch, ids = self.router.batch, args[0]
        if batch is None or not any(batch.num_virtual):
            return super().forward(*args, **kwargs)
        batch.virtual = []
        if not (ids < 0).any():
            return super().forward(*args, **kwargs)
        y = super().forward(ids.clamp(min=0)).clone()
        for virtual in _virtual(batch, ids):
            method = virtual.adapter.prompt
            assert method is not None, "only prompts have virtual tokens"
            if method.is_prefix:
                batch.virtual.append(virtual)
            else:
                embeddings = method.virtual(virtual.adapter.params[""])
                y[virtual.rows, virtual.columns] = embeddings[virtual.numbers].to(y.dtype)
        return y


def virtual_ids(adapter: Adapter | Sum | None) -> list[int]:
    """The ids that stand in front of a row of this adapter."""
    return [-1 - k for k in range(adapter.num_virtual if adapter else 0)]


def prepended(
    ids: Int[Tensor, "rows t"], mask: Int[Tensor, "rows t"] | None, entries: Sequence[Adapter | Sum | None]
) -> tuple[Int[Tensor, "rows more"], Int[Tensor, "rows more"]]:
    """Rows with the virtual tokens of their adapters in front, and the mask of what is not padding."""
    front = [virtual_ids(adapter) for adapter in entries]
    longest = max(map(len, front))
    new = torch.tensor([[0] * (longest - len(row)) + row for row in front], dtype=ids.dtype, device=ids.device)
    mask = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
    return torch.cat([new, ids], 1), torch.cat([(new < 0).to(ids.dtype), mask], 1)


def prompted(model: Any, router: Router) -> Callable[..., Any]:
    """The `forward` of a language model whose rows may have virtual tokens."""
    own = model.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        batch = router.batch
        if batch is None or not any(batch.num_virtual):
            return own(*args, **kwargs)
        if args:
            kwargs["input_ids"], args = args[0], args[1:]
        ids, caches = kwargs.get("input_ids"), [kwargs[name] for name in _CACHES if kwargs.get(name) is not None]
        has_own = batch.brings or ids is None or bool((ids < 0).any()) or any(map(_is_filled, caches))
        num_new = 0 if has_own else _extend_(kwargs, router, batch, caches)
        with router.passing(batch.like()):
            out = own(*args, **kwargs)
        if num_new:
            out.logits = out.logits[:, num_new:]
        return out

    return forward


def _is_filled(cache: Any) -> bool:
    """A cache holds tokens already, as far as it says."""
    count = getattr(cache, "get_seq_length", None)
    return bool(count and count())


def _extend_(kwargs: dict[str, Any], router: Router, batch: Batch, caches: Sequence[Any]) -> int:
    """Put virtual tokens in front of the rows that a model is called with; how many columns that makes."""
    if caches:
        raise CompatibilityError(
            explain(
                "this call fills a cache, and its rows do not have their virtual tokens in front",
                found="a call with an empty cache, and an adapter with virtual tokens",
                do="base.generate(prompts, adapters=...)",
            )
        )
    ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
    entries = batch.rows if batch.num_rows is not None else [*batch.rows] * len(ids)
    if len(entries) != len(ids):
        raise batch.other_rows("the model", ids.shape)
    if len({entry.num_virtual if entry else 0 for entry in entries}) > 1 and not router.takes_padding():
        raise CompatibilityError(
            explain(
                "rows with different numbers of virtual tokens can't share a batch of this model",
                found="a row is answered otherwise where padding is in front of it",
                do="a batch for each adapter",
            )
        )
    new_ids, new_mask = prepended(ids, mask, entries)
    added = new_ids.shape[1] - ids.shape[1]
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = (new_mask.cumsum(1) - 1).clamp(min=0)
    else:
        front = (new_mask[:, :added].cumsum(1) - 1).clamp(min=0)
        kwargs["position_ids"] = torch.cat([front, kwargs["position_ids"] + new_mask[:, :added].sum(1, True)], 1)
    if kwargs.get("labels") is not None:
        kwargs["labels"] = nn.functional.pad(kwargs["labels"], (added, 0), value=IGNORE)
    kwargs |= {"input_ids": new_ids, "attention_mask": new_mask}
    return added


def _virtual(batch: Batch, ids: Int[Tensor, "rows t"]) -> Iterator[Virtual]:
    """Where the virtual tokens of each adapter are."""
    for number, adapter in enumerate(batch.adapters):
        takes = ids < 0 if batch.num_rows is None else (ids < 0) & batch.owned(number, ids)
        rows, columns = torch.where(takes)
        if len(rows):
            yield Virtual(adapter, rows, columns, -1 - ids[rows, columns])
