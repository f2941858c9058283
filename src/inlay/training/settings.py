"""The settings of a run, and how those that are not given are chosen from the base and the data."""

import dataclasses
import math
from typing import Any, Literal

from inlay import fields
from inlay.errors import ConfigError, explain
from inlay.methods import hooks
from inlay.methods.contract import Method
from inlay.runs import trackers
from inlay.training.schedule import warmup_steps

MIN_STEPS = 100
"""A run shorter than this takes smaller batches instead. Source: LoRA primer of Tinker (Thinking Machines 2025)."""

MAX_BATCH_SIZE = 16
"""Rows per step where there is enough data: LoRA tolerates large batches less than full fine-tuning does, and 8 to 16
sequences are safe for small data. Source: LoRA Without Regret (Thinking Machines 2025)."""

MAX_REPEATS = 100
"""A step that takes every row more often than this was meant for other data."""

UNKNOWN_FAMILY_RATE = 3e-4
"""Learning rate for families without a rule: the most frequent best of a sweep over 27 models (Tinker)."""

_RULE = {"llama": 0.781, "qwen": 0.0775}


LOOKED_AT = ("save_every", "sample_every", "log", "recompute")
"""They change nothing of what is learned: a run may go on with others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train. None means: chosen from the base and the data, and said."""

    max_steps: int | None = None
    """Optimiser steps; without it, --epochs decides."""

    epochs: float = 1.0
    """How often each row is seen; --max-steps wins over it."""

    batch_size: int | None = None
    """Rows per optimiser step; 16, or fewer where that would leave fewer than 100 steps."""

    learning_rate: float | None = None
    """Peak learning rate; by a rule for the family and width of the base."""

    max_length: int | None = None
    """Longest row in tokens; the model's positions, at most 2048."""

    too_long: Literal["drop", "window"] | None = None
    """What happens to longer rows: left out, or cut into windows; either way they are counted. Left out, where they are at most
    half of the rows; more have to be asked for."""

    train_on: Literal["completions", "all"] = "completions"
    """Which tokens the loss is taken on: the completions or assistant turns, or all."""

    eval_fraction: float = 0.05
    """Part of the rows that is held out, by a hash of their content, where no evaluation data is given."""

    eval_rows: int = 200
    """At most this many held-out rows are evaluated, spread evenly over them."""

    eval_every: int | None = None
    """Steps between evaluations; a fifth of the run. The best adapter is kept, of fewer than 20 held-out rows the last."""

    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""

    max_grad_norm: float = 1.0
    """Largest norm of a step's gradient; longer ones are scaled down."""

    micro_batch_tokens: int | None = None
    """Tokens that go through the model at a time, gradients summed over a step's parts; 512 to 2048 by the model's width, on
    a GPU as many as fill an eighth of its memory."""

    recompute: bool = False
    """Recompute cheap activations in the backward pass however few they are: the same numbers in less memory, 3 % slower. Many
    are recomputed anyway."""

    save_every: int | None = None
    """Steps between states of the run, which --resume goes on from after a kill; as often as they take 1 % of the time."""

    patience: int | None = None
    """End the run after so many evaluations that were no better, and keep the best; it takes 20 held-out rows."""

    sample_every: int | None = None
    """Steps from one answer to a few held-out prompts to the next, for the run's page; they are answered at the end anyway."""

    log: trackers.Name | None = None
    """Another program that logs the run, by its own library."""

    seed: int = 0
    """For the initial adapter, the order of the rows, and dropout."""

    def __post_init__(self) -> None:
        fields.settle_(self)
        require_above_zero(self, "max_steps", "batch_size", "learning_rate", "max_length", "eval_every", "save_every")
        require_above_zero(
            self, "epochs", "max_grad_norm", "micro_batch_tokens", "eval_rows", "patience", "sample_every"
        )
        _require(0 <= self.eval_fraction < 1, "eval_fraction", self.eval_fraction, "at least 0 and below 1")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings that a run has chosen for itself, each with its reason."""

    num_steps: int
    batch_size: int
    learning_rate: float
    learning_rate_reason: str
    eval_every: int

    def evaluates_at(self, step: int) -> bool:
        """The held-out rows are evaluated after this step: every `eval_every`, and after the last, but not twice near the
        end."""
        left = self.num_steps - step
        return left == 0 or (step % self.eval_every == 0 and 2 * left > self.eval_every)

    @property
    def num_evaluations(self) -> int:
        """How often held-out rows are evaluated, that of the start included."""
        return 2 + max(0, (2 * self.num_steps - self.eval_every - 1) // (2 * self.eval_every))

    def __str__(self) -> str:
        return (
            f"{self.num_steps} × {self.batch_size} rows · lr {self.learning_rate:.2g} ({self.learning_rate_reason}), "
            f"warm-up {warmup_steps(self.num_steps)}, linear to 0"
        )


def plan(settings: Settings, num_rows: int, model_config: Any, method: Method) -> Plan:
    """What the run will do with `num_rows` rows.

    **Raises:**

    - `ConfigError`: a step would take every row more than `MAX_REPEATS` times.
    """
    if settings.batch_size and settings.batch_size > MAX_REPEATS * num_rows:
        raise ConfigError(
            explain(
                f"a step takes every row {settings.batch_size // num_rows:,} times",
                found=f"--batch-size {settings.batch_size}, {num_rows:,} rows to train on",
                do=f"--batch-size {min(num_rows, MAX_BATCH_SIZE)}",
            )
        )
    wanted = settings.epochs * num_rows
    batch_size = settings.batch_size or (
        MAX_BATCH_SIZE if settings.max_steps else max(1, min(MAX_BATCH_SIZE, round(wanted / MIN_STEPS)))
    )
    num_steps = settings.max_steps or max(1, math.ceil(wanted / batch_size))
    rate, reason = learning_rate(model_config)
    if settings.learning_rate:
        rate, reason = settings.learning_rate, "as asked"
    else:
        rate *= method.learning_rate_scale
        others: dict[float, list[str]] = {}
        for name, factor in default_rates(method).items():
            others.setdefault(factor, []).append(f"{name}'s")
        for factor, names in others.items():
            reason += f", {' and '.join(names)} {factor:.3g} times that"
    return Plan(num_steps, batch_size, rate, reason, settings.eval_every or max(1, num_steps // 5))


def default_rates(method: Method) -> dict[str, float]:
    """Name -> what the default learning rate of these tensors is multiplied by, where that is not what a given one is."""
    rates = method.rates if isinstance(method, hooks.Rates) else {}
    return {name: default for name, (given, default) in rates.items() if not math.isclose(given, default)}


def learning_rate(model_config: Any) -> tuple[float, str]:
    """The default peak rate for a base, and the reason in a few words.

        lr = 5e-4 (2000 / hidden size)^P,   P = 0.781 for Llama, 0.0775 for Qwen

    ten times the best rate of full fine-tuning. Source: Tinker's hyperparameter rule (Thinking Machines 2025), fitted for
    lora_alpha = 32 and all linear layers.
    """
    text = model_config.get_text_config()
    family = next((name for name in _RULE if str(text.model_type).startswith(name)), None)
    if family is None:
        return UNKNOWN_FAMILY_RATE, f"no rule for {text.model_type}"
    return 5e-4 * (2000 / text.hidden_size) ** _RULE[family], f"rule for hidden {text.hidden_size:,}"


def require_above_zero(settings: Any, *names: str) -> None:
    """Refuse fields of a dataclass that are given and not above 0."""
    for name in names:
        value = getattr(settings, name)
        _require(value is None or value > 0, name, value, "above 0")


def _require(condition: bool, name: str, value: object, what: str) -> None:
    if not condition:
        raise ConfigError(
            explain(
                f"{name} must be {what}", found=f"{name}={value}", do=f"--{name.replace('_', '-')} with a value {what}"
            )
        )
