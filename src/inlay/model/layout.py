"""What a method has for a model: which modules it changes, and the shape of every tensor.

Nothing here reads a weight, unless fresh tensors start from it: on the meta device the tensors of any method on any model are
known, and counted, in milliseconds.
"""

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from inlay.errors import ConfigError, TargetError, explain, nearest
from inlay.methods import name_of
from inlay.methods._contract import TOKEN_ROWS, BlockMethod, Decoder, LinearMethod, Method, Own, Params, PromptMethod
from inlay.model import targets
from inlay.model.experts import Experts, stacked
from inlay.model.frozen import QuantizedLinear
from inlay.model.linear import Linear
from inlay.names import is_inside, is_regex, selects, split

Measured = Callable[[str], Tensor]
"""The matrix that the factors of the map at a path are found in, see `inlay.initializers.Source`: float32."""

Shapes = dict[str, dict[str, tuple[int, ...]]]
"""The shapes of tensors, by module path and name."""


class Layout:
    """The parts of a model that methods change, found once, before any adapter is on it.

    **Attributes:**

    - `modules`: every module, by path.
    - `maps`: those of them that are linear maps, embeddings or convolutions, and the parameters of fused experts.
    - `head`: the path of the output head, where the model has one.
    - `blocks`: the blocks of the layers, by the path of the map that speaks for each.
    - `table`: the path of the input embedding, where it has one.
    - `tied`: modules that share their weight with an earlier one, by the path of that one.
    """

    def __init__(self, module: nn.Module, decoder: Callable[[], Decoder | None] = lambda: None):
        self.modules = dict(module.named_modules())
        self.maps = targets.maps_of(module)
        self.head = targets.output_head(module)
        self.blocks = targets.blocks(module, self.maps)
        self.tied = _tied(self.modules)
        self.table = targets.input_embedding(self.modules)
        self._find_decoder = decoder

    def count(self, method: Method) -> int:
        """How many weights `method` trains on this model, once a network that only training has is gone."""
        return sum(
            math.prod(shape)
            for shapes in self.wanted(method).values()
            for name, shape in shapes.items()
            if method.rate(name)
        )

    def wanted(self, method: Method, strict: bool = True) -> Shapes:
        """The shape of every tensor that `method` has for this model, by module path and name.

        **Arguments:**

        - `strict`: refuse names that match nothing, see `targets.resolve`, and a model that has nothing to train.

        **Raises:**

        - `TargetError`: see there.
        """
        shapes: Shapes = {}
        if isinstance(method, LinearMethod):
            paths = targets.resolve(method, self.maps, self.head, strict)
            if strict:
                self._check_experts(method, paths)
            for path in paths:
                one = method.for_module(path)
                assert isinstance(one, LinearMethod), "a method for one module is of the method's kind"
                shapes[path] = _shapes(one, self.maps[path])
        elif isinstance(method, BlockMethod):
            shapes = {path: method.shapes(self.blocks[key]) for path, key in self._block_places(method).items()}
        elif isinstance(method, PromptMethod):
            shapes = {"": {"prompt_embeddings": (method.num_virtual_tokens, method.numbers(self._decoder()))}}
        for own, parameter in self._trained(method, shapes):
            shapes.setdefault(own.path, {})[own.name] = tuple(parameter.shape)
        for path, rows in self._token_rows(method).items():
            shapes.setdefault(path, {})[TOKEN_ROWS] = tuple(rows.shape)
        if strict and not shapes:
            self._refuse_empty(method)
        return shapes

    def fresh(
        self, method: Method, generator: torch.Generator, measured: Measured | None = None
    ) -> tuple[dict[str, Params], Params]:
        """New tensors of `method` for this model, by module path, and those that all modules share; see `wanted`.

        `measured` finds what the tensors start from, where that is more than the weights as they are.
        """
        params: dict[str, Params] = {}
        shared: Params = {}
        if isinstance(method, LinearMethod):
            paths = targets.resolve(method, self.maps, self.head)
            self._check_experts(method, paths)
            shared = method.shared([self.maps[path].one for path in paths])
            for path in paths:
                one = method.for_module(path)
                assert isinstance(one, LinearMethod), "a method for one module is of the method's kind"
                linear = self.maps[path]
                if isinstance(linear, Experts):
                    check_source(one, {path: linear})
                    params[path] = stacked([_fresh(one, e, path, generator, None) for e in linear.each])
                else:
                    params[path] = _fresh(one, linear, path, generator, measured)
        elif isinstance(method, BlockMethod):
            params = {
                path: method.init(self.blocks[key], generator) for path, key in self._block_places(method).items()
            }
        elif isinstance(method, PromptMethod):
            params = {"": method.init(self._decoder(), generator)}
        for own, parameter in self._trained(method, params):
            fresh = parameter.detach().to("cpu", torch.float32, copy=True)
            params.setdefault(own.path, {})[own.name] = fresh
        for path, rows in self._token_rows(method).items():
            params.setdefault(path, {})[TOKEN_ROWS] = rows.to("cpu", torch.float32)
        if not params:
            self._refuse_empty(method)
        return params, shared

    def problems(self, method: Method, params: Mapping[str, Params]) -> list[str]:
        """How these tensors differ from those that `method` has for this model; empty where they fit."""
        wanted, given = self.wanted(method.finished(), strict=False), method.finish(params)
        problems = [
            f"{path}: this model has no layer of that name that {name_of(method)} could change"
            for path in given
            if path not in wanted and path not in self.maps
        ]
        problems += [
            f"{path}: tensors, though target_modules does not name it"
            for path in given
            if path not in wanted and path in self.maps
        ]
        problems += [f"{path}: no tensors, though target_modules names it" for path in wanted if path not in given]
        for path, tensors in given.items():
            expected = wanted.get(path)
            if expected is None:
                continue
            dot = f"{path}." if path else ""
            problems += [f"{dot}{key}: missing" for key in expected if key not in tensors]
            problems += [f"{dot}{key}: not a tensor of this method" for key in tensors if key not in expected]
            problems += [
                f"{dot}{key}: shape {tuple(tensor.shape)}, here {expected[key]}"
                for key, tensor in tensors.items()
                if key in expected and tuple(tensor.shape) != expected[key]
            ]
        return problems

    def _decoder(self) -> Decoder:
        found = self._find_decoder()
        if found is None:
            raise TargetError(
                explain(
                    "virtual tokens stand in front of the rows of a language model",
                    found=type(self.modules[""]).__name__,
                    do="a method that changes layers, such as inlay.Lora()",
                )
            )
        return found

    def _block_places(self, method: BlockMethod) -> dict[str, str]:
        """Where the method's tensors are: the path of the module that it changes -> its block in `blocks`."""
        places = {key: block for key, block in self.blocks.items() if block.role in method.roles}
        for block in places.values() if method.is_parallel else ():
            first = next(linear for path, linear in self.maps.items() if path.startswith(f"{block.path}."))
            if first.in_features != block.width:
                raise TargetError(
                    explain(
                        "a parallel adapter stands beside a module that takes the model's stream",
                        found=f"{block.path}: {first.in_features} inputs, where the stream has {block.width} numbers",
                        do="--placement houlsby",
                    )
                )
        return {(block.path if method.is_parallel else key): key for key, block in places.items()}

    def module_of(self, path: str) -> str:
        """The path of the module that holds the map at `path`: its own, unless the map is a parameter of experts."""
        return path.rpartition(".")[0] if isinstance(self.maps.get(path), Experts) else path

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
            last = sorted({path.rpartition(".")[2] for path in paths})
            raise TargetError(
                explain(
                    "some of modules_to_save are no modules of this model",
                    found=f"{', '.join(missing)}; its modules are {', '.join(last)}",
                    do=f"--modules-to-save {nearest(missing[0], last) or last[0]}",
                )
            )
        return [path for path in paths if selects(names, path)]

    def _trained(self, method: Method, adapted: Collection[str]) -> list[tuple[Own, nn.Parameter]]:
        """The model's own tensors that are trained and kept: those that the method asks for, and whole modules by name."""
        saved = self.saved(method)
        packed = [path for path, linear in self.maps.items() if isinstance(linear.module, QuantizedLinear)]
        if any(path in saved or method.trains(Own(path, "weight", "linear", path in adapted)) for path in packed):
            raise TargetError(
                explain(
                    "a quantised weight can't be trained",
                    found=f"{name_of(method)} trains the weights of {len(packed)} quantised layers",
                    do="load the base without quantize, or --method lora",
                )
            )
        return [
            (own, parameter)
            for own, parameter, is_first in targets.own_tensors(self.modules, self.maps, adapted)
            if (is_first and method.trains(own)) or is_inside(own.path, saved)
        ]

    def _is_whole(self, method: Method, path: str) -> bool:
        """The weight of the module at `path` is trained whole."""
        return is_inside(path, self.saved(method)) or method.trains(Own(path, "weight", "embedding", False))

    def _check_experts(self, method: LinearMethod, paths: Collection[str]) -> None:
        """Refuse to leave experts out in silence, and to train their parameters whole and by factors at once."""
        unknown = targets.unknown_experts(self.modules) if method.target_modules == "all-linear" else []
        if unknown:
            last = dict.fromkeys(path.rpartition(".")[2] for path in paths)
            raise TargetError(
                explain(
                    "this model has experts of a form that is not known here: most of its linear layers would be left out",
                    found=unknown[:3],
                    do=f"--target-modules {','.join(last)}",
                )
            )
        both = [path for path in paths if self.module_of(path) != path and self._is_whole(method, self.module_of(path))]
        if both:
            what = "experts are trained whole by modules_to_save, or by factors"
            raise TargetError(explain(what, found=both[:3], do="--exclude-modules gate_up_proj,up_proj,down_proj"))

    def _token_rows(self, method: Method) -> Params:
        """The base's rows for the tokens whose embeddings are trained, by the path of the embedding."""
        ids, table = list(method.token_ids), self.maps.get(self.table or "")
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
            raise TargetError(explain("trainable_token_indices names tokens of the model", found=found, do=do))
        return {self.table: table.stored.detach()[ids]}

    def _refuse_empty(self, method: Method) -> None:
        raise TargetError(
            explain(
                f"this model has nothing that {name_of(method)} could train",
                found=f"{type(self.modules['']).__name__}: {method.describe()}",
                do="--method lora",
            )
        )


def _shapes(method: LinearMethod, linear: Linear) -> dict[str, tuple[int, ...]]:
    experts = (len(linear.each),) if isinstance(linear, Experts) else ()
    return {name: (*experts, *shape) for name, shape in method.shapes(linear.one).items()}


def _fresh(
    method: LinearMethod, linear: Linear, path: str, generator: torch.Generator, measured: Measured | None
) -> Params:
    """New tensors of one map."""
    try:
        params = method.init(linear, generator)
    except ConfigError as error:
        raise ConfigError(f"{error}, or --exclude-modules {path.rpartition('.')[2]}") from None
    if method.source == "weight":
        return method.start(params, linear.weight(torch.float32), generator)
    return method.start(params, _found(method, measured)(path), generator) if method.source else params


def check_source(method: LinearMethod, maps: Mapping[str, Linear]) -> None:
    """Refuse an initialiser that needs to know more of a map than there is: an embedding's inputs are no vectors."""
    wrong = [f"{path} is {linear.kind}" for path, linear in maps.items() if linear.kind not in ("linear", "conv2d")]
    if wrong and method.source not in (None, "weight"):
        what = f"an initialiser that needs the {method.source} of a map is for linear and conv2d"
        raise TargetError(explain(what, found=wrong[:10], do="other --target-modules, or --initializer uniform"))


def _found(method: LinearMethod, measured: Measured | None) -> Measured:
    if measured is None:
        raise ConfigError(
            explain(
                "what this adapter starts from is measured beforehand",
                found=f"{method.describe()}: it starts from the {method.source} of each layer",
                do="inlay.train(base, rows, method=...), or inlay train",
            )
        )
    return measured


def _tied(modules: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """The modules that share their weight with an earlier one, by the path of that one."""
    first: dict[int, str] = {}
    tied: dict[str, list[str]] = {}
    for path, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        source = first.setdefault(id(weight), path)
        if source != path:
            tied.setdefault(source, []).append(path)
    return tied
