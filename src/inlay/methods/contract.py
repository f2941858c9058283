"""What a method is: a small change of a frozen map, as a configuration and pure functions.

    Method
    |-- LinearMethod        a change beside linear maps: DoRA, (IA)^3 ...
    |   `-- LowRankMethod   one that is a product of two factors: LoRA ...
    |-- BlockMethod         a change of what a block says: bottleneck adapters
    |-- PromptMethod        tokens or keys and values in front of the rows: prompt tuning, prefix tuning ...
    `-- (Method itself)     no new tensors: some of the model's own are trained: BitFit, norms, everything

What only some methods have, such as a dropout, is in `inlay.methods.hooks`. A function that has a body here is not replaced:
whatever a method has to say for itself is abstract. A class that does not keep to that is refused where it is defined; see
`inlay.plugins.Contract`.

A method is a frozen dataclass. Its fields are its configuration: the docstring under each is its command-line help and its
reference page. Its functions are pure: the tensors of one module are passed in as a plain dict by the field's usual names
(`Params`). So saving an adapter is writing dicts, swapping is exchanging them, and batching is handing over several; none
of it needs anything from the method's author.

A tensor of an adapter that is called as one of the module's own (`weight`, `bias`) stands in its place: that is how
every method can train biases or whole modules beside what it adds, and what `Method.trains` chooses.

`Method.__post_init__` brings every field into its type, so that it may come from a file, a flag or a program; a method that
checks more calls it first.

A method never learns what the base is made of: it sees the members of `LinearBase`, `Own`, `Block` or `Decoder`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from inlay import fields
from inlay.core import lowrank
from inlay.core.routed import Factors
from inlay.errors import CompatibilityError, ConfigError, explain
from inlay.names import Names, joined
from inlay.plugins import Contract

Params = dict[str, Tensor]
"""The tensors of one adapted module, by name."""

TOKEN_ROWS = "token_rows"
"""The embeddings of single tokens, (tokens, width), among the tensors of the embedding; `Method.token_ids` says which."""

Layers = tuple[int, ...]
"""Layer numbers, from 0; on the command line as `0-5,11`."""

STACK = "experts"
"""The kind of a parameter that holds a map for each expert."""

KINDS = ("linear", "embedding", "conv2d", STACK)
"""What maps there are: linear layers, tables whose rows are read, convolutions, stacks of maps."""

Answer = TypeVar("Answer")


@runtime_checkable  # the tests check it where they check shapes
class LinearBase(Protocol):
    """A frozen linear map y = W x + b, however it is stored.

    `product(x)` is W x; `square_norms` are the |W|^2 of the rows, found once.

    An embedding is one too: its inputs are one-hot, handed over as the numbers of their ones (`inlay.core.lowrank.project`).
    So is a convolution, whose inputs are patches of the image.
    """

    in_features: int
    out_features: int

    @property
    def bias(self) -> Float[Tensor, " out"] | None: ...

    @property
    def square_norms(self) -> Float[Tensor, " out"]: ...

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]: ...

    def product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"]: ...


class Own(NamedTuple):
    """One of the model's own tensors, as `Method.trains` sees it."""

    path: str
    """The module that holds it."""
    name: str
    """What the module calls it: weight, bias."""
    kind: str
    """What the module is: linear, embedding, conv2d, norm, or other."""
    is_adapted: bool
    """The method adds something to this module."""


class Block(NamedTuple):
    """A place where a block of the model says something of the model's width: the last map of an attention, or of an MLP."""

    path: str
    role: str
    """attention or mlp."""
    width: int


class Decoder(NamedTuple):
    """What prompts need to know of a model."""

    num_layers: int
    width: int
    """Numbers in an embedding."""
    num_heads: int
    """Heads of the keys and values, which several heads of the queries may share; 0 where its layers are of another kind."""
    head_dim: int
    embed: Callable[[Tensor], Tensor]
    """The embeddings of token ids."""
    tokenize: Callable[[str], Sequence[int]]
    num_tokens: int
    """Size of the vocabulary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftForm:
    """What PEFT's files call a method, its tensors and its settings: for `inlay.formats.peft`, which alone reads it."""

    type: str = ""
    """The method's `peft_type`; empty where PEFT has no such method, whose files have the name of its class."""

    tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What a file calls each tensor after the module's path, where that is not the tensor's own name."""

    embedding_tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Likewise, for modules that are embeddings."""

    kernels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The tensors that have another shape there for convolutions: `kernel` (rows, channels, height, width), `point` (rows,
    columns, 1, 1) or `channel` (1, rows, 1, 1)."""

    shared: tuple[str, ...] = ()
    """The tensors that all modules share."""

    selections: tuple[str, ...] = ()
    """Fields that name some of the target modules."""

    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What a file means by leaving a field out, where that is not the field's own default."""

    accepts: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Keys that this method has no field for, and the values that change nothing here."""

    ignores: tuple[str, ...] = ()
    """Keys that this method has no field for, and whose value changes nothing here."""

    writes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys that this method has no field for and that always have this value."""

    omits: tuple[str, ...] = ()
    """Fields that only training reads: a file has no place for them, `inlay.json` keeps them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(Contract, abstract=True):
    """What every method has. By itself it adds nothing: it trains tensors that the model has."""

    modules_to_save: Names = ()
    """Modules to train whole and keep with the adapter, such as score or lm_head: names, or a regular expression."""

    learning_rate_scale: ClassVar[float]
    """What the default learning rate of the base is multiplied by, so that the change moves as fast as with LoRA's defaults;
    benchmarks/method_rates.py measures it. What it owes to a setting is in `inlay.methods.hooks.Rates`."""

    peft: ClassVar[PeftForm] = PeftForm()
    """The form of its files."""

    unmergeable_because: ClassVar[str] = ""
    """Why base and change can't become one model without an adapter; empty where they can."""

    changes_at_start: ClassVar[bool] = False
    """Fresh tensors already change what the model says."""

    lengthens_rows: ClassVar[bool] = False
    """It puts virtual tokens in front of the rows."""

    def __post_init__(self) -> None:
        fields.settle_(self)

    @abc.abstractmethod
    def describe(self) -> str:
        """The settings that matter most, for one line on the screen: 'r=16 lora_alpha=32 (scaling 2)'."""


Kind = TypeVar("Kind", bound=Method)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearMethod(Method, abstract=True):
    """A change to linear maps. What every such method has: which maps it changes."""

    target_modules: Names = "all-linear"
    """Which linear layers: all-linear (but the head, and gates of one output), names with commas, or a regular expression."""

    exclude_modules: Names = ()
    """Layers to leave alone, in the same three forms; it wins over target_modules."""

    layers_to_transform: Layers | None = None
    """Adapt only these layers of the stack, such as 0-5,11; none given: all of them."""

    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    """What it can adapt, of `KINDS`; for experts it is a `LowRankMethod`."""

    def __init_subclass__(cls, **how: Any):
        super().__init_subclass__(**how)
        if STACK in cls.kinds and not issubclass(cls, LowRankMethod):
            wrong, do = "only a LowRankMethod can adapt experts", "kinds without experts, or factors"
            raise CompatibilityError(explain(wrong, found=f"{cls.__module__}.{cls.__qualname__}", do=do))

    @abc.abstractmethod
    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor for one module."""

    @abc.abstractmethod
    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        """New tensors for one module: float32, on the CPU, drawn from `generator` alone."""

    @abc.abstractmethod
    def delta(
        self,
        params: Params,
        x: Shaped[Tensor, "tokens *in"],
        y: Float[Tensor, "tokens out"],
        base: LinearBase,
    ) -> Float[Tensor, "tokens out"]:
        """What is added to y = base(x); zero for fresh tensors."""

    @abc.abstractmethod
    def merge(
        self, params: Params, weight: Float[Tensor, "rows in"], bias: Float[Tensor, " rows"] | None, start: int = 0
    ) -> tuple[Float[Tensor, "rows in"], Float[Tensor, " rows"] | None]:
        """The weight and bias of one map that does what base and change do together; the arguments are not changed.

        `weight` may be some rows of W, from `start` on, so that a large one is merged piece by piece.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankMethod(LinearMethod, abstract=True):
    """A change that is scaling B A x, with factors A (r, in) and B (out, r): mixed batches take the fast path, and it may
    adapt experts."""

    @abc.abstractmethod
    def factors(self, params: Params) -> Factors:
        """The factors, from the tensors of one module."""

    def delta(
        self,
        params: Params,
        x: Shaped[Tensor, "tokens *in"],
        y: Float[Tensor, "tokens out"],
        base: LinearBase,
    ) -> Float[Tensor, "tokens out"]:
        factors = self.factors(params)
        return lowrank.change(x, factors.A, factors.B, factors.scaling, y.dtype)

    def merge(
        self, params: Params, weight: Float[Tensor, "rows in"], bias: Float[Tensor, " rows"] | None, start: int = 0
    ) -> tuple[Float[Tensor, "rows in"], Float[Tensor, " rows"] | None]:
        factors = self.factors(params)
        return lowrank.merged(weight, factors.A, factors.B[start : start + len(weight)], factors.scaling), bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockMethod(Method, abstract=True):
    """A change of what blocks say. Which blocks: those whose role the method adapts."""

    unmergeable_because: ClassVar[str] = "its network adds depth to every layer, which no weight of the base can hold"

    @property
    @abc.abstractmethod
    def roles(self) -> tuple[str, ...]:
        """The blocks that it changes: attention, mlp, or both."""

    @property
    @abc.abstractmethod
    def is_parallel(self) -> bool:
        """The change sees what goes into the block; otherwise, what comes out of it."""

    @abc.abstractmethod
    def shapes(self, block: Block) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor for one block."""

    @abc.abstractmethod
    def init(self, block: Block, generator: torch.Generator) -> Params:
        """New tensors for one block: float32, on the CPU, drawn from `generator` alone."""

    @abc.abstractmethod
    def transform(self, params: Params, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """What is added to the block's output; near zero for fresh tensors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptMethod(Method, abstract=True):
    """Virtual tokens in front of every row, whose embeddings, or keys and values, are trained.

    What is kept is one tensor, `prompt_embeddings` (virtual tokens, numbers). A method that learns it through a network has the
    network's tensors in its place while it is trained, and `inlay.methods.hooks.Finishes` drops them. Either can be trained on.
    """

    num_virtual_tokens: int = 20
    """How many stand in front of a row."""

    peft: ClassVar[PeftForm] = PeftForm(
        tensors={"prompt_embeddings": "prompt_embeddings"},
        accepts={"num_transformer_submodules": (None, 1)},
        ignores=("num_attention_heads", "num_layers", "token_dim"),  # the model's, and the tensor has them
    )
    unmergeable_because: ClassVar[str] = "its virtual tokens stand in the rows, not in the weights"
    is_prefix: ClassVar[bool] = False
    """The virtual tokens are keys and values for every layer, K V K V ... from layer 0 on; otherwise, embeddings."""
    changes_at_start: ClassVar[bool] = True
    lengthens_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        found = f"num_virtual_tokens={self.num_virtual_tokens}"
        require(self.num_virtual_tokens >= 1, "num_virtual_tokens must be at least 1", found, "--num-virtual-tokens 20")

    def numbers(self, model: Decoder) -> int:
        """How many numbers a virtual token has."""
        return 2 * model.num_layers * model.num_heads * model.head_dim if self.is_prefix else model.width

    @abc.abstractmethod
    def init(self, model: Decoder, generator: torch.Generator) -> Params:
        """New tensors: float32, on the CPU, drawn from `generator` alone."""

    @abc.abstractmethod
    def virtual(self, params: Params) -> Float[Tensor, "virtual numbers"]:
        """What the virtual tokens are."""

    def describe(self) -> str:
        return f"{self.num_virtual_tokens} virtual tokens"


def by_kind(
    method: Method,
    *,
    maps: Callable[[LinearMethod], Answer],
    blocks: Callable[[BlockMethod], Answer],
    front: Callable[[PromptMethod], Answer],
    none: Answer,
) -> Answer:
    """What one of these functions says of `method`, by what that changes: linear maps, blocks, or the front of the rows.

    `none`: the answer for a method that adds nothing. Nobody else asks which kind a method is.
    """
    if isinstance(method, LinearMethod):
        return maps(method)
    if isinstance(method, BlockMethod):
        return blocks(method)
    return front(method) if isinstance(method, PromptMethod) else none


def is_low_rank(method: Method) -> TypeGuard[LowRankMethod]:
    """The method changes a linear map by a product of two factors."""
    return isinstance(method, LowRankMethod)


def factors(method: Method, params: Params) -> Factors | None:
    """The change of one module as factors, from its tensors; None where the method's change is no product of two."""
    return method.factors(params) if is_low_rank(method) else None


def with_names(method: Kind, **more: Sequence[str]) -> Kind:
    """`method` with more names in fields such as `modules_to_save`; a field that it does not have is passed over."""
    have = {field.name for field in dataclasses.fields(method)}
    changes: dict[str, Any] = {key: joined(getattr(method, key), names) for key, names in more.items() if key in have}
    return dataclasses.replace(method, **changes)


def require(condition: bool, wrong: str, found: str, do: str) -> None:
    """Refuse a configuration: raise `ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(explain(wrong, found=found, do=do))
