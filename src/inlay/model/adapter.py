"""An adapter in memory: a method, and its tensors for every module that it changes."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from inlay.core.routed import Factors
from inlay.methods import name_of
from inlay.methods.contract import TOKEN_ROWS, LinearMethod, Method, Params, PromptMethod


class Adapter:
    """A method and its tensors, by module path; what is attached, routed to, saved and shared."""

    def __init__(
        self,
        name: str,
        method: Method,
        params: Mapping[str, Params],
        record: Mapping[str, Any] | None = None,
        shared: Params | None = None,
    ):
        self.name = name
        self.method = method
        self.params = dict(params)
        """The tensors: module path -> tensor name -> tensor. Those of a prompt are at the path of the model itself, ''."""
        self.shared = dict(shared or {})
        """Frozen tensors that all modules share."""
        self.methods = {path: method.for_module(path) for path in self.params}
        """The method as it applies to each module."""
        self.own: dict[str, frozenset[str]] = {}
        """Those of a module's tensors that stand in the place of its own, by module path."""
        self.aliases: dict[str, str] = {}
        """Modules that have another one's tensors, as tied heads have: their path -> the path of the tensors."""
        self.tables: tuple[str, ...] = ()
        """Modules whose rows for single tokens are others: the embedding, and a head that is tied to it."""
        self.base_rows: Tensor | None = None
        """What the base has in the place of the rows of single tokens."""
        self.record = dict(record or {})
        """What `inlay.json` says: the base it was trained on, and how."""
        self.trained = False
        """The tensors collect gradients, and the method's dropout is on wherever gradients are."""
        self._factors: dict[tuple[str, torch.dtype], Factors | None] = {}
        self._seen: dict[str, Params] = {}

    def __repr__(self) -> str:
        modules = sum(bool(path) for path in self.params)
        return f"Adapter({self.name!r}, {name_of(self.method)} on {modules} layers, {self.num_weights:,} weights)"

    def __contains__(self, path: str) -> bool:
        """It changes the module at `path`."""
        return path in self.params or path in self.aliases or path in self.tables

    @property
    def num_weights(self) -> int:
        """How many numbers the adapter trains."""
        return sum(t.numel() for p in self.params.values() for name, t in p.items() if self.method.rate(name))

    @property
    def num_virtual(self) -> int:
        """How many virtual tokens it puts in front of a row."""
        return self.method.num_virtual_tokens if isinstance(self.method, PromptMethod) else 0

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of its own, module by module."""
        return (tensor for params in self.params.values() for tensor in params.values())

    def train_(self, trained: bool = True) -> list[Tensor]:
        """Make every tensor that is trained a leaf that collects gradients, or stop that; those tensors, for an optimiser."""
        self._factors.clear()
        self.trained = trained
        learning = [t for params in self.params.values() for name, t in params.items() if self.method.rate(name)]
        return [tensor.requires_grad_(trained) for tensor in learning]

    def share_(self, path: str, shared: Params) -> None:
        """Say which part of the shared tensors the module at `path` sees."""
        self._seen[path] = shared

    def at(self, path: str) -> Params:
        """The tensors that the method adds with to the module at `path`, with those that it shares."""
        own = self.own.get(path, frozenset())
        added = {name: tensor for name, tensor in self.params[path].items() if name not in own and name != TOKEN_ROWS}
        return {**self._seen.get(path, {}), **added}

    def own_at(self, path: str) -> Params:
        """The tensors that stand in the place of the module's own."""
        source = self.aliases.get(path, path)
        return {name: self.params[source][name] for name in self.own.get(source, ())}

    def adds(self, path: str) -> bool:
        """The method adds something to the output of the module at `path`."""
        return path in self.params and not set(self.params[path]) <= {TOKEN_ROWS, *self.own.get(path, ())}

    def token_changes(self) -> tuple[Tensor, Tensor]:
        """The tokens that have rows of their own in `tables`, and by what these differ from the base's."""
        assert self.base_rows is not None, "it has rows for single tokens, and is attached"
        rows = self.params[self.tables[0]][TOKEN_ROWS]
        return torch.tensor(self.method.token_ids, device=rows.device), rows - self.base_rows

    def dropout(self, path: str) -> float:
        """The input dropout of the module at `path`: the method's while the adapter is trained with gradients on."""
        method = self.methods.get(path)
        if not isinstance(method, LinearMethod) or not self.trained or not torch.is_grad_enabled():
            return 0.0
        return method.input_dropout

    def factors(self, path: str, dtype: torch.dtype) -> Factors | None:
        """The low-rank factors of the module at `path`, or None where the change is not low-rank.

        Cast to `dtype` once and kept while nothing is trained; as they are, for the routed product to cast, otherwise.
        """
        method = self.methods.get(path)
        if not isinstance(method, LinearMethod) or not self.adds(path):
            return None
        if self.trained:
            return method.factors(self.at(path))
        key = (path, dtype)
        if key not in self._factors:
            found = method.factors(self.at(path))
            self._factors[key] = found and Factors(found.A.to(dtype), found.B.to(dtype), found.scaling)
        return self._factors[key]

    @torch.no_grad()
    def merged(
        self,
        path: str,
        weight: Tensor,
        bias: Tensor | None,
        start: int = 0,
        transposed: bool = False,
        expert: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of the weight of the map at `path`, from `start` on, and the bias with them, the adapter's change in both.

        `transposed`: the module stores its weight as (in, out); here it is (out, in) nonetheless. `expert`: the weight is that
        of one expert, whose tensors the adapter has beside those of the others.
        """
        rows, own = slice(start, start + len(weight)), self.own_at(path)
        if "weight" in own:
            whole = own["weight"].T if transposed else own["weight"].flatten(1)
            weight = whole[rows].to(weight.dtype)
        if bias is not None and "bias" in own:
            bias = own["bias"][rows].to(bias.dtype)
        method = self.methods.get(path)
        if isinstance(method, LinearMethod) and self.adds(path):
            params = self.at(path)
            params = params if expert is None else {name: tensor[expert] for name, tensor in params.items()}
            weight, bias = method.merge(params, weight, bias, start)
        if path in self.tables:
            ids, change = self.token_changes()
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            if transposed:
                wide[:, ids] += change.T[rows]
            else:
                here = (ids >= start) & (ids < start + len(weight))
                wide[ids[here] - start] += change[here]
            weight = wide.to(weight.dtype)
        return weight, bias

    @torch.no_grad()
    def finish_(self) -> None:
        """Keep what is kept once training is over."""
        self.train_(False)
        self.params = {path: dict(params) for path, params in self.method.finish(self.params).items()}
        self.method = self.method.finished()
        self.methods = {path: self.method.for_module(path) for path in self.params}
