"""Prompt tuning: the embeddings of some virtual tokens in front of every row are trained.

    rows = [P; E(tokens)],   P (virtual tokens, width)

Everything else is the model's own: positions, cache and attention take the virtual tokens for tokens. P starts as the
embeddings of tokens drawn from the vocabulary, as those of a text, or at random.

Source: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al. 2021, arXiv 2104.08691), sections 2 and 3.2.

When not to use it: on models below some billions of weights, where it is far behind full fine-tuning and LoRA (the paper's
figure 1); or where rows are long, since virtual tokens take positions and time. It can't be merged.
"""

import dataclasses
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.methods.contract import Decoder, Params, PeftForm, PromptMethod, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt(PromptMethod):
    """[P; E(tokens)]"""

    prompt_tuning_init: Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"] = "SAMPLE_VOCAB"
    """What the virtual tokens start as: tokens of the vocabulary, those of a text, or random numbers."""

    prompt_tuning_init_text: str | None = None
    """The text for TEXT, repeated or cut to num_virtual_tokens tokens."""

    learning_rate_scale: ClassVar[float] = 20.0  # measured: docs/evidence/family.md
    peft: ClassVar[PeftForm] = dataclasses.replace(
        PromptMethod.peft,
        type="PROMPT_TUNING",
        defaults={"prompt_tuning_init": "RANDOM"},
        ignores=(
            *PromptMethod.peft.ignores,
            "tokenizer_kwargs",
            "tokenizer_name_or_path",
        ),  # how the tensor was started
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = self.prompt_tuning_init != "TEXT" or bool(self.prompt_tuning_init_text)
        found = f"prompt_tuning_init_text={self.prompt_tuning_init_text!r}"
        require(ok, "prompt_tuning_init TEXT needs a text", found, "--prompt-tuning-init-text 'Say it in a few words:'")

    def init(self, model: Decoder, generator: torch.Generator) -> Params:
        count = self.num_virtual_tokens
        if self.prompt_tuning_init == "TEXT":
            ids = torch.tensor(list(model.tokenize(self.prompt_tuning_init_text or "")))
            return {"prompt_embeddings": model.embed(ids.repeat(-(-count // len(ids)))[:count]).float()}
        drawn = torch.randint(model.num_tokens, (count,), generator=generator)
        if self.prompt_tuning_init == "SAMPLE_VOCAB":
            return {"prompt_embeddings": model.embed(drawn).float()}
        noise = torch.randn(count, model.width, generator=generator)
        return {"prompt_embeddings": noise * model.embed(drawn).float().std()}

    def virtual(self, params: Params) -> Float[Tensor, "virtual numbers"]:
        return params["prompt_embeddings"]
