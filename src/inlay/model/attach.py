"""Attaching adapters to a model and detaching them: an adapted module replaces the linear module that it wraps until its last
adapter is detached. The base's bytes, and the names of its modules, never change.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inlay import formats
from inlay.errors import CompatibilityError, ConfigError, TargetError, UnknownNameError, explain, few, nearest
from inlay.formats.contract import AdapterFile, ModelFacts
from inlay.methods.contract import Method, Params, PromptMethod
from inlay.model import prompts, targets
from inlay.model.adapted import Adapted
from inlay.model.adapted_experts import AdaptedExperts
from inlay.model.adapter import Adapter
from inlay.model.batch import PLAIN, Batch, Current, Router, Rows
from inlay.model.binding import bind_
from inlay.model.fitting import check_heard, is_same, layers
from inlay.model.fresh import Calibration
from inlay.model.layout import Layout
from inlay.model.prompt_trial import PromptTrials
from inlay.model.prompts import PromptedEmbedding
from inlay.modules.experts import experts_of


class Attached:
    """A frozen module and the adapters on it.

    **Attributes:**

    - `module`: the model; its parameters do not collect gradients while this object holds it.
    - `adapters`: the adapters that are attached, by name, in the order of attaching.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.adapters: dict[str, Adapter] = {}
        self.layout = Layout(module, lambda: prompts.decoder_of(module, self._tokenize), lambda: self.using(None))
        """What the model is made of, as it is without adapters."""
        self.maps = self.layout.maps
        """The maps that can be adapted, by path: linear layers, embeddings, convolutions."""
        self.linears = {path: linear for path, linear in self.maps.items() if linear.kind == "linear"}
        """The linear layers among them."""
        self.head = self.layout.head
        """The path of the output head, where the model has one."""
        self.table = self.layout.table
        """The path of the input embedding, where the model has one."""
        self._tokenize: Callable[[str], Sequence[int]] | None = None
        self.router = Router()
        self._alone: dict[str, Current] = {}  # what each adapter is for all rows
        self._adapted: dict[str, tuple[Adapted, set[str]]] = {}
        """The modules that stand under a wrapper, by path: the wrapper, and the adapters that need it."""
        self._trials = PromptTrials(module, self.router, self.layout)
        self._places = targets.places(module)
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
        return (
            f"{type(self.module).__name__} with {list(self.adapters.values()) or 'no adapter'}, active: {self.active!r}"
        )

    @property
    def active(self) -> Rows:
        """Which adapter the rows take now; set it to switch. Within `using` it is that of this thread or task."""
        return self.router.current.rows

    @active.setter
    def active(self, rows: Rows) -> None:
        self.router.set_(self._current(rows))

    @contextlib.contextmanager
    def using(self, rows: Rows, *, brings: bool = False, generator: torch.Generator | None = None) -> Iterator[None]:
        """Within the block the rows take these adapters: a name, one name or None per row, or None for the plain base.

        That holds in this thread or task; others may use the model at the same time, with adapters of their own.

        **Arguments:**

        - `brings`: the rows have the virtual tokens of their adapters in front.
        - `generator`: what dropout draws from; torch's own unless given.
        """
        try:
            with self.router.using(self._current(rows, brings, generator)):
                yield
        finally:
            current = self.router.current
            if (renewed := self._renewed(current)) is not current:  # one was detached or swapped within the block
                self.router.set_(renewed)

    @property
    def title(self) -> str:
        """What the model is called."""
        return type(self.module).__name__

    @property
    def task_type(self) -> str | None:
        """What the exchange format calls this kind of model; None where it has no name for it."""
        return "CAUSAL_LM" if hasattr(self.module, "prepare_inputs_for_generation") else None

    @property
    def about_task(self) -> dict[str, Any]:
        """What an adapter's record says of the task, where it is another than that of the kind."""
        return {}

    @property
    def facts(self) -> ModelFacts:
        """What a format has to know of the model."""
        model_type = getattr(getattr(self.module, "config", None), "model_type", None)
        return ModelFacts(self.base_name, self.task_type, model_type, type(self.module).__name__, layers(self.layout))

    def attach(
        self, source: str | Path | Method, name: str | None = None, *, force: bool = False, seed: int = 0
    ) -> Adapter:
        """Attach an adapter and make it active: one on disk or on the hub, or a new one of a method.

        **Arguments:**

        - `source`: a directory or hub name; or a method such as `inlay.Lora(r=16)`.
        - `name`: what to call it; the directory's name, or 'default', unless given.
        - `force`: attach it even though it was trained on another base.
        - `seed`: for the tensors of a new adapter.

        **Raises:**

        - `UnknownNameError`, `FormatError`: see `inlay.formats.read`.
        - `CompatibilityError`: it was trained on other weights or another tokenizer, or does not fit this model.
        - `ConfigError`: the name is taken.
        """
        if isinstance(source, Method):
            return self.create(source, name or "default", seed)
        self._check_name(name := name or Path(source).resolve().name)
        return self._place_(self.read(source, name, force=force))

    def read(self, source: str | Path, name: str, *, force: bool = False) -> Adapter:
        """An adapter from disk or the hub, checked against this model and not attached; see `attach`."""
        origin, fit = functools.partial(self._check_origin, name, force=force), functools.partial(self._fitting, name)
        file = fit(formats.read(source, lambda outline: (origin(outline), fit(outline))))
        check_heard(name, file, self.layout)
        return Adapter(name, file.method, file.params, file.record, file.shared)

    def _fitting(self, name: str, file: AdapterFile) -> AdapterFile:
        """An adapter's file as it applies to this model, whose layers it fits; of an outline, the shapes alone tell."""
        file = self._known(formats.placed(file, self.facts))
        problems = self.layout.problems(file.method, file.params) + self._other_weights(file.base_weights)
        if problems:
            ends = (self.table, self.head)
            resized = any(f"{end}.weight: shape" in problem for problem in problems for end in ends)
            what = ", with its vocabulary resized and saved with the tokenizer" if resized else ""
            hint = f"use the base it was trained on{what}: inlay inspect names it"
            raise CompatibilityError(explain(f"{name} does not fit {self.title}", found=few(problems), do=hint))
        return file

    def save(self, name: str, directory: Path, record: dict[str, Any], *, form: str = "peft") -> None:
        """Write an attached adapter into `directory`, which exists, with this record; see `inlay.formats.write`."""
        adapter = self.get(name)
        method, params = adapter.kept()
        about = {**self.about_base, **self.about_task, **record}
        file = AdapterFile(
            method=method, params=dict(params), shared=adapter.shared, model=self.facts, name=name, record=about
        )
        formats.write(directory, file, form)

    def create(
        self, method: Method, name: str = "default", seed: int = 0, calibration: Calibration | None = None
    ) -> Adapter:
        """Attach a new adapter and make it active; see `fresh`."""
        return self._place_(self.fresh(method, name, seed, calibration))

    def fresh(
        self, method: Method, name: str = "default", seed: int = 0, calibration: Calibration | None = None
    ) -> Adapter:
        """A new adapter for this model, its tensors drawn from `seed`, and not attached.

        `calibration` gives what its initialiser needs beside the weights, by the path of each layer.

        **Raises:**

        - `TargetError`: the method names modules that the model does not have, or finds nothing to change in it.
        - `ConfigError`: the name is taken, or the method does not fit a layer.
        """
        self._check_name(name)
        params, shared = self.layout.fresh(method, torch.Generator().manual_seed(seed), calibration)
        if left_out := self.layout.left_out(method):
            warnings.warn(f"{name} leaves out {'; '.join(targets.reasons(left_out))}", stacklevel=4)
        return Adapter(name, method, params, shared=shared)

    def put(self, adapter: Adapter) -> Adapter:
        """Attach an adapter whose tensors exist, and make it active.

        **Raises:**

        - `ConfigError`: the name is taken.
        - `CompatibilityError`: its tensors are not those that its method has for this model; the message lists all.
        """
        self._check_name(adapter.name)
        if problems := self.layout.problems(adapter.method, adapter.params):
            raise CompatibilityError(
                explain(f"adapter {adapter.name} does not fit this model", found=problems, do="use the base it names")
            )
        return self._place_(adapter)

    def _place_(self, adapter: Adapter) -> Adapter:
        """Attach an adapter that is known to fit, and make it active."""
        bind_(adapter, self.layout, targets.device_of(self.module))
        for path in self._changed_by(adapter):
            if path not in self._adapted:
                self._adapted[path] = (self._wrapper(path), set())
                self._set_(path, self._adapted[path][0])
            self._adapted[path][1].add(adapter.name)
        if adapter.num_virtual and not any(held.num_virtual for held in self.adapters.values()):
            self.module.forward = prompts.prompted(self.module, self.router)
        self.adapters[adapter.name] = adapter
        self._alone[adapter.name] = Current(adapter.name, Batch(adapter))
        self.active = adapter.name
        if isinstance(adapter.method, PromptMethod):
            try:
                self._trials.check(adapter.method)
            except CompatibilityError:
                self.detach(adapter.name)
                raise
        return adapter

    def _wrapper(self, path: str) -> Adapted:
        """What stands in the place of the module at `path` while an adapter changes it."""
        module = self.layout.modules[path]
        if experts := {f"{path}.{e.name}": e for e in experts_of(module)}:
            return AdaptedExperts(path, module, experts, self.router)
        wrapper = PromptedEmbedding if path == self.table else Adapted
        return wrapper(path, module, self.maps.get(path), self.router)

    def _known(self, file: AdapterFile) -> AdapterFile:
        """An adapter's file as it applies to this model."""
        return file

    @property
    def about_base(self) -> dict[str, Any]:  # what an adapter's record says of it
        return {"base": {"name": self.title}}

    @property
    def base_name(self) -> str | None:  # a name or a path by which others find it
        return None

    def _check_origin(self, name: str, file: AdapterFile, force: bool) -> None:
        """Refuse an adapter that was trained on another base, where that is known."""

    def _other_weights(self, copies: Params) -> list[str]:
        """The weights of the base that an adapter brings with it, where they are others than those here."""
        return [
            f"{path}: the file brings a weight of its own, and it is not this base's"
            for path, weight in copies.items()
            if path not in self.maps or not is_same(weight, self.maps[path].stored)
        ]

    def detach(self, name: str) -> Adapter:
        """Take an adapter out, and return it; layers that no other adapter needs become the base's own again."""
        adapter = self.get(name)
        del self.adapters[name], self._alone[name]
        self.router.set_(self._renewed(self.router.current))
        self.router.default = self._renewed(self.router.default)
        for path in self._changed_by(adapter):
            wrapper, needed_by = self._adapted[path]
            needed_by.discard(name)
            wrapper.forget()
            if not needed_by:
                del self._adapted[path]
                self._set_(path, self.layout.modules[path])
        if adapter.num_virtual and not any(held.num_virtual for held in self.adapters.values()):
            del self.module.forward
        adapter.unbind_()
        return adapter

    def swap(self, name: str, adapter: Adapter) -> Adapter:
        """Put `adapter` in the place of the one called `name`, or change nothing; returns the one that was there.

        Whether it was active or not, the new one is too; its name becomes `name`.
        """
        before, active, default = self.get(name), self.router.current, self.router.default
        order, own_name = list(self.adapters), adapter.name
        self.detach(name)
        adapter.name = name
        try:
            self.put(adapter)
        except Exception:
            adapter.name = own_name
            self.put(before)
            raise
        finally:
            self.adapters = {key: self.adapters[key] for key in order}
            self.router.default = self._renewed(default)
            self.router.set_(self._renewed(active))
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
        if not isinstance(self.active, str):
            raise ConfigError(explain("there is not one active adapter to train", found=f"active: {self.active!r}"))
        return self.get(self.active).train_()

    def _renewed(self, current: Current) -> Current:
        """The same rows with the adapters that are attached now; the plain base, where one of them no longer is."""
        batch = current.batch
        if batch is None or all(self.adapters.get(adapter.name) is adapter for adapter in batch.adapters):
            return current
        if not all(name in self.adapters for name in _names(current.rows)):
            return PLAIN
        return self._current(current.rows, batch.brings, batch.generator)

    def _current(self, rows: Rows, brings: bool = False, generator: torch.Generator | None = None) -> Current:
        if rows is None:
            return PLAIN
        if isinstance(rows, str):
            batch = Batch(self.get(rows), brings=brings, generator=generator)
            return Current(rows, batch) if brings or generator else self._alone[rows]
        every = [None if row is None else self.get(row) for row in rows]
        batch = Batch(every, brings=brings, generator=generator)
        changed = [path for adapter in batch.adapters for path in self._changed_by(adapter)]
        if changed:
            batch.follow_(self.layout.order, self.layout.whole, changed)
        return Current(rows, batch)

    def _check_name(self, name: str) -> None:
        if name in self.adapters:
            raise ConfigError(
                explain(
                    "an adapter of that name is attached already",
                    found=f"{name!r}",
                    do=f"another name=, or detach({name!r}) first, or swap({name!r}, ...)",
                )
            )

    def _changed_by(self, adapter: Adapter) -> list[str]:
        """The modules that stand under a wrapper for this adapter."""
        table = [self.table] if adapter.num_virtual and self.table else []
        return list(dict.fromkeys(self.layout.module_of(path) for path in (*adapter.bound, *table)))

    def _set_(self, path: str, module: nn.Module) -> None:
        """Put a module wherever the model holds the one that it calls `path`: some hold one module under several names."""
        for parent, name in self._places[id(self.layout.modules[path])]:
            parent._modules[name] = module


def attach(module: nn.Module, source: str | Path | Method, name: str | None = None, seed: int = 0) -> Attached:
    """Freeze any torch module and attach an adapter to it: a new one of a method, or one from disk; see `Attached.attach`.

    `Attached.parameters()` are to be trained, `Attached.save` writes them.
    """
    attached = Attached(module)
    attached.attach(source, name, seed=seed)
    return attached


def _names(rows: Rows) -> set[str]:
    """The adapters that `rows` names."""
    return {row for row in ([rows] if isinstance(rows, str) else rows or ()) if row is not None}
