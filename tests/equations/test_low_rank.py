"""What adapters add for a few tokens: of each token what its own say, in each way, and nothing beside it decides that."""

import pytest
import torch

from inlay.core.routed import Factors, Segment
from inlay.kernels import low_rank, native, product, program
from inlay.quant.int8 import Int8

WAYS = [name for name in native.supported() if name != "plain"]
DTYPES = [torch.float32, torch.bfloat16]
RANKS = (16, 1, 5, 70)
SIZES = [(64, 48), (40, 33), (7, 3)]
SEGMENTS = (Segment(0, 1, 2), Segment(1, 4, 0), Segment(5, 6, 1), Segment(6, 7, 3), Segment(7, 8, 0))
"""Token 4 has no adapter; of some there are several segments."""


def _given(sizes, dtype, tokens=8):
    generator = torch.Generator().manual_seed(0)
    width, out = sizes

    def drawn(*size):
        return torch.randn(*size, generator=generator)

    factors = [Factors(drawn(r, width), drawn(out, r), 0.3 + r / 100) for r in RANKS]
    return drawn(tokens, width).to(dtype), drawn(tokens, out).to(dtype), factors


def _expected(x, y, factors, segments):
    out = y.double()
    for s in segments:
        A, B = (tensor.to(x.dtype).double() for tensor in (factors[s.adapter].A, factors[s.adapter].B))
        scaling = s.weight * factors[s.adapter].scaling
        out[s.start : s.stop] += scaling * (x[s.start : s.stop].double() @ A.T) @ B.T
    return out


def _added(x, y, factors, segments):
    out = y.clone()
    low_rank.Entries([low_rank.pack(f, x.dtype) for f in factors], segments).add_(out, x)
    return out


@pytest.mark.parametrize("way", [native.TORCH, *WAYS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_each_token_gets_what_its_own_adapters_say(way, dtype, sizes):
    x, y, factors = _given(sizes, dtype)
    several = (*SEGMENTS, Segment(0, 3, 3, 0.25), Segment(2, 8, 1, -2.0))
    for segments in (SEGMENTS, several, ()):
        expected = _expected(x, y, factors, segments)
        with native.only(way):
            out = _added(x, y, factors, segments)
        scale = expected.abs().max() + 1
        assert (out.double() - expected).abs().max() <= scale * (2e-5 if dtype == torch.float32 else 2e-2)
        untouched = [t for t in range(len(x)) if not any(s.start <= t < s.stop for s in segments)]
        assert torch.equal(out[untouched], y[untouched])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_does_not_depend_on_those_beside_it(dtype):
    x, y, factors = _given(SIZES[0], dtype)
    together = _added(x, y, factors, SEGMENTS)
    for s in SEGMENTS:
        alone = _added(x[s.start : s.stop], y[s.start : s.stop], factors, [Segment(0, s.stop - s.start, s.adapter)])
        assert torch.equal(alone, together[s.start : s.stop])


def test_adapters_that_leave_a_map_alone_and_many_tokens():
    x, y, factors = _given(SIZES[0], torch.float32, tokens=low_rank.MOST_TOKENS + 5)
    out = y.clone()
    packed = [None, *(low_rank.pack(f, x.dtype) for f in factors[1:])]
    segments = (Segment(0, 20, 0), Segment(20, len(x), 1))
    low_rank.Entries(packed, segments).add_(out, x)
    assert torch.equal(out[:20], y[:20])
    assert (out.double() - _expected(x, y, factors, segments[1:])).abs().max() < 1e-4


def test_an_adapter_whose_tokens_are_not_asked_for_adds_nothing():
    x, y, factors = _given(SIZES[0], torch.float32)
    for segments in ((Segment(0, 0, 0), Segment(0, len(x), 1)), (Segment(len(x), len(x), 0),)):
        out, expected = (_added(x, y, factors, own) for own in (segments, [s for s in segments if s.start < s.stop]))
        assert torch.equal(out, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(64, 48), (64, 160), (40, 33), (32, 130)], ids=str)
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("is_int8", [False, True])
def test_in_one_go_with_a_product_the_bits_are_the_same(monkeypatch, many_threads, way, dtype, sizes, threads, is_int8):
    x, _, factors = _given(sizes, dtype)
    weight = torch.randn(sizes[1], sizes[0], generator=torch.Generator().manual_seed(1)).to(dtype)
    weight = Int8().open(Int8().quantize(weight)) if is_int8 else weight
    entries = low_rank.Entries([low_rank.pack(f, dtype) for f in factors], (*SEGMENTS, Segment(2, 8, 1, -2.0)))

    def both():
        y = product.linear(x, weight, None)
        entries.add_(y, x)
        return y

    done = list[native.Done]()
    program_of = native.Program
    monkeypatch.setattr(native, "Program", lambda jobs: done.extend(jobs) or program_of(jobs))
    with native.only(way), many_threads(threads):
        alone = both()
        out, again = program.recorded(both)
        assert torch.equal(out, alone)
        if again is None:  # the product is torch's
            assert dtype == torch.bfloat16
            assert not is_int8
            return
        assert [one.kernel for one in done] == ["product"]
        for _ in range(20):
            out.fill_(torch.nan)
            again()
            assert torch.equal(out, alone)


def test_outputs_wait_for_the_parts_that_other_threads_make(many_threads):
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(low_rank.MOST_RANK, size, generator=generator) for size in (8192, 64))
    x, y = (torch.randn(1, size, generator=generator) for size in (8192, 64))
    entries = low_rank.Entries([low_rank.pack(Factors(A, B.T, 0.1), x.dtype)], [Segment(0, 1, 0)])
    signs = [(-1) ** i for i in range(40)]  # what a call before has left is wrong

    def added(sign):
        out = y.clone()
        entries.add_(out, sign * x)
        return out

    with many_threads(1):
        expected = {sign: added(sign) for sign in (1, -1)}
    with many_threads(3):
        assert all(torch.equal(added(sign), expected[sign]) for sign in signs)
