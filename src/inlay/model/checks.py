"""What a base can't be, or be asked for: said before `transformers` or torch fail at it in words of their own."""

from typing import Any

import torch
from torch import Tensor

from inlay.errors import ConfigError, FormatError, explain
from inlay.fields import MISFIT, fit, shown
from inlay.io.checkpoint import Checkpoint
from inlay.model.sampling import Sampling

AUTO = "auto"
"""The device that is there."""

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""The generation settings of a checkpoint that are followed: the roles of tokens."""


def chosen_device(name: str) -> str:
    """The device of this name; of 'auto', a CUDA device if there is one, else the CPU.

    **Raises:**

    - `ConfigError`: this machine, or this build of torch, does not have it.
    """
    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = ["cpu"]
    if kind is not None:
        here += [kind.type, *(f"{kind.type}:{i}" for i in range(torch.accelerator.device_count()))]
    if name not in here:
        raise ConfigError(
            explain("there is no such device here", found=f"{name!r}; here are {', '.join(here)}", do="--device cpu")
        )
    return name


def check_special_tokens(model: Any, checkpoint: Checkpoint) -> None:
    """Refuse generation settings whose special tokens are no numbers of tokens."""
    settings = getattr(model, "generation_config", None)  # a model that does not generate has none
    given = {name: getattr(settings, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    strange = {name: value for name, value in given.items() if fit(value, tuple[int, ...] | None) is MISFIT}
    if strange:
        raise FormatError(
            explain(
                "the special tokens of a model are numbers of tokens",
                found=[
                    f"{checkpoint.directory / 'generation_config.json'}: {n}={shown(v)}" for n, v in strange.items()
                ],
                do="fetch it again, or remove the file: the tokenizer has these numbers too",
            )
        )


def keep_special_tokens_(model: Any) -> None:
    """Leave the model the special tokens of its generation settings, and nothing else.

    `transformers` lets the file decide whatever a call leaves open: beams, penalties, strings that stop, n-grams that may not
    come again. A call that asks for the likeliest token would get another one.
    """
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        model.generation_config = type(settings)(**{name: getattr(settings, name, None) for name in SPECIAL_TOKENS})


def check_sampling(max_new_tokens: int | None, sampling: Sampling, seed: int) -> None:
    """Refuse an answer of no tokens, and what no token can be drawn with.

    **Raises:**

    - `ConfigError`: a setting is out of its range, or has no effect beside the others.
    """
    problems = sampling.problems()
    if max_new_tokens is not None and max_new_tokens < 1:
        problems.append((f"max_new_tokens={max_new_tokens}, not above 0", "--max-new-tokens 64"))
    if not -(2**63) <= seed < 2**63:
        problems.append((f"seed={seed}, not of 64 bits", "--seed 1"))
    if problems:
        found, hints = zip(*problems, strict=True)
        raise ConfigError(explain("an answer can't be made with these settings", found=found, do=" ".join(hints)))
    sampling.check()


def is_same(weight: Tensor, stored: Tensor) -> bool:
    """The numbers of two tensors are equal; of one without numbers, as in an outline, the shape."""
    return weight.shape == stored.shape and (weight.is_meta or torch.equal(weight.float(), stored.float()))
