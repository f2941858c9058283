"""Weights that travel to a device as they are used; on the processor, which has no streams, but the same order of events."""

import functools

import pytest
import torch

from inlay import quant
from inlay.core.product import linear, linear_backward
from inlay.errors import ConfigError
from inlay.modules import streamed

CPU = torch.device("cpu")
SHAPES = ((40, 64), (24, 128), (72, 64), (16, 192), (40, 64))


@pytest.fixture(params=quant.names())
def matrices(request):
    scheme, generator = quant.find(request.param), torch.Generator().manual_seed(0)
    return [scheme.open(scheme.quantize(torch.randn(shape, generator=generator))) for shape in SHAPES]


def test_to_and_fro_gives_what_resident_weights_give(matrices):
    streamer = streamed.Streamer(matrices, CPU)
    for _ in range(3):
        order = [*range(len(SHAPES)), *reversed(range(len(SHAPES)))]
        for step, k in enumerate(order):
            x, g = torch.randn(30, SHAPES[k][1]), torch.randn(30, SHAPES[k][0])
            there, here = streamer.matrices[k], matrices[k]
            if step < len(SHAPES):
                assert torch.equal(linear(x, there, None), linear(x, here, None))
            else:
                assert torch.equal(linear_backward(g, there), linear_backward(g, here))


def test_any_order_gives_what_resident_weights_give(matrices):
    streamer, generator = streamed.Streamer(matrices, CPU), torch.Generator().manual_seed(1)
    for k in torch.randint(0, len(SHAPES), (60,), generator=generator).tolist():
        assert torch.equal(streamer.matrices[k].dequantize(torch.float32), matrices[k].dequantize(torch.float32))


def test_a_weight_travels_once_where_the_direction_turns(matrices):
    streamer, count = streamed.Streamer(matrices, CPU), len(SHAPES)
    for k in [*range(count), *reversed(range(count))]:
        streamer.matrices[k].dequantize(torch.float32)
    assert streamer.num_sent == 2 * count - 2  # the last two are there still when the way back begins


def test_the_next_weight_is_sent_for_while_one_is_used(matrices):
    streamer = streamed.Streamer(matrices, CPU)
    streamer.use(0)
    assert streamer.num_sent == 2


def test_what_fits_stays_and_the_rest_travels(matrices):
    total = sum(matrix.num_bytes for matrix in matrices)
    for limit, some in ((None, False), (2 * total, False), (6 * total // 5, True)):
        placed = streamed.place(matrices, others=0, limit=limit, device=CPU)
        travelling = [isinstance(matrix.before_use, functools.partial) for matrix in placed]
        assert any(travelling) == some
        assert not travelling[0]
        for there, here in zip(placed, matrices, strict=True):
            assert torch.equal(there.dequantize(torch.float32), here.dequantize(torch.float32))


def test_too_little_memory_is_refused_with_what_is_needed(matrices):
    with pytest.raises(
        ConfigError, match=r"not even with its weights streamed\n  found: 0.0 GB.*\n  hint:  --device-memory 1GB"
    ):
        streamed.place(matrices, others=1000, limit=2000, device=CPU)
