"""Keys and values in blocks, and attention over them: of a layer (blocks, heads, dim, SIZE) and (blocks, heads, SIZE, dim).

    out[t] = softmax_s(scaling q[t] . k[s]) v[s],    s <= t, of the same sequence, within the layer's window

A step's tokens, of all its sequences one after the other, write their keys and values first and then look at all of their
sequence. A sequence's newest token is computed where its blocks lie, if `inlay.kernels.cache` takes it; the first tokens of a
sequence look at nothing but each other, as documents do in training; `attend` is the plain way, which makes a copy of what
each sequence looks at.
"""

import dataclasses
import functools
from collections.abc import Sequence as Many
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from inlay.errors import CompatibilityError, explain
from inlay.generation.blocks import SIZE
from inlay.kernels import cache
from inlay.kernels.attention import document_attention

USUAL = {"scaling", "dropout", "sliding_window", "position_ids", "use_cache", "cache_position", "softcap"}
"""What a layer may ask of attention; anything else is refused, since it may mean anything."""


_MORE = 4
"""Tables of blocks are as wide as a multiple of this, so that they keep their shape for some time."""


class Pages:
    """The keys and values of all layers, made as the layers come.

    **Arguments:**

    - `count`: how many blocks there are.
    """

    def __init__(self, count: int):
        self.count = count
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all layers that have come."""
        return sum(tensor.nbytes for pair in self._layers.values() for tensor in pair)

    def layer(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, for such as these (1, heads, t, dim)."""
        if number not in self._layers:
            keys = key.new_zeros(self.count, key.shape[1], key.shape[3], SIZE)
            self._layers[number] = keys, value.new_zeros(self.count, value.shape[1], SIZE, value.shape[3])
        return self._layers[number]


@dataclasses.dataclass(frozen=True)
class Span:
    """The tokens of one sequence in a step."""

    start: int
    """Where they begin among the step's tokens."""
    first: int
    """How many tokens of the sequence are before them."""
    count: int
    blocks: tuple[int, ...]


class Run(NamedTuple):
    """The first tokens of some sequences, one after the other."""

    start: int
    lengths: list[int]


def _runs(spans: Many[Span]) -> list[Run]:
    """The spans with the first tokens of their sequences, by neighbours."""
    runs: list[Run] = []
    for span in spans:
        if runs and runs[-1].start + sum(runs[-1].lengths) == span.start:
            runs[-1].lengths.append(span.count)
        else:
            runs.append(Run(span.start, [span.count]))
    return runs


def _places(spans: Many[Span], device: torch.device) -> cache.Newest | None:
    """Where the tokens of some sequences are written: each with the block that it is in for a table."""
    found = [
        (span.start + i, (span.first + i) % SIZE + 1, span.blocks[(span.first + i) // SIZE])
        for span in spans
        for i in range(span.count)
    ]
    if not found:
        return None
    tokens, lengths, blocks = torch.tensor(found, device=device).T.contiguous()
    return cache.Newest(tokens, lengths, blocks[:, None])


class Kept:
    """The places of a step's tokens, for the attention of its layers."""

    def __init__(self, pages: Pages, spans: Many[Span], asked: Many[int], device: torch.device):
        self._pages, self.asked = pages, asked
        single = [span for span in spans if span.count == 1]
        self._several = [span for span in spans if span.count > 1]
        self._spans, self._device = spans, device
        most = -(-max((len(span.blocks) for span in single), default=0) // _MORE) * _MORE
        self._newest = cache.Newest(
            torch.tensor([span.start for span in single], dtype=torch.long, device=device),
            torch.tensor([span.first + 1 for span in single], dtype=torch.long, device=device),
            torch.tensor(
                [[*span.blocks, *[0] * (most - len(span.blocks))] for span in single], dtype=torch.long, device=device
            ).view(len(single), most),
        )
        self._num_newest = len(single)
        self._masks: dict[int | None, Bool[Tensor, "rows 1 1 s"]] = {}
        self._begun: dict[tuple[int | None, float | None], tuple[list[Run], list[Span]]] = {}

    @property
    def is_newest(self) -> bool:
        """Every sequence has one token."""
        return not self._several

    @property
    def width(self) -> int:
        """How many blocks the tables of the newest tokens have room for."""
        return self._newest.tables.shape[1]

    def take_places_(self, last: Any) -> None:
        """Put the places of the newest tokens where those of another step are, of as many rows and of the same width."""
        for now, before in zip(self._newest, last._newest, strict=True):
            before.copy_(now)
        self._newest = last._newest

    @functools.cached_property
    def _of_all(self) -> cache.Newest | None:
        return _places(self._spans, self._device)

    @functools.cached_property
    def _of_several(self) -> cache.Newest | None:
        return _places(self._several, self._device)

    def attended(
        self,
        module: nn.Module,
        query: Float[Tensor, "1 heads t dim"],
        key: Float[Tensor, "1 kv_heads t dim"],
        value: Float[Tensor, "1 kv_heads t dim"],
        settings: dict[str, Any],
    ) -> Float[Tensor, "1 t heads dim"]:
        """The attention of a layer, as it calls for it.

        **Raises:**

        - `CompatibilityError`: the layer asks for something that this does not compute.
        """
        _check_usual(module, settings)
        pages = self._pages.layer(module.layer_idx, key, value)  # type: ignore[arg-type]  # a number, in all of them
        scaling = settings.get("scaling") or query.shape[-1] ** -0.5
        window, cap = settings.get("sliding_window"), settings.get("softcap")
        out = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        is_known = cap is None and cache.available(query, value, pages[0])
        by_kernel = is_known and self._num_newest > 0
        _write_(pages, key[0], value[0], self._of_several if by_kernel else self._of_all, is_known)
        if by_kernel:
            cache.attend_(query[0], key[0], value[0], pages, self._newest, out, scaling=scaling, window=window)
        elif self._num_newest:
            rows = self._newest.tokens
            k, v = _rows(pages, self._newest.tables)
            made = attend(query[0][:, rows].transpose(0, 1)[:, :, None], k, v, self._mask(window), scaling, cap)
            out[rows] = made[:, :, 0]
        runs, rest = self._by_begin(window, cap)
        for start, lengths in runs:
            own = slice(start, start + sum(lengths))
            out[own] = document_attention(query[0][:, own], key[0][:, own], value[0][:, own], lengths, scaling)
        for span in rest:
            last, own = span.first + span.count, slice(span.start, span.start + span.count)
            k, v = (x[:, :, :last] for x in _rows(pages, torch.tensor([span.blocks], device=query.device)))
            made = attend(query[:, :, own], k, v, _mask(span, last, window, query.device), scaling, cap)
            out[own] = made[0].transpose(0, 1)
        return out[None]

    def _by_begin(self, window: int | None, cap: float | None) -> tuple[list[Run], list[Span]]:
        """Of the sequences of several tokens: those whose first token is here, as runs; the others."""
        if (window, cap) not in self._begun:
            begin = [s for s in self._several if not s.first and cap is None and (window is None or s.count <= window)]
            self._begun[window, cap] = _runs(begin), [span for span in self._several if span not in begin]
        return self._begun[window, cap]

    def _mask(self, window: int | None) -> Tensor:
        """What the sequences of one token look at."""
        if window not in self._masks:
            _, lengths, tables = self._newest
            places = torch.arange(tables.shape[1] * SIZE, device=tables.device)
            seen = places < lengths[:, None]
            if window is not None:
                seen &= places >= lengths[:, None] - window
            self._masks[window] = seen[:, None, None]
        return self._masks[window]


def _check_usual(module: nn.Module, settings: dict[str, Any]) -> None:
    others = {n for n in settings.keys() - USUAL if settings[n] is not None and settings[n] is not False}
    if others or settings.get("dropout") or not getattr(module, "is_causal", True):
        found = ", ".join(sorted(others)) or "attention that is not causal"
        raise CompatibilityError(explain("the attention of this model is not one that answers in a batch", found=found))


def _write_(
    pages: tuple[Tensor, Tensor], key: Tensor, value: Tensor, places: cache.Newest | None, by_kernel: bool
) -> None:
    """Put keys and values (heads, t, dim) of some tokens into their places."""
    if places is not None and by_kernel:
        cache.write_(key, value, pages, places)
    elif places is not None:
        tokens, lengths, tables = places
        blocks, offsets = tables[:, 0], lengths - 1
        pages[0][blocks, :, :, offsets] = key[:, tokens].transpose(0, 1)
        pages[1][blocks, :, offsets] = value[:, tokens].transpose(0, 1)


def _rows(pages: tuple[Tensor, Tensor], tables: Int[Tensor, "rows most"]) -> tuple[Tensor, Tensor]:
    """The keys and values of some sequences, (rows, heads, s, dim), by the blocks of each."""
    k, v = pages[0][tables].transpose(3, 4), pages[1][tables]
    return k.transpose(1, 2).flatten(2, 3), v.transpose(1, 2).flatten(2, 3)


def _mask(span: Span, last: int, window: int | None, device: torch.device) -> Bool[Tensor, "t s"]:
    """What the tokens of a span look at."""
    places = torch.arange(last, device=device)
    own = torch.arange(span.first, last, device=device)[:, None]
    seen = places <= own
    return seen if window is None else seen & (places > own - window)


def attend(
    q: Float[Tensor, "rows heads t dim"],
    k: Float[Tensor, "rows kv_heads s dim"],
    v: Float[Tensor, "rows kv_heads s dim"],
    mask: Bool[Tensor, "..."],
    scaling: float,
    cap: float | None = None,
) -> Float[Tensor, "rows heads t dim"]:
    """The equation at the top of this file; with `cap` c, c tanh(x / c) of each product x, as Gemma 2 has it."""
    if cap is None:
        return nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=True)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.tanh(q @ k.transpose(2, 3) * (scaling / cap)) * cap
    return scores.masked_fill(~mask, -torch.inf).float().softmax(-1).to(q.dtype) @ v
