"""LoRA-GA: the first step goes where a step of full fine-tuning would.

    d loss / d W = U diag(s) V^T,   A0 = c V_{1..r}^T,   B0 = c U_{r+1..2r},   c = out^(1/4) / sqrt(gamma),   gamma = 16

The gradient of A is scaling B0^T G and that of B is scaling G A0^T: the first changes of W lie in the 2r largest directions of
G, each in one of the factors.

Source: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), theorem 3.1, algorithm 1 and section 3.3 for the scale; gamma as in
`peft`. The gradient is that of one part of a batch.

When not to use it: where the rows are few or noisy, for the directions are those of one batch; with LoRA's learning rate
without a try.
"""

import torch
from torch import Tensor

from inlay.core import lowrank
from inlay.initializers.contract import Initializer

GAMMA = 16


class LoraGa(Initializer):
    """d loss / d W = U diag(s) V^T, A0 = c V_{1..r}^T, B0 = c U_{r+1..2r}"""

    source = "gradient"
    is_taken_off = True
    makes_up = (1.0, 1.0)  # of the first step; the start does not grow with 1 / scaling
    rate = 0.3

    @staticmethod
    def factors(found: Tensor, r: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        U, _, V = lowrank.top(found, 2 * r, generator)
        c = len(found) ** 0.25 / GAMMA**0.5
        return c * V[:r], c * U[:, -r:]
