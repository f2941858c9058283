"""INT8: eight bits a weight, one constant a row.

    q[i, j] = round(127 W[i, j] / SCB[i]),   SCB[i] = max |W[i, j]| over the row
    W[i, j] ~ q[i, j] SCB[i] / 127

8 + 32 / in bits a weight. Tensors, names and numbers are those of bitsandbytes 0.50.2 for LLM.int8() checkpoints, with every
row of a weight quantised alike: that method treats outliers in the inputs, not in the weight. Here inputs are not quantised.

A row of zeros takes zeros. So does one whose largest magnitude is below 127 / 3.4e38, for which the factor is infinite.

Source: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), section 2.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.errors import FormatError, explain
from inlay.kernels import product
from inlay.quant.contract import Matrix, Packed, Scheme

STEPS = 127
"""The code of a row's largest weight."""

_STEP = 7.874015718698502e-3
"""1 / 127 as bitsandbytes has it; the same float32."""

_ROW_MAJOR = 0
"""The one value of `weight_format` that is read: rows as they are. Others were tiles for one device's multiplier."""


class Int8(Scheme):
    """Whole rows, to the nearest of 255 even steps."""

    marks: ClassVar[tuple[str, ...]] = (".SCB",)
    config: ClassVar[Mapping[str, Any]] = {"load_in_8bit": True}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        return None if len(shape) == 2 else f"shape {shape} is not that of a matrix"

    def layout(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"": (torch.int8, shape), "SCB": (torch.float32, shape[:1]), "weight_format": (torch.uint8, ())}

    def quantize(self, weight: Float[Tensor, "out in"]) -> Packed:
        absmax = weight.abs().amax(1).float()
        factor = STEPS / absmax
        factor = factor.masked_fill(factor.isinf(), 0)
        q = (weight * factor[:, None]).round().to(torch.int8)
        return {"": q, "SCB": absmax, "weight_format": torch.tensor(_ROW_MAJOR, dtype=torch.uint8)}

    def refine(self, weight: Float[Tensor, "out in"]) -> Packed:
        return self.quantize(weight)

    def open(self, packed: Packed) -> Matrix:
        problems = _problems(packed)
        if problems:
            raise FormatError(
                explain(
                    "these tensors are not a weight in INT8 that this version reads",
                    found=problems,
                    do="quantize again",
                )
            )
        return Int8Matrix(packed)

    def worst_error(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        absmax = weight.abs().amax(1, keepdim=True).float()
        half_step = torch.where((STEPS / absmax).isinf(), absmax, absmax / (2 * STEPS))
        rounding = 4 * torch.finfo(torch.float32).eps * absmax
        bound = torch.where(
            (STEPS * absmax).isinf(), torch.inf, half_step + rounding
        )  # q SCB comes before the division
        return bound.expand(weight.shape)


class Int8Matrix(Matrix):
    """A weight in INT8. The format does not say the weight's own dtype: it is float16, which bitsandbytes makes of any."""

    def __init__(self, packed: Packed):
        rows, columns = packed[""].shape
        super().__init__((rows, columns), torch.float16, packed)

    def _read(self, start: int, out: Float[Tensor, "rows in"]) -> None:
        rows = slice(start, start + len(out))
        out.copy_(self.packed[""][rows] * self.packed["SCB"].reshape(-1, 1)[rows] * _STEP)

    def _product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"] | None:
        return product.int8(x, self.packed[""], self.packed["SCB"].reshape(-1))

    def over(self, packed: Packed) -> Matrix:
        return Int8Matrix(packed)


def _problems(packed: Packed) -> list[str]:
    """What these tensors have that this version does not read; empty where it reads them."""
    missing = [f"{key or 'weight'}: missing" for key in ("", "SCB") if key not in packed]
    if missing:
        return missing
    codes, absmax = packed[""], packed["SCB"]
    problems = []
    if codes.dtype != torch.int8 or codes.dim() != 2:
        problems.append(f"weight: {codes.dtype} of shape {tuple(codes.shape)}, expected a matrix of torch.int8")
    elif absmax.dtype != torch.float32 or absmax.numel() != len(codes):
        problems.append(f"SCB: {absmax.numel()} of {absmax.dtype}, expected {len(codes)} of torch.float32")
    format = packed.get("weight_format")
    if format is not None and format.flatten().tolist() != [_ROW_MAJOR]:
        problems.append(f"weight_format {format.tolist()}, expected {_ROW_MAJOR}: rows as they are")
    return problems
