"""An adapter in memory: a method, and its tensors for every module that it changes."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from inlay.errors import ConfigError, explain
from inlay.methods import hooks, name_of
from inlay.methods.contract import Method, Params, PromptMethod, by_kind
from inlay.model import changes
from inlay.model.changes import Changes, Replace


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
        self.shared = dict(shared or {})
        """Frozen tensors that all modules share."""
        self.record = dict(record or {})
        """What `inlay.json` says: the base it was trained on, and how."""
        self.trained = False
        """The tensors collect gradients, and the method's dropout is on wherever gradients are."""
        self._num_exchanged, self._own, self._counted = 0, list[Tensor](), list[Tensor]()
        self._bound: Mapping[str, Changes] | None = None
        self.replaces = False
        """Tensors of its own stand in the place of a module's."""
        self._find: Callable[[], Mapping[str, Changes]] | None = None
        self.params = params

    def __repr__(self) -> str:
        modules = sum(bool(path) for path in self.params)
        return f"Adapter({self.name!r}, {name_of(self.method)} on {modules} layers, {self.num_weights:,} weights)"

    @property
    def params(self) -> Mapping[str, Params]:
        """The tensors: module path -> tensor name -> tensor. Those of a prompt are at the path of the model itself, ''."""
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Params]) -> None:
        self._params = {path: dict(tensors) for path, tensors in params.items()}
        own = [tensor for tensor in self.tensors() if not tensor.is_inference()]
        self._num_exchanged += [*map(id, own)] != [*map(id, self._own)]
        self._own = own
        whole = [tensor if tensor._base is None else tensor._base for tensor in own]
        self._counted = [*{id(tensor): tensor for tensor in whole}.values()]  # those of a file are views of it
        self.bind_(self._find)

    @property
    def bound(self) -> Mapping[str, Changes]:
        """What it does to each module that it changes, by path; see `inlay.model.binding`.

        **Raises:**

        - `ConfigError`: it is not attached, or no longer.
        """
        if self._bound is None:
            found = f"{self.name!r}"
            raise ConfigError(explain("this adapter is not attached to a model", found=found, do="base.put(adapter)"))
        return self._bound

    @property
    def is_attached(self) -> bool:
        """It is on a model."""
        return self._bound is not None

    def bind_(self, find: Callable[[], Mapping[str, Changes]] | None) -> None:
        """Be attached: `find` gives `bound`, now and whenever the tensors are others. With None, let go of the model."""
        self._find = find
        self._bound = find() if find else None
        self.replaces = any(isinstance(one, Replace) for found in (self._bound or {}).values() for one in found)

    @property
    def num_weights(self) -> int:
        """How many numbers the adapter trains."""
        return sum(t.numel() for p in self.params.values() for name, t in p.items() if hooks.rate(self.method, name))

    @property
    def num_virtual(self) -> int:
        """How many virtual tokens it puts in front of a row."""
        prompt = self.prompt if self.method.lengthens_rows else None  # asked for in every forward
        return prompt.num_virtual_tokens if prompt else 0

    @property
    def prompt(self) -> PromptMethod | None:
        """Its method, where that puts virtual tokens in front of a row."""
        return by_kind(self.method, maps=lambda _: None, blocks=lambda _: None, front=lambda method: method, none=None)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of its own, module by module."""
        return (tensor for params in self.params.values() for tensor in params.values())

    @property
    def version(self) -> tuple[int, int]:
        """Another one whenever the tensors may be others: (how often they were exchanged or trained, changed in place)."""
        if self.trained:  # a fused optimiser's steps are not counted
            self._num_exchanged += 1
        return self._num_exchanged, sum([tensor._version for tensor in self._counted])

    def train_(self, trained: bool = True) -> list[Tensor]:
        """Make every tensor that is trained a leaf that collects gradients, or stop that; those tensors, for an optimiser."""
        if trained or self.trained:  # what layers keep is of the tensors of before
            self._num_exchanged += 1
            self.bind_(self._find)
        self.trained = trained
        learning = [t for params in self.params.values() for name, t in params.items() if hooks.rate(self.method, name)]
        return [tensor.requires_grad_(trained) for tensor in learning]

    def at(self, path: str) -> Changes:
        """What it does to the module at `path`; nothing, where it leaves that alone."""
        return self.bound.get(path, ())

    @torch.no_grad()
    def merged(
        self, path: str, weight: Tensor, bias: Tensor | None, start: int = 0, number: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Rows of the weight (out, in) of the map at `path`, from `start` on, and the bias with them, with its change in both.

        `number`: which map the weight is of, where a parameter holds several.
        """
        return changes.merged(self.at(path), weight, bias, start, number)

    def is_same(self, other: "Adapter") -> bool:
        """Both do the same to the same modules: their methods agree on each, however they name these, and so does every bit."""
        methods = all(_settings(self.method, path) == _settings(other.method, path) for path in self.params)
        return (
            type(self.method) is type(other.method)
            and methods
            and self.params.keys() == other.params.keys()
            and all(_are_equal(tensors, other.params[path]) for path, tensors in self.params.items())
            and _are_equal(self.shared, other.shared)
        )

    def kept(self) -> tuple[Method, Mapping[str, Params]]:
        """(the method, its tensors by module) that are kept once training is over."""
        return hooks.finished(self.method), hooks.finish(self.method, self.params)

    @torch.no_grad()
    def finish_(self) -> None:
        """Keep what is kept once training is over."""
        self.train_(False)
        self.method, kept = self.kept()
        self.params = kept


@dataclasses.dataclass(frozen=True)
class Sum:
    """What several adapters add, each times a weight; nothing is computed or copied for it.

    **Raises:**

    - `ConfigError`: one of them does more than add products of low rank, or stands there twice.
    """

    parts: tuple[tuple[Adapter, float], ...]
    num_virtual: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return " + ".join(f"{weight:g} {adapter.name}" for adapter, weight in self.parts)

    def __post_init__(self) -> None:
        adapters = [adapter for adapter, _ in self.parts]
        found = [
            f"{adapter.name}: {name_of(adapter.method)}"
            for adapter in adapters
            if any(len(own) != 1 or not isinstance(own[0], changes.LowRank) for own in adapter.bound.values())
        ]
        found += [f"{one.name}, twice" for one in dict.fromkeys(adapters) if adapters.count(one) > 1]
        if found or not adapters:
            wrong = "these adapters can't be added up"
            raise ConfigError(explain(wrong, found=found or "none", do="adapters of low rank, such as lora, each once"))


def _settings(method: Method, path: str) -> dict[str, Any]:
    """What a method does to the module at `path`, without the settings that say which modules it is for."""
    which = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")
    values = dataclasses.asdict(hooks.for_module(method, path))
    return {name: value for name, value in values.items() if name not in which}


def _are_equal(one: Params, other: Params) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key].cpu(), other[key].cpu()) for key in one)
