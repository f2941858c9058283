"""AdaLoRA: LoRA in the form of a singular value decomposition, whose ranks are shared out among the layers as it learns.

    y = W x + b + scaling B (E * (A x)),   scaling = lora_alpha / (init_r + 1e-5)

E (r, 1) starts at zero. Every layer starts with rank init_r; between the steps tinit and (last - tfinal), those of the E are
set to zero whose triplets (a row of A, its E, a column of B) matter least, until target_r are left per layer on average:

    budget(t) = target + (initial - target) (1 - (t - tinit) / (last - tinit - tfinal))^3
    matters(w) = mean of |w g| * mean of ||w g| - its mean|         g the gradient of w, running means by beta1, beta2
    matters(triplet) = matters(E) + mean of matters(A's row) + mean of matters(B's column)

A penalty keeps A and B near orthogonal: orth_reg_weight times the mean of |A A^T - I| and |B^T B - I| over all of them.

Source: AdaLoRA (Zhang et al. 2023, arXiv 2303.10512), equations 3, 4, 8 to 11 and 16. The scaling is PEFT's.

When not to use it: on a short run, which has no time to find out which ranks matter; LoRA of rank target_r on all layers does
as well.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core.routed import Factors
from inlay.methods.contract import LinearBase, LowRankMethod, Params, PeftForm, require
from inlay.methods.hooks import DropsInputs, Rates, StepHooks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adalora(LowRankMethod, StepHooks, DropsInputs, Rates):
    """y = W x + b + (lora_alpha / init_r) B (E * (A x))"""

    init_r: int = 12
    """Rank of each layer at the start."""

    target_r: int = 8
    """Rank of each layer at the end, on average."""

    lora_alpha: float = 32
    """Numerator of the scaling lora_alpha / init_r."""

    lora_dropout: float = 0.0
    """Part of the adapter's input that is zeroed while training, 0 <= p < 1."""

    tinit: float = 0.1
    """Steps before the first rank is taken away; below 1, that part of the run."""

    tfinal: float = 0.3
    """Steps after the last rank is taken away; below 1, that part of the run."""

    beta1: float = 0.85
    """How slowly the running mean of what matters moves."""

    beta2: float = 0.85
    """How slowly the running mean of its spread moves."""

    orth_reg_weight: float = 0.5
    """Weight of the penalty on factors that are not orthogonal."""

    learning_rate_scale: ClassVar[float] = 3.0  # measured: benchmarks/method_rates.py
    peft: ClassVar[PeftForm] = PeftForm(
        type="ADALORA",
        defaults={"lora_alpha": 8},
        accepts={"bias": ("none",), "init_lora_weights": (True, False)},
        ignores=(
            "deltaT",  # read only in training, as total_step is
            "eva_config",  # how A was started
            "fan_in_fan_out",  # how the base stores its weight: read from the base itself
            "megatron_core",  # read only with megatron_config
            "qalora_group_size",  # read only with use_qalora
            "r",  # init_r replaces it
            "total_step",
        ),
        writes={"total_step": 1, "tinit": 0, "tfinal": 0},
        omits=("tinit", "tfinal"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        found = f"init_r={self.init_r}, target_r={self.target_r}"
        require(
            1 <= self.target_r <= self.init_r, "target_r must be at least 1 and at most init_r", found, "--target-r 8"
        )
        require(self.lora_alpha > 0, "lora_alpha must be above 0", f"lora_alpha={self.lora_alpha}", "--lora-alpha 32")
        for name in ("lora_dropout", "beta1", "beta2"):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            require(0 <= value < 1, f"{name} must be at least 0 and below 1", f"{name}={value}", f"{flag} 0.05")
        require(
            min(self.tinit, self.tfinal) >= 0, "tinit and tfinal must be at least 0", f"{self.tinit}, {self.tfinal}", ""
        )

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        r = self.init_r
        return {"lora_A": (r, base.in_features), "lora_B": (base.out_features, r), "lora_E": (r, 1)}

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        drawn = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in self.shapes(base).items()}
        return drawn | {"lora_E": torch.zeros(self.init_r, 1)}

    def factors(self, params: Params) -> Factors:
        scaling = self.lora_alpha / (self.init_r + 1e-5)  # as PEFT has it
        return Factors(params["lora_E"] * params["lora_A"], params["lora_B"], scaling)

    def penalty(self, params: Mapping[str, Params]) -> Float[Tensor, ""]:
        factors = [M for p in params.values() if "lora_E" in p for M in (p["lora_A"], p["lora_B"].T)]
        distances = [(M @ M.T - torch.eye(len(M), dtype=M.dtype, device=M.device)).norm() for M in factors]
        return self.orth_reg_weight * torch.stack(distances).mean()

    def after_step(self, params: Mapping[str, Params], step: int, num_steps: int, state: Params) -> None:
        triplets = {path: p for path, p in params.items() if "lora_E" in p}
        scores = [_matters(path, p, state, self.beta1, self.beta2) for path, p in triplets.items()]
        start, end = (round(t * num_steps) if t < 1 else int(t) for t in (self.tinit, self.tfinal))
        if step < start or not scores:
            return
        left = max(0.0, 1 - (step - start) / max(1, num_steps - start - end)) ** 3
        budget = round(len(scores) * (self.target_r + (self.init_r - self.target_r) * left))
        if "kept" not in state:
            every = torch.cat(scores)
            keep = every >= every.topk(budget).values[-1]
            state |= {"kept": keep} if left == 0 else {}  # from here on the same ones
        else:
            keep = state["kept"]
        with torch.no_grad():
            for p, kept in zip(triplets.values(), keep.split(self.init_r), strict=True):
                p["lora_E"].mul_(kept[:, None])

    def describe(self) -> str:
        return f"r={self.init_r} to {self.target_r} lora_alpha={self.lora_alpha:g}"

    @property
    def input_dropout(self) -> float:
        return self.lora_dropout

    @property
    def rates(self) -> Mapping[str, tuple[float, float]]:
        return {"lora_E": (1.0, 32 / self.lora_alpha)}


def _matters(path: str, params: Params, state: Params, beta1: float, beta2: float) -> Float[Tensor, " r"]:
    """How much each triplet of one module matters."""
    scores = {}
    for name, tensor in params.items():
        grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        now = (tensor.detach() * grad).abs()
        key = f"{path}.{name}"
        mean, spread = (state.get(f"{key}.{what}", torch.zeros_like(now)) for what in ("mean", "spread"))
        mean = beta1 * mean + (1 - beta1) * now
        spread = beta2 * spread + (1 - beta2) * (now - mean).abs()
        state |= {f"{key}.mean": mean, f"{key}.spread": spread}
        scores[name] = mean * spread
    return scores["lora_E"].flatten() + scores["lora_A"].mean(1) + scores["lora_B"].mean(0)
