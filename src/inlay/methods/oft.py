"""OFT: the inputs of a linear map are turned, in blocks, before it sees them.

    y = W R^T x + b,   R = blockdiag(R_1, R_2, ...),   R_i = (I - Q_i)(I + Q_i)^-1,   Q_i = -Q_i^T

(x is a column here: block by block, the row x_i becomes x_i R_i.) R is orthogonal, so that the angles between the rows of W,
and with them what the model knows, are kept. A Q of zeros is no turn. use_cayley_neumann takes R as the first
terms of a series, I + 2 Q + 2 Q^2 + ... + Q^k, which is that of (I + Q)(I - Q)^-1: a turn the other way, fast, and orthogonal
only nearly. It is what PEFT does unless told otherwise, and what its files mean; three terms are the same as four there.

Sources: OFT (Qiu et al. 2023, arXiv 2306.07280), section 4; Orthogonal Finetuning Made Scalable (Qiu et al. 2025, arXiv
2506.19847), section 4, for the turned inputs and the series.

When not to use it: where speed counts and the adapter stays apart; the turned inputs cost a second product with the base.
"""

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from inlay.methods.contract import LinearBase, LinearMethod, Params, PeftForm, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oft(LinearMethod):
    """y = W R^T x + b"""

    oft_block_size: int = 32
    """Inputs per block; a layer's inputs are a multiple of it, or it is made smaller for that layer. 0: set by r."""

    r: int = 0
    """Blocks per layer instead, where it is above 0 and oft_block_size is 0."""

    block_share: bool = False
    """One block for all inputs of a layer."""

    use_cayley_neumann: bool = True
    """The inverse as the first terms of its series."""

    num_cayley_neumann_terms: int = 5
    """How many terms, from I on."""

    learning_rate_scale: ClassVar[float] = 1.0
    peft: ClassVar[PeftForm] = PeftForm(
        type="OFT",
        tensors={"oft_R": "oft_R.weight"},
        accepts={"bias": ("none",), "coft": (False,)},
        ignores=(
            "eps",  # read only with coft
            "fan_in_fan_out",  # how the base stores its weight: read from the base itself
            "init_weights",  # how the blocks were started
            "module_dropout",  # read only in training
        ),
        writes={"peft_version": "0.18.0"},  # since when the series is this one
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one = (self.r > 0) != (self.oft_block_size > 0)
        found = f"r={self.r}, oft_block_size={self.oft_block_size}"
        require(one, "one of r and oft_block_size must be above 0, the other 0", found, "--oft-block-size 32 --r 0")
        terms = self.num_cayley_neumann_terms
        wrong = "num_cayley_neumann_terms must be at least 1"
        require(terms >= 1, wrong, f"num_cayley_neumann_terms={terms}", "--num-cayley-neumann-terms 5")

    def shapes(self, base: LinearBase) -> dict[str, tuple[int, ...]]:
        size = self._block_size(base.in_features)
        return {"oft_R": (1 if self.block_share else base.in_features // size, size * (size - 1) // 2)}

    def _block_size(self, in_features: int) -> int:
        """The size of a block: what is asked for, or the nearest that divides the inputs; of two as near, the smaller."""
        blocks = _nearest_divisor(in_features, self.r) if self.r else 0
        return in_features // blocks if blocks else _nearest_divisor(in_features, self.oft_block_size)

    def init(self, base: LinearBase, generator: torch.Generator) -> Params:
        return {name: torch.zeros(shape) for name, shape in self.shapes(base).items()}

    def delta(
        self,
        params: Params,
        x: Shaped[Tensor, "tokens *in"],
        y: Float[Tensor, "tokens out"],
        base: LinearBase,
    ) -> Float[Tensor, "tokens out"]:
        turn = self._blocks(params["oft_R"], base.in_features).to(x.dtype)
        return base.product(_turned(x, turn) - x)

    def merge(
        self, params: Params, weight: Float[Tensor, "rows in"], bias: Float[Tensor, " rows"] | None, start: int = 0
    ) -> tuple[Float[Tensor, "rows in"], Float[Tensor, " rows"] | None]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        turn = self._blocks(params["oft_R"], weight.shape[1]).to(wide)
        return _turned(weight.to(wide), turn.mT).to(weight.dtype), bias

    def _blocks(self, R: Float[Tensor, "blocks numbers"], in_features: int) -> Float[Tensor, "blocks size size"]:
        """The blocks of R, from the numbers above the diagonals of the Q."""
        size = self._block_size(in_features)
        rows, columns = torch.triu_indices(size, size, 1)
        Q = R.new_zeros(len(R), size, size)
        Q[:, rows, columns] = R
        Q = Q - Q.mT
        one = torch.eye(size, dtype=R.dtype, device=R.device).expand_as(Q)
        return self._series(one, Q) if self.use_cayley_neumann else torch.linalg.solve(one + Q, one - Q, left=False)

    def _series(self, one: Tensor, Q: Tensor) -> Tensor:
        """I + 2 Q + 2 Q^2 + ... + Q^last; with one term I, with two I + 2 Q. PEFT counts three and four terms as the same."""
        terms = self.num_cayley_neumann_terms
        last = max(3, terms - 1) if terms > 2 else terms
        result, power = one, one
        for exponent in range(1, terms if terms < 3 else last + 1):
            power = power @ Q
            result = result + (1 if exponent == last else 2) * power
        return result

    def describe(self) -> str:
        return f"r={self.r}" if self.r else f"oft_block_size={self.oft_block_size}"


def _turned(x: Float[Tensor, "tokens in"], turn: Float[Tensor, "blocks size size"]) -> Float[Tensor, "tokens in"]:
    """Every block of x times its block of R, or all times the one that they share."""
    size = turn.shape[1]
    blocks = turn.expand(x.shape[1] // size, size, size)
    return torch.einsum("tbi,bio->tbo", x.reshape(len(x), -1, size), blocks).flatten(1)


def _nearest_divisor(size: int, wanted: int) -> int:
    return min((number for number in range(1, size + 1) if size % number == 0), key=lambda n: (abs(n - wanted), n))
