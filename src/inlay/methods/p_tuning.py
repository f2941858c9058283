"""P-tuning: prompt tuning whose embeddings are trained through a network.

    P = W3 relu(W2 relu(W1 E + b1) + b2) + b3,   E (virtual tokens, width)

Once trained, only P is kept: what is shared is a prompt as prompt tuning has it, and can be trained on as one.

Source: GPT Understands, Too (Liu et al. 2021, arXiv 2103.10385), section 3; the network is that of PEFT's MLP encoder.

When not to use it: where prompt tuning itself learns steadily; the network is there to help it.
"""

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core import lowrank
from inlay.methods._network import NetworkPrompt
from inlay.methods.contract import Decoder, Params, PeftForm, PromptMethod, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class PTuning(NetworkPrompt):
    """P = W3 relu(W2 relu(W1 E + b1) + b2) + b3"""

    encoder_hidden_size: int | None = None
    """Width of the network; the model's, unless given."""

    learning_rate_scale: ClassVar[float] = 1.0
    peft: ClassVar[PeftForm] = dataclasses.replace(
        PromptMethod.peft,
        type="P_TUNING",
        ignores=(  # the network is not in the file, whatever it was
            *PromptMethod.peft.ignores,
            "encoder_dropout",
            "encoder_num_layers",
            "encoder_reparameterization_type",
        ),
        omits=("encoder_hidden_size",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.encoder_hidden_size
        ok = size is None or size >= 1
        require(
            ok, "encoder_hidden_size must be at least 1", f"encoder_hidden_size={size}", "--encoder-hidden-size 512"
        )

    def init(self, model: Decoder, generator: torch.Generator) -> Params:
        hidden = self.encoder_hidden_size or model.width
        sizes = (model.width, hidden, hidden, model.width)
        params = {"embedding": torch.randn(self.num_virtual_tokens, model.width, generator=generator)}
        for i in range(3):
            params[f"map{i}"] = lowrank.kaiming_uniform(sizes[i + 1], sizes[i], generator)
            params[f"bias{i}"] = torch.zeros(sizes[i + 1])
        return params

    def encode(self, params: Params) -> Float[Tensor, "virtual numbers"]:
        inner = params["embedding"]
        for i in range(3):
            inner = inner @ params[f"map{i}"].T + params[f"bias{i}"]
            inner = torch.relu(inner) if i < 2 else inner
        return inner
