"""NF4: four bits a weight, in blocks of 64 along the row, the constants quantised too.

    W[i, j] = codebook[c[i, j]] absmax[b],   b = the block of 64 that holds (i, j)
    absmax[b] = map[q[b]] nested[b / 256] + offset

4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits a weight. Tensors, names and bytes are those of bitsandbytes 0.50.2 with
`bnb_4bit_use_double_quant`. Without it, `absmax` is float32 and there is no `nested`: read, but not written.

Source: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), section 3; the maths is in `inlay.core.blocks`.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core import blocks
from inlay.core.product import DTYPES
from inlay.errors import FormatError, explain
from inlay.kernels import nf4 as kernels
from inlay.quant.contract import Matrix, Packed, Scheme

BLOCK = 64
"""Weights that share a constant."""

STATE = ".quant_state.bitsandbytes__nf4"
"""The tensor whose bytes are JSON: everything that is not a tensor."""

_GROUP = 1 << 14
"""Blocks that `refine` looks at together: a few megabytes."""

_OFFSET_DIGITS = 24
"""Room for any float in JSON, so that the tensors' sizes depend on the weight's shape alone."""


class Nf4(Scheme):
    """Blocks of 64 with 4-bit NormalFloat codes and double quantisation."""

    marks: ClassVar[tuple[str, ...]] = (STATE,)
    config: ClassVar[Mapping[str, Any]] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
    }

    def problem(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) != 2:
            return f"shape {shape} is not that of a matrix"
        return f"in_features {shape[1]} is not a multiple of the block, {BLOCK}" if shape[1] % BLOCK else None

    def layout(self, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        num_blocks = math.prod(shape) // BLOCK
        return {
            "": (torch.uint8, (math.prod(shape) // 2, 1)),
            ".absmax": (torch.uint8, (num_blocks,)),
            ".nested_absmax": (torch.float32, (-(-num_blocks // blocks.CONSTANTS_BLOCK),)),
            ".nested_quant_map": (torch.float32, (256,)),
            ".quant_map": (torch.float32, (16,)),
            STATE: (torch.uint8, (len(_state(shape, dtype, 0.0)),)),
        }

    def quantize(self, weight: Float[Tensor, "out in"]) -> Packed:
        codes, absmax = kernels.quantize(weight.reshape(-1, BLOCK))
        return _packed(weight, codes.cpu(), *blocks.quantize_constants(absmax.cpu()))

    def refine(self, weight: Float[Tensor, "out in"]) -> Packed:
        """Constants by least squares instead of the largest magnitudes, and codes for the constants as they are kept."""
        groups, codebook = weight.cpu().reshape(-1, BLOCK).split(_GROUP), blocks.nf4_codebook()
        absmax = torch.cat([blocks.fit_constants(group, codebook) for group in groups])
        absmax_codes, nested, offset = blocks.quantize_constants(absmax)
        held = blocks.dequantize_constants(absmax_codes, nested, blocks.constants_map(), offset.item()).split(_GROUP)
        codes = [blocks.pack(blocks.nearest(group, own, codebook)) for group, own in zip(groups, held, strict=True)]
        return _packed(weight, torch.cat(codes), absmax_codes, nested, offset)

    def open(self, packed: Packed) -> Matrix:
        state = _read_state(packed.get(STATE))
        problems = _problems(state, packed)
        if problems:
            raise FormatError(
                explain(
                    "these tensors are not a weight in NF4 that this version reads", found=problems, do="quantize again"
                )
            )
        return Nf4Matrix(state, packed)

    def worst_error(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        absmax = weight.float().reshape(-1, BLOCK).abs().amax(1)
        absmax_codes, nested, offset = blocks.quantize_constants(absmax)
        held = blocks.dequantize_constants(absmax_codes, nested, blocks.constants_map(), offset.item())
        codebook = blocks.nf4_codebook()
        widest = (codebook[1:] - codebook[:-1]).max() / 2
        rounding = 4 * torch.finfo(torch.float32).eps * absmax
        bound = widest * absmax + (held - absmax).abs() + rounding
        bound[absmax < blocks.SMALLEST] *= 8  # they are divided by more than their largest
        return bound.repeat_interleave(BLOCK).view(weight.shape)


class Nf4Matrix(Matrix):
    """A weight in NF4."""

    def __init__(self, state: Mapping[str, Any], packed: Packed):
        rows, columns = state["shape"]
        super().__init__((rows, columns), DTYPES[state["dtype"]], packed)
        self._state = state
        self.block_size: int = state["blocksize"]
        self.constants = blocks.Constants(
            packed[".absmax"].reshape(-1),
            packed.get(".nested_absmax"),
            packed.get(".nested_quant_map"),
            state.get("nested_offset", 0.0),
        )
        self._codes = packed[""].reshape(rows, columns // 2)

    def _read(self, start: int, out: Float[Tensor, "rows in"]) -> None:
        first = start * (self.shape[1] // self.block_size)
        kernels.dequantize(self._codes[start : start + len(out)], self.constants, first, self.block_size, out)

    def _product(self, x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens out"] | None:
        return kernels.product(x, self._codes, self.constants, self.block_size)

    def over(self, packed: Packed) -> Matrix:
        return Nf4Matrix(self._state, packed)


def _packed(weight: Tensor, codes: Tensor, absmax_codes: Tensor, nested: Tensor, offset: Tensor) -> Packed:
    """The tensors of a weight with these codes and constants."""
    state = _state((weight.shape[0], weight.shape[1]), weight.dtype, offset.item())
    return {
        "": codes,
        ".absmax": absmax_codes,
        ".nested_absmax": nested,
        ".nested_quant_map": blocks.constants_map().clone(),
        ".quant_map": blocks.nf4_codebook().clone(),
        STATE: torch.frombuffer(bytearray(state), dtype=torch.uint8),
    }


def _state(shape: tuple[int, int], dtype: torch.dtype, offset: float) -> bytes:
    """The JSON of a quantised weight, of one length for one shape."""
    state = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(shape),
        "nested_blocksize": blocks.CONSTANTS_BLOCK,
        "nested_dtype": "float32",
    }
    return f'{json.dumps(state)[:-1]}, "nested_offset": {offset!r:<{_OFFSET_DIGITS}}}}'.encode()


def _read_state(tensor: Tensor | None) -> dict[str, Any]:
    state = None
    if tensor is not None and tensor.dtype == torch.uint8 and tensor.dim() == 1:
        with contextlib.suppress(ValueError, RecursionError):
            state = json.loads(bytes(tensor.cpu().tolist()))
    if not isinstance(state, dict):
        raise FormatError(explain("the state of a quantised weight is not a JSON object", do="quantize again"))
    return state


def _expected(num_weights: int, block: int, nested: bool) -> dict[str, tuple[torch.dtype, int]]:
    """The dtype and the number of elements of each tensor of a weight."""
    num_blocks = num_weights // block
    expected = {
        "": (torch.uint8, num_weights // 2),
        ".absmax": (torch.uint8 if nested else torch.float32, num_blocks),
        ".quant_map": (torch.float32, 16),
    }
    if nested:
        expected[".nested_absmax"] = (torch.float32, -(-num_blocks // blocks.CONSTANTS_BLOCK))
        expected[".nested_quant_map"] = (torch.float32, 256)
    return expected


def _problems(state: Mapping[str, Any], packed: Packed) -> list[str]:
    """What these tensors have that this version does not read; empty where it reads them."""
    shape: Any = state.get("shape")
    block: Any = state.get("blocksize")
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
    if not whole or state.get("dtype") not in DTYPES or type(block) is not int or block < 2 or block & (block - 1):
        return [f"quant_state says shape {shape}, dtype {state.get('dtype')}, blocksize {block}"]
    if shape[1] % block:
        return [f"blocks of {block} do not divide rows of {shape[1]} weights"]
    nested = ".nested_absmax" in packed
    expected = _expected(math.prod(shape), block, nested)
    problems = [f"weight{key}: missing" for key in expected if key not in packed]
    problems += [
        f"weight{key}: {tensor.numel()} of {tensor.dtype}, expected {expected[key][1]} of {expected[key][0]}"
        for key, tensor in packed.items()
        if key in expected and (tensor.dtype, tensor.numel()) != expected[key]
    ]
    if problems:
        return problems
    if not torch.equal(packed[".quant_map"].cpu(), blocks.nf4_codebook()):
        problems.append("quant_map is not the codebook of NF4")
    offset = state.get("nested_offset")
    finite = isinstance(offset, float) and math.isfinite(offset)
    if nested and (state.get("nested_blocksize") != blocks.CONSTANTS_BLOCK or not finite):
        problems.append(f"nested_blocksize {state.get('nested_blocksize')}, nested_offset {offset!r}")
    return problems
