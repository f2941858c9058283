"""What an adapter does to each module of a model, resolved once, when it is attached.

Which modules a tied weight, or rows of single tokens, are others in is decided here and nowhere else: layers and merging see
changes (`inlay.model.changes`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from inlay.layout.layout import Layout
from inlay.methods import hooks
from inlay.methods.contract import TOKEN_ROWS, LinearMethod, Method, Params, by_kind, is_low_rank
from inlay.model.adapter import Adapter
from inlay.model.changes import Block, Change, Changes, Delta, LowRank, Replace, TokenRows
from inlay.modules.linear import Linear
from inlay.names import selects


def bind_(adapter: Adapter, layout: Layout, device: torch.device) -> None:
    """Bring an adapter's tensors, which fit this model, to its device, and find what they do to each module."""
    adapter.shared = _to(adapter.shared, device)
    adapter.params = {path: _to(params, device) for path, params in adapter.params.items()}
    adapter.bind_(lambda: _bound(adapter, layout))


def _bound(adapter: Adapter, layout: Layout) -> Mapping[str, Changes]:
    found: dict[str, list[Change]] = {}
    for path, params in adapter.params.items():
        holder = layout.modules[layout.module_of(path)]._parameters
        own = {name: tensor for name, tensor in params.items() if holder.get(name) is not None}
        if own:
            for place in (path, *_aliases(adapter, layout, path, own)):
                found.setdefault(place, []).append(Replace(own, path, layout.maps.get(place)))
        if TOKEN_ROWS in params:
            ids = list(hooks.token_ids(adapter.method))
            before = layout.maps[path].stored.detach()[ids].float()
            for place in (path, *layout.tied.get(path, ())):
                found.setdefault(place, []).append(TokenRows(ids, params[TOKEN_ROWS], before, layout.maps[place]))
        added = {name: tensor for name, tensor in params.items() if name not in own and name != TOKEN_ROWS}
        change = _added(hooks.for_module(adapter.method, path), path, added, adapter.shared, layout) if added else None
        if change is not None:
            found.setdefault(path, []).append(change)
    return {path: tuple(sorted(changes, key=_place)) for path, changes in found.items()}


def _place(change: Change) -> int:
    """Where a change stands among those of a module: rows of tokens last, beside what is made from the weight."""
    return 0 if isinstance(change, Replace) else 2 if isinstance(change, TokenRows) else 1


def _aliases(adapter: Adapter, layout: Layout, path: str, own: Mapping[str, Tensor]) -> list[str]:
    """The modules that share the weight of the one at `path`, and with it what replaces that."""
    if "weight" not in own or selects(adapter.method.modules_to_save, path):
        return []
    return [tied for tied in layout.tied.get(path, ()) if tied not in adapter.params]


def _added(method: Method, path: str, params: Params, shared: Params, layout: Layout) -> Change | None:
    """What the method adds at `path`; None for a prompt, whose tokens stand in the rows."""
    return by_kind(
        method,
        maps=lambda method: _added_to(method, layout.maps[path], params, shared),
        blocks=lambda method: Block(method, params),
        front=lambda _: None,
        none=None,
    )


def _added_to(method: LinearMethod, linear: Linear, params: Params, shared: Params) -> Change:
    """What the method adds to this map."""
    params = {**hooks.share(method, shared, linear.one), **params}
    if is_low_rank(method) and linear.is_plain:
        return LowRank(method, params, linear)
    return Delta(method, params, linear)


def _to(params: Params, device: torch.device) -> Params:
    return {key: tensor.to(device) for key, tensor in params.items()}
