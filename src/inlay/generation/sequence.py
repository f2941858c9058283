"""A request for an answer, and the answer as it is made: its tokens, and where the keys and values of these lie."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.generation.sampling import Sampling
from inlay.model.adapter import Adapter, Sum
from inlay.model.prompts import virtual_ids

Ending = Literal["stop", "length", "error", "aborted"]
"""Why an answer is over: a token that ends it, as many as were asked for, no token that could follow, or nobody waits."""


@runtime_checkable  # the tests check it where they check shapes
class Constraint(Protocol):
    """What the tokens of one answer may be, such as a grammar; it follows that answer and no other."""

    def allowed(self, num_tokens: int) -> Tensor | None:
        """Which of a vocabulary of so many tokens may come next, booleans (num_tokens,); None: none may."""
        ...

    def advance(self, token: int) -> None:
        """Go on behind the token that was drawn."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of the engine: tokens, the adapter that they are for, and how they are to be continued."""

    tokens: tuple[int, ...]
    """The prompt, without virtual tokens."""

    adapter: Adapter | Sum | None = None
    """An attached adapter, or a sum of several; None for the plain base."""

    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    max_new_tokens: int = 256

    stops: tuple[int, ...] = ()
    """Tokens that end the answer; the one that did is its last."""

    seed: int = 0

    num_logprobs: int | None = None
    """How many of the likeliest tokens to report at each place of the answer, beside the token itself; None: nothing."""

    constraint: Constraint | None = None
    """What is left out before a token is drawn; a request that has one is asked once."""

    prompt_logprobs: int | None = None
    """The same for the prompt's tokens from the second on."""


@dataclasses.dataclass(frozen=True)
class Logprob:
    """How likely a token was, as the model itself says before anything is done to draw it: nats, at most 0."""

    token: int
    value: float
    top: Mapping[int, float]
    """The likeliest tokens of this place, the likeliest first."""


class Sequence:
    """A request under way.

    **Attributes:**

    - `tokens`: virtual tokens, prompt and answer.
    - `num_computed`: how many of the tokens have their keys and values in `blocks`.
    - `blocks`: the numbers of the blocks that hold them, in order; see `inlay.generation.blocks`.
    - `ending`: why the answer is over; None while it is not.
    """

    def __init__(self, request: Request, number: int):
        self.request, self.number = request, number
        self.tokens = [*virtual_ids(request.adapter), *request.tokens]
        self.num_virtual = len(self.tokens) - len(request.tokens)
        self.num_prompt = len(self.tokens)
        self.num_computed = 0
        self.num_preempted = 0
        self.blocks: list[int] = []
        self.logprobs: list[Logprob] = []
        self.prompt_logprobs: list[Logprob] = []
        self.ending: Ending | None = None
        self._generator: torch.Generator | None = None

    def __repr__(self) -> str:
        state = self.ending or f"{self.num_computed} of {len(self.tokens)} computed"
        return f"Sequence({self.number}, {self.num_prompt} + {len(self.answer)} tokens, {state})"

    @property
    def answer(self) -> list[int]:
        """The new tokens."""
        return self.tokens[self.num_prompt :]

    @property
    def num_missing(self) -> int:
        """How many tokens have no keys and values yet; 1 in each step of decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def most_tokens(self) -> int:
        """How many tokens have keys and values when the answer is as long as it may be: the last is not looked at again."""
        return self.num_prompt + self.request.max_new_tokens - 1

    @property
    def generator(self) -> torch.Generator:
        """What this answer's tokens are drawn from, whatever else is in the batch."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.request.seed)
        return self._generator

    def extend(self, logits: Float[Tensor, " vocab"]) -> None:
        """Take the next token of the answer, from its logits in float32."""
        request, drawn_from = self.request, logits
        if not torch.isfinite(logits.max()):  # NaN, if one is
            self.ending = "error"
            return
        if request.constraint is not None:
            allowed = request.constraint.allowed(len(logits))
            if allowed is None:
                self.ending = "error"
                return
            drawn_from = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        token = request.sampling.choose(drawn_from, request.tokens, self.answer, self.generator)
        if request.num_logprobs is not None:
            self.logprobs.append(logprob(logits, token, request.num_logprobs))
        if request.constraint is not None:
            request.constraint.advance(token)
        self.append(token)

    def append(self, token: int) -> None:
        """Take a token of the answer."""
        self.tokens.append(token)
        if token in self.request.stops:
            self.ending = "stop"
        elif len(self.answer) >= self.request.max_new_tokens:
            self.ending = "length"


def logprob(logits: Float[Tensor, " vocab"], token: int, num_top: int) -> Logprob:
    """How likely a token was by these logits, and the likeliest."""
    values = logits.log_softmax(-1)
    top = values.topk(min(num_top, len(values)))
    return Logprob(token, float(values[token]), dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
