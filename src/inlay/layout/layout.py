"""What a method has for a model: which modules it changes, and the shape of every tensor.

Nothing here reads a weight, unless fresh tensors start from it: on the meta device the tensors of any method on any model are
known, and counted, in milliseconds.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Collection, Mapping
from functools import cached_property

import torch
from torch import nn

from inlay.errors import TargetError, explain, nearest
from inlay.layout import places, targets
from inlay.layout.fresh import Calibration
from inlay.methods import hooks, name_of
from inlay.methods.contract import (
    TOKEN_ROWS,
    BlockMethod,
    Decoder,
    LinearMethod,
    Method,
    Own,
    Params,
    PromptMethod,
    by_kind,
)
from inlay.modules import trial
from inlay.modules.frozen import Quantized
from inlay.modules.linear import ParameterMaps
from inlay.modules.maps import check_known, maps_of
from inlay.names import is_inside, is_regex, selects, split

Shapes = dict[str, dict[str, tuple[int, ...]]]
"""The shapes of tensors, by module path and name."""


class Layout:
    """The parts of a model that methods change, found once, before any adapter is on it.

    **Attributes:**

    - `modules`: every module, by path.
    - `maps`: those of them that are linear maps, embeddings or convolutions, and parameters that hold several maps.
    - `parameters`: these parameters, by path, by the path of the module that they are of.
    - `head`: the path of the output head, where the model has one.
    - `blocks`: the blocks of the layers, by the path of each one's output projection.
    - `table`: the path of the input embedding, where it has one.
    - `tied`: modules that share their weight with an earlier one, by the path of that one.

    **Arguments:**

    - `decoder`: what prompts need to know of the model.
    - `plainly`: within its block the model computes without adapters.
    """

    def __init__(
        self,
        module: nn.Module,
        decoder: Callable[[], Decoder | None] = lambda: None,
        plainly: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ):
        self.modules = dict(module.named_modules())
        self.maps = maps_of(module)
        self.parameters: dict[str, dict[str, ParameterMaps]] = {}
        for path, linear in self.maps.items():
            if isinstance(linear, ParameterMaps):
                self.parameters.setdefault(linear.holder(path), {})[path] = linear
        self.head = targets.output_head(module)
        self.blocks = targets.blocks(module, self.maps)
        self.tied = _tied(self.modules)
        self.table = targets.input_embedding(self.modules)
        self._find_decoder, self._plainly = decoder, plainly
        self._fitting: tuple[Method, Shapes] | None = None
        """The method that was last compared with a model, and what it has for this one."""

    @cached_property
    def unused(self) -> dict[str, str]:
        """Modules and maps on which an adapter would have no effect, and why; see `inlay.modules.trial`."""
        with self._plainly():
            found = trial.unused(self.modules, self._holders)
        inner = {path: found[self.module_of(path)] for path in self.maps if self.module_of(path) in found}
        return found | inner

    @cached_property
    def order(self) -> trial.Order | None:
        """How the modules get the rows of a batch; None where it is not known."""
        with self._plainly():
            order = trial.row_order(self.modules, self._holders)
        if order is None:
            return None
        common = {path for path, m in self.maps.items() if m.kind != "embedding" and 0 in order.shared.get(path, ())}
        return order._replace(strange=order.strange | common)

    def first_position(self, limit: int) -> int:
        """The row of the table of positions that the first token gets, of as many rows as `limit`; 0 without such a table, or
        without weights."""
        tables = [
            p for p, m in self.maps.items() if m.kind == "embedding" and p != self.table and m.in_features == limit
        ]
        if not tables or targets.device_of(self.modules[""]).type == "meta":
            return 0
        with self._plainly():
            return trial.first_position(self.modules, tables)

    @cached_property
    def whole(self) -> dict[str, str]:
        """Modules whose own tensors can't be others for some rows of a batch, and why: one call has one set of them."""
        read = {path: why for path, why in self.unused.items() if why == trial.READ}
        read |= dict.fromkeys(self.order.stateful if self.order else (), "it keeps a state of all rows")
        return read | {
            path: "it holds tensors for the parts inside it"
            for path, module in self.modules.items()
            if path not in self.parameters and any(len(list(child.parameters())) for child in module.children())
        }

    @cached_property
    def _holders(self) -> list[str]:
        """The modules that hold what an adapter can change."""
        mapped = {*map(self.module_of, self.maps), *(block.path for block in self.blocks.values())}
        return [
            path
            for path, module in self.modules.items()
            if path and (path in mapped or any(tensor is not None for tensor in module._parameters.values()))
        ]

    def paths(self, method: LinearMethod, strict: bool = True, whole: bool = False) -> list[str]:
        """The maps that `method` adapts; see `targets.resolve`. `whole`: with those that are unused."""
        return targets.resolve(method, self.maps, self.head, strict, {} if whole else self.unused)

    def left_out(self, method: Method) -> dict[str, str]:
        """What `method` names, or all layers that it names are of, and is left out because it is unused; and why."""
        if not self.unused:
            return {}
        kept, every = self.wanted(method, strict=False), self.wanted(method, strict=False, whole=True)
        return {path: self.unused[path] for path in every if every[path] != kept.get(path) and path in self.unused}

    def count(self, method: Method) -> int:
        """How many weights `method` trains on this model, once a network that only training has is gone."""
        return sum(
            math.prod(shape)
            for shapes in self.wanted(method).values()
            for name, shape in shapes.items()
            if hooks.rate(method, name)
        )

    def wanted(self, method: Method, strict: bool = True, whole: bool = False) -> Shapes:
        """The shape of every tensor that `method` has for this model, by module path and name.

        **Arguments:**

        - `strict`: refuse names that match nothing, see `targets.resolve`, and a model that has nothing to train.
        - `whole`: count what is unused in.

        **Raises:**

        - `TargetError`: see there.
        """
        shapes: Shapes = {place.path: place.shapes() for place in self._places(method, strict, whole)}
        for own, parameter in self._trained(method, shapes, whole):
            shapes.setdefault(own.path, {})[own.name] = tuple(parameter.shape)
        for path, rows in self._token_rows(method).items():
            shapes.setdefault(path, {})[TOKEN_ROWS] = tuple(rows.shape)
        if strict and not shapes:
            self._refuse_empty(method)
        return shapes

    def fresh(
        self, method: Method, generator: torch.Generator, calibration: Calibration | None = None
    ) -> tuple[dict[str, Params], Params]:
        """New tensors of `method` for this model, by module path, and those that all modules share; see `wanted`.

        `calibration` gives what the initialiser needs beside the weights, by the path of each layer.
        """
        chosen = self._places(method)
        shared = hooks.shared(method, [self.maps[place.path].one for place in chosen if place.path in self.maps])
        params = {place.path: place.new(generator, calibration) for place in chosen}
        for own, parameter in self._trained(method, params):
            tensor = parameter.detach().to("cpu", torch.float32, copy=True)
            params.setdefault(own.path, {})[own.name] = tensor
        for path, rows in self._token_rows(method).items():
            params.setdefault(path, {})[TOKEN_ROWS] = rows.to("cpu", torch.float32)
        if not params:
            self._refuse_empty(method)
        return params, shared

    def _places(self, method: Method, strict: bool = True, whole: bool = False) -> list[places.Place]:
        """Where `method` adds something, whatever its kind; see `wanted`."""
        return by_kind(
            method,
            maps=lambda method: self._on_maps(method, strict, whole),
            blocks=lambda method: self._on_blocks(method, whole),
            front=lambda method: [places.in_front(method, self._decoder(method))],
            none=[],
        )

    def _on_maps(self, method: LinearMethod, strict: bool, whole: bool) -> list[places.Place]:
        paths = self.paths(method, strict, whole)
        if strict:
            self._check_parameters(method, paths)
        return [places.on_map(hooks.for_module(method, path), path, self.maps[path]) for path in paths]

    def problems(self, method: Method, params: Mapping[str, Params]) -> list[str]:
        """How these tensors differ from those that `method` has for this model; empty where they fit."""
        finished, given = hooks.finished(method), hooks.finish(method, params)
        if self._fitting is None or self._fitting[0] != finished:  # most adapters of a model are of one method
            self._fitting = copy.deepcopy(finished), self.wanted(finished, strict=False)
        needed = self._fitting[1]
        if needed == {
            path: {key: tuple(tensor.shape) for key, tensor in tensors.items()} for path, tensors in given.items()
        }:
            return []
        wanted = self.wanted(finished, strict=False, whole=True) if self.unused else needed
        others = [path for path in given if path not in wanted]
        what = f"this model has no layer of that name that {name_of(method)} could change"
        problems = [f"{path}: {what}" for path in others if path not in self.maps]
        problems += [f"{path}: tensors, though target_modules does not name it" for path in others if path in self.maps]
        problems += [f"{path}: no tensors, though target_modules names it" for path in needed if path not in given]
        for path, tensors in given.items():
            if path in wanted:
                expected = needed.get(path, {})
                problems += _differences(path, tensors, expected if set(tensors) <= set(expected) else wanted[path])
        return problems

    def _decoder(self, method: PromptMethod) -> Decoder:
        found, model = self._find_decoder(), type(self.modules[""]).__name__
        if found is not None and method.is_prefix and not found.num_layers * found.num_heads * found.head_dim:
            what = "this model has no keys and values of one width in every layer that could be a prefix's"
            raise TargetError(explain(what, found=model, do="--method prompt, or --method lora"))
        if found is None:
            what = "this model has no rows of tokens to put virtual tokens in front of"
            raise TargetError(explain(what, found=model, do="a method that changes layers, such as inlay.Lora()"))
        return found

    def _on_blocks(self, method: BlockMethod, whole: bool) -> list[places.Place]:
        found = {key: block for key, block in self.blocks.items() if block.role in method.roles}
        found = {key: block for key, block in found.items() if whole or key not in self.unused}
        for block in found.values() if method.is_parallel else ():
            first = next(linear for path, linear in self.maps.items() if path.startswith(f"{block.path}."))
            if first.in_features != block.width:
                what = "this module does not take the model's hidden states, so that no adapter can stand beside it"
                inputs = f"{block.path}: {first.in_features} inputs, where the stream has {block.width} numbers"
                raise TargetError(explain(what, found=inputs, do="--placement houlsby"))
        paths = {key: block.path if method.is_parallel else key for key, block in found.items()}
        return [places.on_block(method, paths[key], block) for key, block in found.items()]

    def module_of(self, path: str) -> str:
        """The path of the module that holds the map at `path`: its own, unless a parameter of it holds several."""
        return self.maps[path].holder(path) if path in self.maps else path

    def saved(self, method: Method) -> list[str]:
        """The modules that are trained whole, by `modules_to_save`; those inside them are trained with them.

        **Raises:**

        - `TargetError`: a name is no module of this model.
        """
        names, paths = method.modules_to_save, [path for path in self.modules if path]
        if not names:
            return []
        alone = [names] if is_regex(names) else split(names)
        missing = [name for name in alone if not any(selects(name, path) for path in paths)]
        if missing:
            last = sorted({name for path in paths if not (name := path.rpartition(".")[2]).isdigit()})
            what, found = "some of modules_to_save are no modules of this model", ", ".join(missing)
            do = f"--modules-to-save {nearest(missing[0], last) or 'lm_head,embed_tokens, for instance'}"
            raise TargetError(explain(what, found=f"{found}; its modules are {', '.join(last)}", do=do))
        return [path for path in paths if selects(names, path)]

    def _trained(self, method: Method, adapted: Collection[str], whole: bool = False) -> list[tuple[Own, nn.Parameter]]:
        """The model's own tensors that are trained and kept: those that the method asks for, and whole modules by name."""
        saved = self.saved(method)
        packed = [path for path, linear in self.maps.items() if isinstance(linear.module, Quantized)]
        if any(
            path in saved or hooks.trains(method, Own(path, "weight", "linear", path in adapted)) for path in packed
        ):
            found = f"{name_of(method)} trains the weights of {len(packed)} quantised layers"
            do = "load the base without quantize, or --method lora"
            raise TargetError(explain("a quantised weight can't be trained", found=found, do=do))
        return [
            (own, parameter)
            for own, parameter, is_first in targets.own_tensors(self.modules, self.maps, adapted)
            if (is_first and hooks.trains(method, own) and (whole or not self._is_mute(own.path)))
            or is_inside(own.path, saved)
        ]

    def _is_mute(self, path: str) -> bool:
        """Other tensors of the module at `path` would change nothing, here or in a module that shares them."""
        holders = (path, *self.tied.get(path, ()))
        return all(self.unused.get(holder, trial.READ) != trial.READ for holder in holders)

    def _is_whole(self, method: Method, path: str) -> bool:
        """The weight of the module at `path` is trained whole."""
        return is_inside(path, self.saved(method)) or hooks.trains(method, Own(path, "weight", "embedding", False))

    def _check_parameters(self, method: LinearMethod, paths: Collection[str]) -> None:
        """Refuse to leave maps of no known form out in silence, and to train parameters whole and by factors at once."""
        if method.target_modules == "all-linear":
            check_known(self.modules, paths)
        both = [path for path in paths if self.module_of(path) != path and self._is_whole(method, self.module_of(path))]
        if both:
            what = "parameters are asked to be trained both whole and by factors"
            names = ",".join(dict.fromkeys(self.maps[path].name for path in both))
            raise TargetError(explain(what, found=both[:3], do=f"--exclude-modules {names}"))

    def _token_rows(self, method: Method) -> Params:
        """The base's rows for the tokens whose embeddings are trained, by the path of the embedding."""
        ids, table = list(hooks.token_ids(method)), self.maps.get(self.table or "")
        if not ids:
            return {}
        if self.table is None or table is None or table.kind != "embedding":
            found = f"{type(self.modules['']).__name__}: its input embedding is no table that is only read"
            raise TargetError(explain("this model has no embeddings of single tokens to train", found=found))
        whole = [path for path in (self.table, *self.tied.get(self.table, ())) if self._is_whole(method, path)]
        if whole:
            found, do = f"trained whole: {', '.join(whole)}", "one of the two: the module holds the rows"
            raise TargetError(
                explain("rows of single tokens can't be trained beside the whole table", found=found, do=do)
            )
        wrong = sorted({i for i in ids if not 0 <= i < table.in_features or ids.count(i) > 1})
        if wrong:
            found = f"{', '.join(map(str, wrong))}, in {len(ids)} tokens, where the model has {table.in_features}"
            do = f"numbers from 0 to {table.in_features - 1}, each once"
            raise TargetError(
                explain("trainable_token_indices names tokens that the model does not have", found=found, do=do)
            )
        return {self.table: table.stored.detach()[ids]}

    def _refuse_empty(self, method: Method) -> None:
        raise TargetError(
            explain(
                f"this model has nothing that {name_of(method)} could train",
                found=f"{type(self.modules['']).__name__}: {method.describe()}",
                do="--method lora",
            )
        )


def _differences(path: str, tensors: Params, expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """How the tensors of one module differ from the shapes that they are expected to have."""
    dot = f"{path}." if path else ""
    found = [f"{dot}{key}: missing" for key in expected if key not in tensors]
    found += [f"{dot}{key}: not a tensor of this method" for key in tensors if key not in expected]
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key in expected}
    return found + [f"{dot}{key}: shape {s}, here {expected[key]}" for key, s in shapes.items() if s != expected[key]]


def _tied(modules: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """The modules that share their weight with an earlier one, by the path of that one."""
    first: dict[int, str] = {}
    tied: dict[str, list[str]] = {}
    for path, module in modules.items():
        held = module.matrix if isinstance(module, Quantized) else module._parameters.get("weight")
        if held is None:
            continue
        source = first.setdefault(id(held), path)
        if source != path:
            tied.setdefault(source, []).append(path)
    return tied
