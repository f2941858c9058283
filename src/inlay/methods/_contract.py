"""What a method is: a small change of a frozen map, as a configuration and pure functions.

A method is a frozen dataclass. Its fields are its configuration: the docstring under each is its command-line help and its
reference page. Its functions are pure: the tensors of one module are passed in as a plain dict by the field's usual names
(`Params`). So saving an adapter is writing dicts, swapping is exchanging them, and batching is handing over several; none
of it needs anything from the method's author.

Its `__post_init__` begins with `inlay.fields.settle_`, so that whatever gives the configuration, a file, a flag or a program,
the fields hold values of their types.

A method never learns what the base is made of: it sees the four members of `LinearBase`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core.routed import Factors
from inlay.errors import ConfigError, explain

Params = dict[str, Tensor]
"""The tensors of one adapted module, by name."""

Names = str | tuple[str, ...]
"""Which modules: 'all-linear', names separated by commas, or a regular expression; or a tuple of names.

A string with one of the characters * + ? ( ) [ ] | \\ ^ $ is a regular expression for the whole module path; one
that takes longer than `MATCH_SECONDS` over a path is refused. A name is a module's whole path or its end: `q_proj` and
`self_attn.q_proj` both name every query projection.
"""

Layers = tuple[int, ...]
"""Layer numbers, from 0; on the command line as `0-5,11`."""

MATCH_SECONDS = 0.2
"""A regular expression that is longer than this over one module's path is refused."""

Self = TypeVar("Self", bound="LinearMethod")


@runtime_checkable  # the tests check it where they check shapes
class LinearBase(Protocol):
    """A frozen linear map y = W x + b, however it is stored."""

    in_features: int
    out_features: int

    @property
    def bias(self) -> Float[Tensor, " out"] | None: ...

    def weight(self, dtype: torch.dtype) -> Float[Tensor, "out in"]: ...

    def __call__(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearMethod(abc.ABC):
    """A change to linear maps. What every such method has: which maps it changes."""

    target_modules: Names = "all-linear"
    """Which linear layers: all-linear (all but the output head), names with commas between, or a regular expression."""

    exclude_modules: Names = ()
    """Layers to leave alone, in the same three forms; it wins over target_modules."""

    layers_to_transform: Layers | None = None
    """Adapt only these layers of the stack, such as 0-5,11; none given: all of them."""

    peft_type: ClassVar[str] = ""
    """The method's name in the exchange format; empty where PEFT has no such method."""

    peft_tensors: ClassVar[Mapping[str, str]] = {}
    """What the exchange format calls each tensor after the module's path, where that is not the tensor's own name."""

    peft_defaults: ClassVar[Mapping[str, Any]] = {}
    """What the exchange format means by leaving a field out, where that is not the field's own default."""

    peft_accepts: ClassVar[Mapping[str, Callable[[Any], bool]]] = {}
    """Keys of the exchange format that this method has no field for, and the test that a value changes nothing here."""

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
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens out"],
        base: LinearBase,
    ) -> Float[Tensor, "tokens out"]:
        """What is added to y = base(x); zero for fresh tensors."""

    @abc.abstractmethod
    def merge(
        self, params: Params, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
    ) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
        """The weight and bias of one map that does what base and change do together; the arguments are not changed."""

    @abc.abstractmethod
    def rows(self, params: Params, start: int, stop: int) -> Params:
        """The tensors that change the outputs start <= i < stop alone, so that a weight can be merged piece by piece."""

    @abc.abstractmethod
    def factors(self, params: Params) -> Factors | None:
        """The change as low-rank factors, or None where it has none: with them, mixed batches take the fast path."""

    @abc.abstractmethod
    def for_module(self: Self, path: str) -> Self:
        """This method as it applies to the module at `path`: itself, unless it has settings by module."""

    @property
    @abc.abstractmethod
    def patterns(self) -> Sequence[str]:
        """The module patterns that `for_module` looks for; one that matches nothing is an error."""

    @abc.abstractmethod
    def describe(self) -> str:
        """The settings that matter most, for one line on the screen: 'r=16 lora_alpha=32 (scaling 2)'."""

    @property
    @abc.abstractmethod
    def learning_rate_scale(self) -> float:
        """What the default learning rate of the base is multiplied by, so that the change moves as fast as with LoRA's
        defaults."""

    @property
    @abc.abstractmethod
    def input_dropout(self) -> float:
        """The part of the inputs that the change does not see while it is trained, 0 <= p < 1."""


def matches(pattern: str, path: str) -> bool:
    """The regular expression `pattern` is the whole of `path`.

    Found with `regex`, which can stop: adapters from elsewhere bring their patterns with them, and `re` tries (.*)*(.*)*x
    for longer than anyone waits.

    **Raises:**

    - `ConfigError`: it takes longer than `MATCH_SECONDS`.
    """
    import regex

    try:
        return regex.fullmatch(pattern, path, timeout=MATCH_SECONDS) is not None
    except (TimeoutError, regex.error) as error:
        raise ConfigError(
            explain(
                "a regular expression says in reasonable time which modules it means",
                found=f"{pattern!r}: {str(error) or 'no answer'} on {path}",
                do="names with commas between, or an expression without a repeat within a repeat",
            )
        ) from None


def matches_end(key: str, path: str) -> bool:
    """`key` is the end of `path` from a dot on: how the exchange format looks up `rank_pattern` and the like."""
    return matches(rf"(.*\.)?({key})", path)


def require(condition: bool, wrong: str, found: str, do: str) -> None:
    """Refuse a configuration: raise `ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(explain(wrong, found=found, do=do))
