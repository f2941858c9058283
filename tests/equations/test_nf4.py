"""NF4 against the paper, bitsandbytes, and itself: every way that this processor has gives the same bits."""

import ctypes
import itertools
import mmap
import statistics
import sys
import warnings

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from inlay.core import blocks, product
from inlay.errors import UnknownNameError
from inlay.kernels import native, nf4
from inlay.quant.nf4 import BLOCK, Nf4
from tests.support.tolerances import assert_close

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LEAST_SAMPLES = 40
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_variant = pytest.mark.parametrize("variant", [*native.supported(), native.TORCH])


@pytest.fixture(scope="module")
def peer():
    """bitsandbytes' functions. What it warns of at import is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes.functional
    return bitsandbytes.functional


# The paper


def test_the_code_is_that_of_the_normal_distribution():
    """Section 3 and appendix E: even probabilities on either side of an exact zero, the largest value scaled to 1."""
    offset = ((1 - 1 / 32) + (1 - 1 / 30)) / 2
    quantile = statistics.NormalDist().inv_cdf
    above = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    code = sorted([*above, 0.0, *below])
    assert torch.tensor(blocks.NF4, dtype=torch.float64) == pytest.approx(
        torch.tensor([value / code[-1] for value in code], dtype=torch.float64), abs=2e-7
    )


def test_a_weight_takes_as_many_bits_as_the_paper_says():
    scheme, shape = Nf4(), (4096, 4096)
    layout = scheme.layout(shape, torch.bfloat16)
    tables = {".quant_map", ".nested_quant_map", *scheme.marks}
    sizes = {key: torch.Size(size).numel() * dtype.itemsize for key, (dtype, size) in layout.items()}
    bits = 8 * sum(size for key, size in sizes.items() if key not in tables) / 4096**2
    assert bits == 4 + 8 / 64 + 32 / (64 * 256) == 4.126953125
    assert scheme.num_bytes(shape, torch.bfloat16) == sum(sizes.values())
    assert sum(sizes[key] for key in tables) < 1500


@every_variant
@every_dtype
def test_a_place_is_the_nearest_and_a_weight_its_value_times_the_constant(variant, dtype):
    weight = awkward(13, 64, dtype)
    with native.only(variant):
        codes, absmax = nf4.quantize(weight)
        found = torch.empty(13, 64)
        nf4.dequantize(codes.view(13, 32), blocks.Constants(absmax, None, None, 0.0), 0, 64, found)
    for block, constant, bytes, values in zip(
        weight.double().tolist(), absmax.tolist(), codes.view(13, 32).tolist(), found.tolist(), strict=True
    ):
        assert constant == max(abs(value) for value in block)
        places = [place for byte in bytes for place in (byte >> 4, byte & 15)]
        divisor = max(constant, 1e-38)  # a habit of bitsandbytes
        for value, place, made in zip(block, places, values, strict=True):
            distances = [abs(value / divisor - level) for level in blocks.NF4]
            assert distances[place] <= min(distances) + 1e-6
            assert made == pytest.approx(blocks.NF4[place] * constant, rel=1e-7, abs=1e-44)


# bitsandbytes


@every_dtype
@pytest.mark.parametrize("doubly", [True, False], ids=["doubly", "once"])
@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (37, 192), (259, 1024)], ids=str)
def test_bytes_are_those_of_bitsandbytes(peer, shape, doubly, dtype):
    weight = awkward(shape[0] * shape[1] // 64, 64, dtype).view(shape)
    if doubly:  # the mean of constants that are 1e38 apart is nobody's purpose, and overflows
        weight = weight.float().clamp(-8, 8).to(dtype)
    codes, state = peer.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=doubly)
    if doubly:
        packed = Nf4().quantize(weight)
        expected = {
            "": codes,
            ".absmax": state.absmax,
            ".nested_absmax": state.state2.absmax,
            ".nested_quant_map": state.state2.code,
            ".quant_map": state.code,
        }
        for key, tensor in expected.items():
            assert torch.equal(packed[key], tensor), key
        matrix = Nf4().open(packed)
    else:
        ours, absmax = nf4.quantize(weight.view(-1, 64))
        assert torch.equal(ours, codes)
        assert torch.equal(absmax, state.absmax)
        once = {key: t for key, t in state.as_dict(packed=True).items() if isinstance(t, torch.Tensor)}
        matrix = Nf4().open({"": ours, **{f".{key}": tensor for key, tensor in once.items()}})
    assert torch.equal(flushed(matrix.dequantize(dtype)), flushed(peer.dequantize_4bit(codes, state)))


def flushed(values):
    """Without what is below the smallest normal number, which bitsandbytes makes zero where bfloat16 has instructions."""
    return values.where(values.abs() >= torch.finfo(values.dtype).tiny, torch.zeros_like(values))


@pytest.mark.parametrize("block_size", BLOCKS)
@every_dtype
def test_other_block_sizes_of_bitsandbytes_are_read(peer, block_size, dtype):
    weight = awkward(3, block_size, dtype)
    codes, state = peer.quantize_4bit(weight, blocksize=block_size, quant_type="nf4")
    out = torch.empty_like(weight)
    constants = blocks.Constants(state.absmax, None, None, 0.0)
    nf4.dequantize(codes.view(3, -1), constants, 0, block_size, out)
    assert torch.equal(out, peer.dequantize_4bit(codes, state))


def test_the_map_of_the_constants_is_that_of_bitsandbytes(peer):
    assert torch.equal(blocks.constants_map(), peer.create_dynamic_map(signed=True).sort().values)


# Every way against torch's


def awkward(num_blocks, block_size, dtype, seed=5):
    """Blocks of several sizes of weights, among them zeros, ties between two places, and the ends of the dtype's range."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_blocks, block_size, generator=generator)
    weight *= torch.rand(num_blocks, 1, generator=generator) * 3
    code = blocks.nf4_codebook()
    ties = torch.cat([code, (code[1:] + code[:-1]) / 2])
    limits = torch.finfo(dtype)
    special = [
        torch.zeros(block_size),
        -torch.zeros(block_size),
        ties.repeat(block_size // len(ties) + 1)[:block_size],
        weight[0] * limits.tiny,  # normal and subnormal numbers
        weight[0] * limits.smallest_normal * limits.eps,
        weight[0] / weight[0].abs().max() * limits.max,
        torch.linspace(-1, 1, block_size) * torch.tensor(limits.max).sqrt(),
    ]
    for i, block in enumerate(special[: num_blocks - 1], 1):
        weight[i] = block
    return weight.to(dtype)


def constants_of(absmax, doubly):
    """The constants of some blocks, quantised themselves where asked."""
    if not doubly:
        return blocks.Constants(absmax, None, None, 0.0)
    q, nested, offset = blocks.quantize_constants(absmax)
    return blocks.Constants(q, nested, blocks.constants_map(), offset.item())


@every_variant
@given(
    rows=st.integers(1, 9),
    per_row=st.integers(1, 5),
    block_size=st.sampled_from((2, 16, *BLOCKS)),
    dtype=st.sampled_from(DTYPES),
    threads=st.sampled_from((1, 2)),
    seed=st.integers(0, 99),
)
@settings(max_examples=LEAST_SAMPLES, deadline=None)
def test_places_and_constants_have_the_bits_of_the_plain_way(
    variant, rows, per_row, block_size, dtype, threads, seed, many_threads
):
    weight = awkward(rows * per_row, block_size, dtype, seed)
    places, absmax = blocks.quantize(weight, blocks.nf4_codebook())
    with native.only(variant), many_threads(threads):
        found = nf4.quantize(weight)
    assert torch.equal(found[0], blocks.pack(places))
    assert torch.equal(found[1], absmax)


@every_variant
@given(
    rows=st.integers(1, 9),
    per_row=st.integers(1, 70),
    block_size=st.sampled_from((2, 16, *BLOCKS)),
    dtype=st.sampled_from((*DTYPES, torch.float64)),
    doubly=st.booleans(),
    threads=st.sampled_from((1, 2)),
    data=st.data(),
)
@settings(max_examples=LEAST_SAMPLES, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_rows_have_the_bits_of_the_plain_way(
    variant, rows, per_row, block_size, dtype, doubly, threads, data, many_threads
):
    assume(rows * per_row * block_size <= 1 << 18)
    absmax = awkward(rows * per_row, 32, torch.float32)[:, 7].abs().clamp(max=1e30 if doubly else torch.inf)
    constants = constants_of(absmax, doubly)
    codes = torch.randint(0, 256, (rows, per_row * block_size // 2), dtype=torch.uint8)
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start, rows))
    expected, found = torch.empty(2, stop - start, per_row * block_size, dtype=dtype)
    with native.only(native.TORCH):
        nf4.dequantize(codes[start:stop], constants, start * per_row, block_size, expected)
    with native.only(variant), many_threads(threads):
        nf4.dequantize(codes[start:stop], constants, start * per_row, block_size, found)
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert torch.equal(found.isnan(), expected.isnan())


@every_variant
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(
    "constant", [torch.inf, -torch.inf, torch.nan, 3.4e38, 65519.9, 65520.0, 1e-45, 6e-8, 0.0, -0.0]
)
def test_constants_from_a_file_may_be_anything(variant, dtype, constant):
    codes = torch.arange(256).to(torch.uint8).view(8, 32)
    constants = blocks.Constants(torch.full((8,), constant), None, None, 0.0)
    expected, found = torch.empty(2, 8, 64, dtype=dtype)
    with native.only(native.TORCH):
        nf4.dequantize(codes, constants, 0, 64, expected)
    with native.only(variant):
        nf4.dequantize(codes, constants, 0, 64, found)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7).view(torch.uint8), expected.nan_to_num(7).view(torch.uint8))


@every_variant
@given(
    tokens=st.integers(1, product.FEW_TOKENS + 1),
    rows=st.integers(1, 40),
    per_row=st.integers(1, 5),
    block_size=st.sampled_from((16, 32, 64, 256)),
    dtype=st.sampled_from(DTYPES),
    doubly=st.booleans(),
    threads=st.sampled_from((1, 2)),
)
@settings(max_examples=LEAST_SAMPLES, deadline=None)
def test_a_product_is_that_of_the_weight(
    variant, tokens, rows, per_row, block_size, dtype, doubly, threads, many_threads
):
    width = per_row * block_size
    x = torch.randn(tokens, width, dtype=torch.float64).to(dtype)
    codes, absmax = nf4.quantize(torch.randn(rows * per_row, block_size) / width**0.5)
    constants = constants_of(absmax, doubly)
    weight = torch.empty(rows, width)
    nf4.dequantize(codes.view(rows, -1), constants, 0, block_size, weight)
    with native.only(variant), many_threads(threads):
        y = nf4.product(x, codes.view(rows, -1), constants, block_size)
    if variant == native.TORCH or tokens > product.FEW_TOKENS or block_size < nf4.SMALLEST_PRODUCT_BLOCK:
        assert y is None
    else:
        assert y is not None
        assert y.dtype == dtype
        assert_close(y, x.double() @ weight.double().T, dtype, width)


@pytest.mark.skipif(not native.multiplies_bfloat16(), reason="needs instructions that multiply bfloat16")
def test_where_bfloat16_is_multiplied_the_code_is_rounded_by_less_than_weights_are():
    """The code times a factor is rounded, then each block is multiplied by its constant: nearer to the weight than its own rounding."""
    rows, width = 48, 5 * 64
    x = torch.randn(3, width).bfloat16()
    codes, absmax = nf4.quantize(torch.randn(rows * 5, 64))
    constants = constants_of(absmax, True)
    weight = torch.empty(rows, width)
    nf4.dequantize(codes.view(rows, -1), constants, 0, 64, weight)
    y = nf4.product(x, codes.view(rows, -1), constants, 64)
    absmax = constants.read(0, rows * 5)
    rounded = blocks.nf4_codebook().mul(1.4367).bfloat16().float() / 1.4367
    made = blocks.dequantize(blocks.unpack(codes.view(rows, -1), 64), absmax, rounded).view(rows, width)
    expected, sizes = x.double() @ made.double().T, x.double().abs() @ made.double().abs().T
    assert ((y - expected).abs() <= 2**-8 * expected.abs() + sizes * width * 2**-24).all()
    assert (made - weight).square().mean() < 0.5 * (weight.bfloat16() - weight).square().mean()


@every_variant
def test_a_product_is_the_same_on_any_number_of_threads(variant, many_threads):
    if variant == native.TORCH:
        pytest.skip("there is no such product")
    x = torch.randn(8, 256)
    codes, absmax = nf4.quantize(torch.randn(33 * 4, 64))
    weight = (codes.view(33, -1), constants_of(absmax, True), 64)
    with native.only(variant):
        results = []
        for threads in (1, 2):
            with many_threads(threads):
                results.append(nf4.product(x, *weight))
        assert torch.equal(*results)


@every_variant
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_has_the_same_bits_beside_any_others(variant, dtype):
    if variant == native.TORCH:
        pytest.skip("there is no such product")
    x = torch.randn(product.FEW_TOKENS, 5 * 64).to(dtype)  # with half a chunk at the end
    codes, absmax = nf4.quantize(torch.randn(7 * 5, 64))
    with native.only(variant):
        for constants in (constants_of(absmax, False), constants_of(absmax, True)):
            weight = (codes.view(7, -1), constants, 64)
            alone = torch.cat([nf4.product(token[None], *weight) for token in x])
            for tokens in range(2, len(x) + 1):
                assert torch.equal(nf4.product(x[:tokens], *weight), alone[:tokens])


@every_variant
def test_the_constants_of_a_product_may_belong_to_two_groups(variant):
    """256 constants share one: the next begins between the two blocks that AVX-512 takes at once."""
    if variant == native.TORCH:
        pytest.skip("there is no such product")
    rows, width = 60, 9 * 64
    codes, absmax = nf4.quantize(torch.randn(rows * 9, 64) * torch.logspace(-2, 2, rows * 9)[:, None])
    constants, x = constants_of(absmax, True), torch.randn(1, width)
    weight = torch.empty(rows, width)
    nf4.dequantize(codes.view(rows, -1), constants, 0, 64, weight)
    with native.only(variant):
        y = nf4.product(x, codes.view(rows, -1), constants, 64)
    expected, sizes = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    assert ((y - expected).abs() <= sizes * width * 2**-24).all()


@every_variant
def test_tensors_that_are_not_contiguous_are_read_as_they_are(variant):
    weight = torch.randn(64, 6).T
    codes, absmax = blocks.quantize(weight, blocks.nf4_codebook())
    packed = blocks.pack(codes).view(6, 32)
    wide = torch.zeros(6, 70, dtype=torch.uint8)
    wide[:, 3:35] = packed
    spread = torch.stack([absmax, absmax + 1], 1)[:, 0]
    x = torch.randn(64, 3).T
    expected = blocks.dequantize(codes, absmax, blocks.nf4_codebook())
    with native.only(variant):
        assert torch.equal(nf4.quantize(weight)[0], blocks.pack(codes))
        for constants in (absmax, spread):
            out = torch.empty(64, 6).T
            nf4.dequantize(wide[:, 3:35], blocks.Constants(constants, None, None, 0.0), 0, 64, out)
            assert torch.equal(out, expected)
        y = nf4.product(x, wide[:, 3:35], blocks.Constants(absmax, None, None, 0.0), 64)
        if variant != native.TORCH:
            assert_close(y, x.double() @ expected.double().T, torch.float32, 64)


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@every_variant
@pytest.mark.parametrize("block_size", [32, 64])
def test_nothing_is_read_beyond_the_end_of_the_codes(variant, block_size):
    """They end where a page that can't be read begins, as those of a mapped file may."""
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(start + mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
    rows, half = 3, 5 * block_size // 2
    codes = torch.frombuffer(pages, dtype=torch.uint8, count=rows * half, offset=mmap.PAGESIZE - rows * half)
    codes.copy_(torch.arange(rows * half))
    constants = blocks.Constants(torch.rand(rows * 5), None, None, 0.0)
    with native.only(variant):
        for dtype in DTYPES:
            nf4.dequantize(codes.view(rows, half), constants, 0, block_size, torch.empty(rows, 2 * half, dtype=dtype))
            x = torch.randn(2, 2 * half, dtype=dtype)
            nf4.product(x, codes.view(rows, half), constants, block_size)


def test_large_pages_change_nothing(monkeypatch):
    codes, absmax = nf4.quantize(torch.randn(64 * 128, 64))
    constants, results = constants_of(absmax, True), []
    for large in (0, 1 << 60):
        monkeypatch.setattr(nf4, "LARGE_BYTES", large)
        memory = torch.full((64 * 8192 + 3,), torch.nan)
        out = memory[1:-2].view(64, 8192)  # begins and ends inside a page
        nf4.dequantize(codes.view(64, 4096), constants, 0, 64, out)
        assert memory.isnan().sum() == 3
        results.append(out)
    assert torch.equal(*results)


@every_variant
def test_nothing_is_made_of_nothing(variant):
    with native.only(variant):
        codes, absmax = nf4.quantize(torch.empty(0, 64))
        assert codes.shape == (0, 1)
        assert absmax.shape == (0,)
        nf4.dequantize(codes.view(0, 64), blocks.Constants(absmax, None, None, 0.0), 0, 64, torch.empty(0, 128))


def test_constants_that_do_not_reach_are_an_error_in_every_way():
    codes, out = torch.zeros(4, 32, dtype=torch.uint8), torch.empty(4, 64)
    for variant in (*native.supported(), native.TORCH):
        with native.only(variant), pytest.raises((RuntimeError, TypeError)):  # the latter of the tests' hook
            nf4.dequantize(codes, blocks.Constants(torch.ones(3), None, None, 0.0), 0, 64, out)


def test_a_contraction_would_change_constants():
    """So that bit equality above shows that there is none."""
    q, nested, map, offset = constants_of(torch.rand(1000), True)
    stepwise = blocks.dequantize_constants(q, nested, map, offset)
    wide = blocks.dequantize_constants(q, nested.double(), map.double(), offset)
    assert (wide.float() != stepwise).any()


# Where the compiled way is, and where not


def test_an_unknown_way_is_refused():
    with pytest.raises(UnknownNameError, match="one of"), native.only("cuneiform"):
        pass


def test_it_says_why_there_is_no_library(tmp_path, monkeypatch):
    """Without one everything works in torch."""
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    for broken, why in ((False, "not built"), (True, "can't be loaded")):
        if broken:
            (tmp_path / "_kernels.abi3.so").write_bytes(b"no library")
        _forget()
        assert why in native.why_not()
        assert native.variant() == native.TORCH
        weight = torch.randn(3, 64)
        assert torch.equal(nf4.quantize(weight)[0], blocks.pack(blocks.quantize(weight, blocks.nf4_codebook())[0]))
    monkeypatch.undo()
    _forget()


def _forget():
    native._load.cache_clear()
    native.supported.cache_clear()


@pytest.mark.skipif(not native.supported(), reason="the library was not built")
def test_the_threads_are_torchs():
    """The library starts them with the function of the OpenMP library that is already there."""
    assert native.why_not() is None
    assert native.variant() == native.supported()[-1]
    if sys.platform == "linux":
        with open("/proc/self/maps") as maps:
            loaded = {line.split()[-1] for line in maps if "omp" in line.rpartition("/")[-1]}
        assert native._gomp_parallel() is not None
        assert not any("_kernels" in path for path in loaded)


def test_every_name_of_a_variant_is_one_of_the_library():
    assert set(native.supported()) <= set(native.VARIANTS)
    assert len(set(itertools.chain(native.VARIANTS, [native.TORCH]))) == len(native.VARIANTS) + 1


def test_the_block_of_the_scheme_is_one_that_the_library_takes():
    assert BLOCK % nf4.SMALLEST_BLOCK == 0
