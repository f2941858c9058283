"""How the next token is drawn from a model's logits: the likeliest one, or one at random from those that are likely.

    p = softmax(logits / temperature), over the `top_k` likeliest tokens, then over the fewest of them whose p add up to `top_p`

Before that, `repetition_penalty` divides the positive logits of tokens that are in the text already, and multiplies the
negative ones. Sources: nucleus sampling, Holtzman et al. 2020, section 3.1; the penalty, Keskar et al. 2019, section 4.1.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.errors import ConfigError, explain
from inlay.fields import MISFIT, fit
from inlay.io import json_files
from inlay.io.checkpoint import Checkpoint

MIN_TEMPERATURE = 1e-6
"""Logits are divided by the temperature in float32: below this, those of 1e32 and more would not be finite any more."""

SETTINGS = "generation_config.json"
"""The file in which a checkpoint recommends how to draw from it."""


GENERATED_BY = ("temperature", "top_p", "top_k", "repetition_penalty")
"""The settings that `Base.generate` takes, and commands have as flags; the others are the engine's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 0.0
    """0 takes the likeliest token; above 0 tokens are drawn."""

    top_p: float = 1.0
    """Only from the likeliest tokens that have this much of the probability together."""

    top_k: int = 0
    """Only from this many of the likeliest tokens; 0: from all."""

    repetition_penalty: float = 1.0
    """Above 1, tokens that are in the text already become less likely."""

    min_p: float = 0.0
    """Only tokens that are at least this part as likely as the likeliest."""

    presence_penalty: float = 0.0
    """Taken from the logits of tokens that are in the answer already."""

    frequency_penalty: float = 0.0
    """Taken from them as often as they are in it."""

    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Added to the logits of single tokens."""

    def problems(self) -> list[tuple[str, str]]:
        """(what is out of its range, a flag that is in it), for each setting that is."""
        found: list[tuple[str, str]] = []
        if self.temperature != 0 and not MIN_TEMPERATURE <= self.temperature < math.inf:
            found.append((f"temperature={self.temperature}, not 0 or from {MIN_TEMPERATURE:g} on", "--temperature 0.8"))
        if not 0 < self.top_p <= 1:
            found.append((f"top_p={self.top_p}, not above 0 and at most 1", "--top-p 0.9"))
        if self.top_k < 0:
            found.append((f"top_k={self.top_k}, below 0", "--top-k 50"))
        if not 0 < self.repetition_penalty < math.inf:
            found.append((f"repetition_penalty={self.repetition_penalty}, not above 0", "--repetition-penalty 1.1"))
        if not 0 <= self.min_p <= 1:
            found.append((f"min_p={self.min_p}, not from 0 to 1", "min_p=0.05"))
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                found.append((f"{name}={getattr(self, name)}, no number", f"{name}=0.5"))
        if not all(map(math.isfinite, self.logit_bias.values())):
            found.append((f"logit_bias={dict(self.logit_bias)}, with one that is no number", "logit_bias={42: -100}"))
        return found

    def choose(
        self,
        logits: Float[Tensor, " vocab"],
        prompt: Sequence[int],
        answer: Sequence[int],
        generator: torch.Generator,
    ) -> int:
        """The next token, from a row of logits in float32.

        **Arguments:**

        - `prompt`, `answer`: the tokens before it, as the penalties count them.
        - `generator`: what is drawn from, where something is; on the CPU.
        """
        logits = self._penalized(logits, prompt, answer)
        if not self.temperature:
            return int(logits.argmax())
        logits = logits / self.temperature
        if self.top_k:
            logits = logits.masked_fill(logits < logits.topk(min(self.top_k, len(logits))).values[-1], -torch.inf)
        if self.top_p < 1:
            p, order = logits.softmax(-1).sort(descending=True)
            logits = logits.index_fill(0, order[p.cumsum(0) - p >= self.top_p], -torch.inf)
        p = logits.softmax(-1)
        if self.min_p:
            p = p.masked_fill(p < self.min_p * p.max(), 0.0)
        return int(torch.multinomial(p.cpu(), 1, generator=generator))

    def _penalized(self, logits: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Logits with what is added to those of single tokens, and taken from those of tokens that are in the text."""
        if self.logit_bias:
            ids = torch.tensor(list(self.logit_bias), device=logits.device)
            logits = logits.index_add(0, ids, torch.tensor(list(self.logit_bias.values())).to(logits))
        if self.repetition_penalty != 1:
            seen = torch.tensor(sorted({token for token in (*prompt, *answer) if token >= 0}), device=logits.device)
            some = logits[seen]
            penalized = torch.where(some < 0, some * self.repetition_penalty, some / self.repetition_penalty)
            logits = logits.index_copy(0, seen, penalized)
        if answer and (self.presence_penalty or self.frequency_penalty):
            counts = torch.bincount(torch.tensor(answer), minlength=len(logits)).to(logits)
            logits = logits - self.presence_penalty * (counts > 0) - self.frequency_penalty * counts
        return logits

    def check(self) -> None:
        """Refuse settings that leave some tokens out of a draw where none is drawn.

        **Raises:**

        - `ConfigError`: `top_p`, `top_k` or `min_p` with temperature 0.
        """
        idle = [f"top_p={self.top_p}"] * (self.top_p != 1) + [f"top_k={self.top_k}"] * (self.top_k != 0)
        idle += [f"min_p={self.min_p}"] * (self.min_p != 0)
        if idle and self.temperature == 0:
            found = f"{', '.join(idle)} with temperature 0, which takes the likeliest token"
            raise ConfigError(
                explain("nothing is drawn, so that nothing can be left out", found=found, do="--temperature 0.8")
            )

    def __str__(self) -> str:
        if not self.temperature:
            words = ["the likeliest token"]
        else:
            words = [f"temperature {self.temperature:g}"] + [f"top-p {self.top_p:g}"] * (self.top_p != 1)
            words += [f"top-k {self.top_k}"] * (self.top_k != 0)
        words += [f"repetition penalty {self.repetition_penalty:g}"] * (self.repetition_penalty != 1)
        return ", ".join(words)


CHAT = Sampling(temperature=0.7, top_p=0.9)
"""How a chat draws where the checkpoint recommends nothing: the likeliest token alone makes small models repeat themselves."""


def recommended(checkpoint: Checkpoint) -> tuple[Sampling, str]:
    """How a chat with this checkpoint draws, and who says so: its `generation_config.json`, or Inlay where that says nothing
    that can be used."""
    path = checkpoint.directory / SETTINGS
    settings = json_files.read_json(path) if path.is_file() else {}
    hints = get_type_hints(Sampling)
    given = {
        name: settings[name]
        for name, hint in hints.items()
        if settings.get(name) is not None and fit(settings[name], hint) is not MISFIT
    }
    if settings.get("do_sample") is True:
        given = {"temperature": 1.0, **given}  # what drawing means to transformers where nothing is said
    start = Sampling() if "temperature" in given else CHAT
    found = dataclasses.replace(start, **given)
    if not given or not found.temperature or found.problems():
        return CHAT, f"Inlay's default: {checkpoint.name} recommends nothing"
    return found, f"{checkpoint.name}'s {SETTINGS}" + ("" if start is not CHAT else ", the temperature Inlay's default")
