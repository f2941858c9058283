"""Putting adapters into a model and taking them out again, the model's own bytes untouched.

An adapted layer stands in the place of the linear module that it wraps, and goes with the last adapter that needs it; the
module itself, its weight and its name in the model never change.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from inlay.errors import CompatibilityError, ConfigError, TargetError, UnknownNameError, explain, nearest
from inlay.methods._contract import LinearMethod, Params
from inlay.model import targets
from inlay.model.adapted import Adapted, Route, Router
from inlay.model.adapter import Adapter

Rows = str | Sequence[str | None] | None
"""Who takes which adapter: a name for every row, one name or None per row, or None for the plain base."""


class Attached:
    """A frozen module and the adapters on it.

    **Attributes:**

    - `module`: the model; its parameters do not collect gradients while this object holds it.
    - `adapters`: the adapters that are attached, by name, in the order of attaching.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.adapters: dict[str, Adapter] = {}
        self.linears = targets.linear_modules(module)
        """The linear maps that can be adapted, by path."""
        self.head = targets.output_head(module)
        """The path of the output head, where the model has one."""
        self._router = Router()
        self._active: Rows = None
        self._routes: dict[str, Route] = {}
        self._places = _places(module)
        if isinstance(module, nn.Linear):
            raise TargetError(
                explain(
                    "a linear layer can't be adapted from within itself",
                    found=f"{module}, which stands in no other module",
                    do="torch.nn.Sequential(layer)",
                )
            )
        if any(isinstance(part, nn.TransformerEncoderLayer) for part in module.modules()):
            torch.backends.mha.set_fastpath_enabled(False)  # it reads the layers' weights and passes their adapters by
        self._trained_before = [parameter for parameter in module.parameters() if parameter.requires_grad]
        module.requires_grad_(False)

    def __repr__(self) -> str:
        return f"{type(self.module).__name__} with {list(self.adapters.values()) or 'no adapter'}, active: {self._active!r}"

    @property
    def active(self) -> Rows:
        """Which adapter the rows take now; set it to switch."""
        return self._active

    @active.setter
    def active(self, rows: Rows) -> None:
        self._router.route = self._route(rows)
        self._active = rows

    @contextlib.contextmanager
    def using(self, rows: Rows) -> Iterator[None]:
        """Within the block the rows take these adapters: a name, one name or None per row, or None for the plain base."""
        before = self._active
        self.active = rows
        try:
            yield
        finally:
            self.active = before if all(name in self.adapters for name in _names(before)) else None

    def create(self, method: LinearMethod, name: str = "default", seed: int = 0) -> Adapter:
        """Attach a new adapter, its tensors drawn from `seed`, and make it active.

        **Raises:**

        - `TargetError`: the method names modules that the model does not have.
        - `ConfigError`: the name is taken, or the method does not fit a layer.
        """
        generator = torch.Generator().manual_seed(seed)
        device = targets.device_of(self.module)
        params = {
            path: _to(method.for_module(path).init(self.linears[path], generator), device)
            for path in targets.resolve(method, self.linears, self.head)
        }
        return self.put(Adapter(name, method, params))

    def put(self, adapter: Adapter) -> Adapter:
        """Attach an adapter whose tensors exist, and make it active.

        **Raises:**

        - `ConfigError`: the name is taken.
        - `CompatibilityError`: its tensors are not those that its method has for these modules; the message lists all.
        """
        self._check_name(adapter.name)
        problems = self.problems(adapter)
        if problems:
            raise CompatibilityError(
                explain(f"adapter {adapter.name} does not fit this model", found=problems, do="use the base it names")
            )
        return self._place_(adapter)

    def _place_(self, adapter: Adapter) -> Adapter:
        """Attach an adapter that is known to fit, and make it active."""
        device = targets.device_of(self.module)
        adapter.params = {path: _to(params, device) for path, params in adapter.params.items()}
        for path in adapter.params:
            if not self._is_adapted(path):
                self._set_(path, Adapted(path, self.linears[path], self._router))
        self.adapters[adapter.name] = adapter
        self.active = adapter.name
        return adapter

    def problems(self, adapter: Adapter) -> list[str]:
        """How its tensors differ from those that its method has for the modules of this model; empty where they fit."""
        problems = [
            f"{path}: this model has no linear layer of that name"
            for path in adapter.params
            if path not in self.linears
        ]
        for path, tensors in adapter.params.items():
            if path not in self.linears:
                continue
            expected = adapter.methods[path].shapes(self.linears[path])
            problems += [f"{path}.{key}: missing" for key in expected if key not in tensors]
            problems += [f"{path}.{key}: not a tensor of this method" for key in tensors if key not in expected]
            problems += [
                f"{path}.{key}: shape {tuple(tensor.shape)}, here {expected[key]}"
                for key, tensor in tensors.items()
                if key in expected and tuple(tensor.shape) != expected[key]
            ]
        return problems

    def detach(self, name: str) -> Adapter:
        """Take an adapter out, and return it; layers that no other adapter needs become the base's own again."""
        adapter = self.get(name)
        del self.adapters[name]
        self._routes.pop(name, None)
        if name in _names(self._active):
            self.active = None
        for path in adapter.params:
            if not self._is_adapted(path):
                self._set_(path, self.linears[path].module)
        return adapter

    def swap(self, name: str, adapter: Adapter) -> Adapter:
        """Put `adapter` in the place of the one called `name`, or change nothing; returns the one that was there.

        Whether it was active or not, the new one is too; its name becomes `name`.
        """
        before, active = self.get(name), self._active
        order = list(self.adapters)
        self.detach(name)
        adapter.name = name
        try:
            self.put(adapter)
        except Exception:
            self.put(before)
            raise
        finally:
            self.adapters = {key: self.adapters[key] for key in order}
            self.active = active
        return before

    def release(self) -> None:
        """Take every adapter out and let the module's parameters collect gradients as before."""
        for name in list(self.adapters):
            self.detach(name)
        for parameter in self._trained_before:
            parameter.requires_grad_(True)

    def get(self, name: str) -> Adapter:
        """The attached adapter of that name.

        **Raises:**

        - `UnknownNameError`: no adapter of that name is attached.
        """
        if name not in self.adapters:
            near = nearest(name, self.adapters)
            raise UnknownNameError(
                explain(
                    "no adapter of that name is attached",
                    found=f"{name!r}; attached are {', '.join(self.adapters) or 'none'}",
                    do=f"{near!r}" if near else f"base.attach({name!r}) first, or --adapter {name}",
                )
            )
        return self.adapters[name]

    def parameters(self) -> list[Tensor]:
        """The tensors of the active adapter, set to collect gradients: what an optimiser takes."""
        if not isinstance(self._active, str):
            raise ConfigError(explain("training needs one active adapter", found=f"active: {self._active!r}"))
        return self.get(self._active).train_()

    def _route(self, rows: Rows) -> Route | None:
        if rows is None:
            return None
        if isinstance(rows, str):
            if rows not in self._routes:
                self._routes[rows] = Route(self.get(rows))
            return self._routes[rows]
        return Route([None if row is None else self.get(row) for row in rows])

    def _check_name(self, name: str) -> None:
        if name in self.adapters:
            raise ConfigError(
                explain(
                    "an adapter of that name is attached already",
                    found=f"{name!r}",
                    do=f"another name=, or detach({name!r}) first, or swap({name!r}, ...)",
                )
            )

    def _is_adapted(self, path: str) -> bool:
        """An attached adapter changes the module at `path`."""
        return any(path in adapter.params for adapter in self.adapters.values())

    def _set_(self, path: str, module: nn.Module) -> None:
        """Put a module wherever the model holds the one that it calls `path`: some hold one module under several names."""
        for place in self._places[id(self.linears[path].module)]:
            self.module.set_submodule(place, module)


def attach(module: nn.Module, method: LinearMethod, name: str = "default", seed: int = 0) -> Attached:
    """Freeze any torch module and attach a new adapter to its linear layers; `Attached.parameters()` are to be trained."""
    attached = Attached(module)
    attached.create(method, name, seed)
    return attached


def _places(module: nn.Module) -> dict[int, list[str]]:
    """Every path of every module, by the module's identity."""
    places: dict[int, list[str]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        places.setdefault(id(part), []).append(path)
    return places


def _names(rows: Rows) -> set[str]:
    """The adapters that `rows` names."""
    return {row for row in ([rows] if isinstance(rows, str) else rows or ()) if row is not None}


def _to(params: Params, device: torch.device) -> Params:
    return {key: tensor.to(device) for key, tensor in params.items()}
