"""Weights in ggml's types against the `gguf` package: the same bits, whatever the bytes."""

import gguf
import numpy as np
import pytest
import torch

from inlay.core import ggml
from inlay.kernels import ggml as kernels
from inlay.kernels import native
from tests.support.tolerances import UNIT_ROUNDOFF

KINDS = list(ggml.BLOCKS)
WRITTEN = ("Q8_0", "Q4_0", "Q4_1")
"""The types that the package writes."""

FACTORS = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
"""Where a block has its factors."""


def blocks(kind, count, seed):
    """Random bytes whose factors, float16 in places of their own, are numbers of any size, or anything at all."""
    _, size = ggml.BLOCKS[kind]
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (count, size), np.uint8)
    for place in FACTORS[kind]:
        factors = generator.standard_normal(count) * 10.0 ** generator.integers(-7, 3, count)
        data[: count // 2, place : place + 2] = factors.astype(np.float16)[: count // 2, None].view(np.uint8)
    return data


def theirs(kind, data):
    with np.errstate(all="ignore"):  # infinite factors times nought
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])


def same_bits(one, other):
    """Equal as numbers and in the sign of nought; NaN where the other is."""
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    nan = one.isnan()
    return torch.equal(nan, other.isnan()) and torch.equal(
        one.masked_fill(nan, 0).view(torch.int32), other.masked_fill(nan, 0).view(torch.int32)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_random_blocks_are_what_the_package_says(kind, seed):
    data = blocks(kind, 301, seed)
    assert same_bits(ggml.unpack(kind, torch.from_numpy(data)), theirs(kind, data))


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_of_a_block_counts(kind):
    data = torch.from_numpy(blocks(kind, 1, 9))
    for place in FACTORS[kind]:
        data[0, place : place + 2] = torch.tensor([0.37], dtype=torch.float16).view(torch.uint8)
    before = ggml.unpack(kind, data)
    for place in range(data.shape[1]):
        for bit in range(8):
            changed = data.clone()
            changed[0, place] ^= 1 << bit
            assert not same_bits(ggml.unpack(kind, changed), before), (place, bit)


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_the_package_writes_is_near_the_weight(kind):
    weight = torch.randn(7, 64)
    data = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    read = ggml.unpack(kind, torch.from_numpy(data).view(-1, ggml.BLOCKS[kind][1])).view(7, 64)
    assert same_bits(read, theirs(kind, data))
    assert (read - weight).abs().max() < {"Q8_0": 0.02, "Q4_0": 0.5, "Q4_1": 0.4}[kind]


def test_the_blocks_are_those_of_the_package():
    assert {kind: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] for kind in KINDS} == ggml.BLOCKS


WAYS = (*native.supported(), native.TORCH)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_makes_the_same_weights(kind, way):
    weights, size = ggml.BLOCKS[kind]
    data = torch.from_numpy(blocks(kind, 2 * 301, 4)).view(301, 2 * size)
    expected = ggml.unpack(kind, data.view(-1, size)).view(301, 2 * weights)
    numbers = torch.randperm(301, generator=torch.Generator().manual_seed(0))[:97].int()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with native.only(way):
            whole, some = torch.empty(301, 2 * weights, dtype=dtype), torch.empty(97, 2 * weights, dtype=dtype)
            kernels.dequantize(kind, data, None, whole)
            kernels.dequantize(kind, data, numbers, some)
        assert same_bits(whole.float(), expected.to(dtype).float())
        assert same_bits(some.float(), expected[numbers.long()].to(dtype).float())


@pytest.mark.parametrize("way", native.supported())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_few_tokens_are_those_of_the_weights(kind, way, dtype):
    weights, size = ggml.BLOCKS[kind]
    data = blocks(kind, 3 * 37, 4)
    for place in FACTORS[kind]:
        data[:, place : place + 2] = np.float16(0.01 * (1 + place)).view(np.uint16) >> np.array([0, 8]) & 255
    data = torch.from_numpy(data).view(37, 3 * size)
    weight = ggml.unpack(kind, data.view(-1, size)).view(37, 3 * weights)
    numbers = torch.randperm(37).int()
    x = torch.randn(16, 3 * weights).to(dtype)
    with native.only(way):
        for order, rows in ((None, weight), (numbers, weight[numbers.long()])):
            y = kernels.product(x, kind, data, order)
            terms = (x.double()[:, None] * rows.double()).abs().sum(2)
            allowed = terms * 3 * weights * UNIT_ROUNDOFF[torch.float32] + 1e-6 + terms * 2 * UNIT_ROUNDOFF[dtype]
            assert ((y.double() - x.double() @ rows.double().T).abs() <= allowed).all()
            for few in (1, 2, 5, 7):
                assert torch.equal(kernels.product(x[:few], kind, data, order), y[:few])
        assert kernels.product(torch.randn(17, 3 * weights), kind, data, None) is None
