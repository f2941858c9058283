"""Prefix tuning: keys and values of some virtual tokens, in every layer, are trained.

    attention(q, [P_K; K], [P_V; V])   in each layer, P (virtual tokens, 2 layers heads head_dim)

Real tokens stand behind the virtual ones, at the positions after theirs; the trained keys are taken as they are, not turned by
their positions. prefix_projection trains P through a network of two maps, which steadies it; once trained, only P is kept:

    P = W2 tanh(W1 E + b1) + b2,   E (virtual tokens, width)

Source: Prefix-Tuning (Li and Liang 2021, arXiv 2101.00190), sections 4.2 and 4.3.

When not to use it: where LoRA can be used: prefix tuning is harder to train, and its trained tokens take positions and time of
every row. It can't be merged.
"""

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core import lowrank
from inlay.methods._network import NetworkPrompt
from inlay.methods.contract import Decoder, Params, PeftForm, PromptMethod, require

START = 0.02
"""Standard deviation of fresh keys and values, and of what the network starts from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix(NetworkPrompt):
    """attention(q, [P_K; K], [P_V; V])"""

    prefix_projection: bool = False
    """Train the keys and values through a network, which is dropped afterwards."""

    encoder_hidden_size: int | None = None
    """Width of that network; the model's, unless given."""

    learning_rate_scale: ClassVar[float] = 40.0  # measured: docs/evidence/family.md
    is_prefix: ClassVar[bool] = True
    peft: ClassVar[PeftForm] = dataclasses.replace(
        PromptMethod.peft,
        type="PREFIX_TUNING",
        ignores=(*PromptMethod.peft.ignores, "init_weights"),  # how the tensor was started
        omits=("prefix_projection", "encoder_hidden_size"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.encoder_hidden_size
        ok = size is None or size >= 1
        require(
            ok, "encoder_hidden_size must be at least 1", f"encoder_hidden_size={size}", "--encoder-hidden-size 512"
        )

    def init(self, model: Decoder, generator: torch.Generator) -> Params:
        count, numbers = self.num_virtual_tokens, self.numbers(model)
        if not self.prefix_projection:
            return {"prompt_embeddings": START * torch.randn(count, numbers, generator=generator)}
        hidden = self.encoder_hidden_size or model.width
        return {
            "embedding": torch.randn(count, model.width, generator=generator),
            "inner": lowrank.kaiming_uniform(hidden, model.width, generator),
            "inner_bias": torch.zeros(hidden),
            "outer": START * lowrank.kaiming_uniform(numbers, hidden, generator),
            "outer_bias": torch.zeros(numbers),
        }

    def encode(self, params: Params) -> Float[Tensor, "virtual numbers"]:
        inner = torch.tanh(params["embedding"] @ params["inner"].T + params["inner_bias"])
        return inner @ params["outer"].T + params["outer_bias"]
