"""The set of adapters on a model: an adapted module replaces the linear module that it wraps until the last adapter that
changes it is detached. The base's bytes, and the names of its modules, never change.

What else is known of a model, such as the files that it is from, is said by whoever makes the set, reads an adapter or saves
one.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inlay import formats
from inlay.errors import CompatibilityError, ConfigError, TargetError, UnknownNameError, explain, nearest
from inlay.formats.contract import AdapterFile, ModelFacts
from inlay.hub import store
from inlay.layout import targets
from inlay.layout.decoder import decoder_of
from inlay.layout.fitting import check_heard, fitted, layers
from inlay.layout.fresh import Calibration
from inlay.layout.layout import Layout
from inlay.methods.contract import Method
from inlay.model import prompts
from inlay.model.adapted import Adapted
from inlay.model.adapted_parameters import AdaptedParameters
from inlay.model.adapter import Adapter
from inlay.model.batch import PLAIN, Batch, Current, Generators, Router, Rows
from inlay.model.binding import bind_
from inlay.model.prompt_trial import PromptTrials
from inlay.model.prompts import PromptedEmbedding

Check = Callable[[str, AdapterFile], None]
"""What is asked of an adapter, by its name and what its file says; of a large one before its tensors are read."""


class AdapterSet:
    """A frozen module and the adapters on it: `adapters[name]`, `len` and `in` go by their names, in the order of attaching.

    **Arguments:**

    - `module`: the model; its parameters do not collect gradients while this object holds it.
    - `title`: what it is called in a message; the name of its class unless given.
    - `reference`: a name or a path by which others find it, for the files of adapters.
    - `task_type`: what the exchange format calls this kind of model; None where it has no name for it.
    - `heads`: the usual names of its task's heads: the file of an adapter may name one that this model does not have.
    - `tokenize`: the tokens of a text, where the model is one of text.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        title: str | None = None,
        reference: str | None = None,
        task_type: str | None = None,
        heads: Sequence[str] = (),
        tokenize: Callable[[str], Sequence[int]] | None = None,
    ):
        _check(module)
        self.module = module
        self.title = title or type(module).__name__
        self.reference, self.task_type, self.heads = reference, task_type, tuple(heads)
        self._held: dict[str, Adapter] = {}
        self.layout = Layout(module, lambda: decoder_of(module, tokenize), lambda: self.using(None))
        """What the model is made of, as it is without adapters."""
        self.maps = self.layout.maps
        """The maps that can be adapted, by path: linear layers, embeddings, convolutions."""
        self.linears = {path: linear for path, linear in self.maps.items() if linear.kind == "linear"}
        """The linear layers among them."""
        self.head = self.layout.head
        """The path of the output head, where the model has one."""
        self.table = self.layout.table
        """The path of the input embedding, where the model has one."""
        self.router = Router()
        self._alone: dict[str, Current] = {}  # what each adapter is for all rows
        self._adapted: dict[str, tuple[Adapted, set[str]]] = {}
        """The modules that stand under a wrapper, by path: the wrapper, and the adapters that need it."""
        self._trials = PromptTrials(module, self.router, self.layout)
        self._places = targets.places(module)
        self._trained_before = [parameter for parameter in module.parameters() if parameter.requires_grad]
        module.requires_grad_(False)

    def __repr__(self) -> str:
        return f"{self.title} with {list(self.values()) or 'no adapter'}, active: {self.active!r}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __getitem__(self, name: str) -> Adapter:
        """The attached adapter of that name.

        **Raises:**

        - `UnknownNameError`: no adapter of that name is attached.
        """
        if name not in self._held:
            near = nearest(name, self._held)
            raise UnknownNameError(
                explain(
                    "no adapter of that name is attached",
                    found=f"{name!r}; attached are {', '.join(self._held) or 'none'}",
                    do=f"{near!r}" if near else f"base.attach({name!r}) first, or --adapter {name}",
                )
            )
        return self._held[name]

    def values(self) -> ValuesView[Adapter]:
        """The adapters that are attached, in the order of attaching."""
        return self._held.values()

    @property
    def active(self) -> Rows:
        """Which adapter the rows take now; set it to switch. Within `using` it is that of this thread or task."""
        return self.router.current.rows

    @active.setter
    def active(self, rows: Rows) -> None:
        self.router.set_(self._current(rows))

    @contextlib.contextmanager
    def using(self, rows: Rows, *, brings: bool = False, generator: Generators = None) -> Iterator[None]:
        """Within the block the rows take these adapters: a name, one name or None per row, or None for the plain base.

        That holds in this thread or task; others may use the model at the same time, with adapters of their own.

        **Arguments:**

        - `brings`: the rows have the virtual tokens of their adapters in front.
        - `generator`: what dropout draws from, one for all or one for each adapter by name; torch's own unless given.
        """
        try:
            with self.router.using(self._current(rows, brings, generator)):
                yield
        finally:
            current = self.router.current
            if (renewed := self._renewed(current)) is not current:  # one was detached or swapped within the block
                self.router.set_(renewed)

    @property
    def facts(self) -> ModelFacts:
        """What a format has to know of the model."""
        config = getattr(self.module, "config", None)
        kind, said = getattr(config, "model_type", None), getattr(config, "__dict__", {})
        return ModelFacts(self.reference, self.task_type, kind, type(self.module).__name__, layers(self.layout), said)

    def attach(
        self, source: str | Path | Method, name: str | None = None, *, seed: int = 0, check: Check = lambda *about: None
    ) -> Adapter:
        """Attach an adapter and make it active: one on disk or on the hub, or a new one of a method.

        **Arguments:**

        - `source`: a directory or hub name; or a method such as `inlay.Lora(r=16)`.
        - `name`: what to call it; the directory's name, or 'default', unless given.
        - `seed`: for the tensors of a new adapter.
        - `check`: see `read`.

        **Raises:**

        - `UnknownNameError`, `FormatError`: see `inlay.formats.read`.
        - `CompatibilityError`: it does not fit this model.
        - `ConfigError`: the name is taken, by another adapter than the one in that directory.
        """
        if isinstance(source, Method):
            return self.create(source, name or "default", seed)
        name = name or Path(source).resolve().name
        if name not in self:
            return self._bound(self.read(source, name, check))()
        if not (store.is_here(source) and self[name].is_same(self.read(source, name, check))):
            self._check_free(name)
        self.active = name
        return self[name]

    def read(self, source: str | Path, name: str, check: Check = lambda *about: None) -> Adapter:
        """An adapter from disk or the hub, which fits this model, and not attached; see `attach`.

        **Arguments:**

        - `check`: called with the name and the adapter's file, or its outline, before it is compared with the model; it raises
          where the adapter is not for this model by what is known of both besides.
        """

        def fit(file: AdapterFile) -> AdapterFile:
            check(name, file)
            return fitted(name, file, self.layout, self.facts, heads=self.heads, title=self.title)

        file = formats.read(source, fit)
        check_heard(name, file, self.layout)
        return Adapter(name, file.method, file.params, file.record, file.shared)

    def save(
        self, name: str, directory: str | Path, record: Mapping[str, Any] | None = None, *, form: str = "peft"
    ) -> None:
        """Write an attached adapter into `directory`, which exists; see `inlay.formats.write`.

        **Arguments:**

        - `record`: what `inlay.json` says beside the name of the model, which it may say itself.
        - `form`: the name of the format.

        **Raises:**

        - `UnknownNameError`: no such adapter is attached, or there is no such format.
        - `CompatibilityError`: the format has no place for it as it is; every reason is named.
        """
        adapter = self[name]
        method, params = adapter.kept()
        about = {"base": {"name": self.title}, **(record or {})}
        file = AdapterFile(
            method=method, params=dict(params), shared=adapter.shared, model=self.facts, name=name, record=about
        )
        formats.write(Path(directory), file, form)

    def create(
        self, method: Method, name: str = "default", seed: int = 0, calibration: Calibration | None = None
    ) -> Adapter:
        """Attach a new adapter and make it active; see `fresh`."""
        return self._bound(self.fresh(method, name, seed, calibration))()

    def fresh(
        self, method: Method, name: str = "default", seed: int = 0, calibration: Calibration | None = None
    ) -> Adapter:
        """A new adapter for this model, its tensors drawn from `seed`, and not attached.

        `calibration` gives what its initialiser needs beside the weights, by the path of each layer.

        **Raises:**

        - `TargetError`: the method names modules that the model does not have, or finds nothing to change in it.
        - `ConfigError`: the name is taken, or the method does not fit a layer.
        """
        self._check_free(name)
        params, shared = self.layout.fresh(method, torch.Generator().manual_seed(seed), calibration)
        if left_out := self.layout.left_out(method):
            warnings.warn(f"{name} leaves out {'; '.join(targets.reasons(left_out))}", stacklevel=5)
        return Adapter(name, method, params, shared=shared)

    def put(self, adapter: Adapter) -> Adapter:
        """Attach an adapter whose tensors exist, and make it active.

        **Raises:**

        - `ConfigError`: the name is taken.
        - `CompatibilityError`: its tensors are not those that its method has for this model; the message lists all.
        """
        return self.prepared(adapter)()

    def prepared(self, adapter: Adapter) -> Callable[[], Adapter]:
        """What attaches an adapter and makes it active, with all done that a pass under way does not see; see `put`."""
        self._check_free(adapter.name)
        if problems := self.layout.problems(adapter.method, adapter.params):
            raise CompatibilityError(
                explain(f"adapter {adapter.name} does not fit this model", found=problems, do="use the base it names")
            )
        return self._bound(adapter)

    def _bound(self, adapter: Adapter) -> Callable[[], Adapter]:
        """What attaches an adapter that is known to fit, and makes it active."""
        bind_(adapter, self.layout, targets.device_of(self.module))
        return lambda: self._place_(adapter)

    def _place_(self, adapter: Adapter) -> Adapter:
        for path in self._changed_by(adapter):
            if path not in self._adapted:
                self._adapted[path] = (self._wrapper(path), set())
                self._set_(path, self._adapted[path][0])
            self._adapted[path][1].add(adapter.name)
        if adapter.num_virtual and not any(held.num_virtual for held in self._held.values()):
            self.module.forward = prompts.prompted(self.module, self.router)
        self._held[adapter.name] = adapter
        self._alone[adapter.name] = Current(adapter.name, Batch(adapter))
        self.active = adapter.name
        if adapter.prompt:
            try:
                self._trials.check(adapter.prompt)
            except CompatibilityError:
                self.detach(adapter.name)
                raise
        return adapter

    def _wrapper(self, path: str) -> Adapted:
        """What stands in the place of the module at `path` while an adapter changes it."""
        module = self.layout.modules[path]
        if maps := self.layout.parameters.get(path):
            return AdaptedParameters(path, module, maps, self.router)
        wrapper = PromptedEmbedding if path == self.table else Adapted
        return wrapper(path, module, self.maps.get(path), self.router)

    def detach(self, name: str) -> Adapter:
        """Take an adapter out, and return it; layers that no other adapter needs become the base's own again."""
        adapter = self[name]
        del self._held[name], self._alone[name]
        self.router.set_(self._renewed(self.router.current))
        self.router.default = self._renewed(self.router.default)
        for path in self._changed_by(adapter):
            wrapper, needed_by = self._adapted[path]
            needed_by.discard(name)
            wrapper.forget()
            if not needed_by:
                del self._adapted[path]
                self._set_(path, self.layout.modules[path])
        if adapter.num_virtual and not any(held.num_virtual for held in self._held.values()):
            del self.module.forward
        adapter.bind_(None)
        return adapter

    def swap(self, name: str, adapter: Adapter) -> Adapter:
        """Put `adapter` in the place of the one called `name`, or change nothing; returns the one that was there.

        Whether it was active or not, the new one is too; its name becomes `name`.
        """
        before, active, default = self[name], self.router.current, self.router.default
        order, own_name = list(self._held), adapter.name
        self.detach(name)
        adapter.name = name
        try:
            self.put(adapter)
        except Exception:
            adapter.name = own_name
            self.put(before)
            raise
        finally:
            self._held = {key: self._held[key] for key in order}
            self.router.default = self._renewed(default)
            self.router.set_(self._renewed(active))
        return before

    def release(self) -> None:
        """Take every adapter out and let the module's parameters collect gradients as before."""
        for name in list(self._held):
            self.detach(name)
        for parameter in self._trained_before:
            parameter.requires_grad_(True)

    def _check_free(self, name: str) -> None:
        if name in self._held:
            do = f"another name=, or detach({name!r}) first, or swap({name!r}, ...)"
            raise ConfigError(explain("an adapter of that name is attached already", found=f"{name!r}", do=do))

    def parameters(self) -> list[Tensor]:
        """The tensors of the active adapter, set to collect gradients: what an optimiser takes."""
        if not isinstance(self.active, str):
            raise ConfigError(explain("there is not one active adapter to train", found=f"active: {self.active!r}"))
        return self[self.active].train_()

    def _renewed(self, current: Current) -> Current:
        """The same rows with the adapters that are attached now; the plain base, where one of them no longer is."""
        batch = current.batch
        if batch is None or all(self._held.get(adapter.name) is adapter for adapter in batch.adapters):
            return current
        if not all(name in self._held for name in _names(current.rows)):
            return PLAIN
        return self._current(current.rows, batch.brings, batch.generator)

    def _current(self, rows: Rows, brings: bool = False, generator: Generators = None) -> Current:
        if rows is None:
            return PLAIN
        if isinstance(rows, str):
            batch = Batch(self[rows], brings=brings, generator=generator)
            return Current(rows, batch) if brings or generator else self._alone[rows]
        every = [None if row is None else self[row] for row in rows]
        batch = Batch(every, brings=brings, generator=generator)
        changed = [path for adapter in batch.adapters for path in self._changed_by(adapter)]
        if changed:
            batch.follow_(self.layout.order, self.layout.whole, changed)
        return Current(rows, batch)

    def _changed_by(self, adapter: Adapter) -> list[str]:
        """The modules that stand under a wrapper for this adapter."""
        table = [self.table] if adapter.num_virtual and self.table else []
        return list(dict.fromkeys(self.layout.module_of(path) for path in (*adapter.bound, *table)))

    def _set_(self, path: str, module: nn.Module) -> None:
        """Put a module wherever the model holds the one that it calls `path`: some hold one module under several names."""
        for parent, name in self._places[id(self.layout.modules[path])]:
            parent._modules[name] = module


def _check(module: nn.Module) -> None:
    """Refuse a module that can't hold adapters, and keep torch from passing them by."""
    if isinstance(module, nn.Linear):
        found, do = f"{module}, which stands in no other module", "torch.nn.Sequential(layer)"
        raise TargetError(explain("a linear layer can't be adapted from within itself", found=found, do=do))
    if any(isinstance(part, nn.TransformerEncoderLayer) for part in module.modules()):
        torch.backends.mha.set_fastpath_enabled(False)  # it reads the layers' weights


def _names(rows: Rows) -> set[str]:
    """The adapters that `rows` names."""
    return {row for row in ([rows] if isinstance(rows, str) else rows or ()) if row is not None}
