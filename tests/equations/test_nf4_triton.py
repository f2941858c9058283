"""The kernels of NF4 for devices: run by Triton's interpreter on the CPU, and on a device where there is one.

The interpreter has a process to itself, since TRITON_INTERPRET counts at the first import of Triton, and transformers is an
importer. Two of its habits are mended there, by what a device does: it cuts a float32 to a bfloat16 where the device rounds
(and widens a subnormal one to another number), and it multiplies the bits of bfloat16 matrices as integers.
"""

import functools
import importlib.util
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor

import jaxtyping
import numpy as np
import pytest
import torch

from inlay.core import blocks
from inlay.core.blocks import Constants
from inlay.kernels import nf4
from tests.support import tolerances

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

WAYS = ["interpreter", *(["device"] if torch.cuda.is_available() else [])]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"


def _interpret():
    """Make ready a process in which kernels are interpreted, and annotations checked as in all tests."""
    os.environ["TRITON_INTERPRET"] = "1"
    jaxtyping.install_import_hook("inlay.kernels.nf4_triton", CHECKER)
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(values, source, target, mode):
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return values.astype(np.uint32) << 16
        return convert(values, source, target, mode)

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    interpreter._convert_float = rounded
    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)


def _call(name, *arguments):
    from inlay.kernels import nf4_triton

    result = getattr(nf4_triton, name)(*arguments)
    return arguments[-1] if name == "dequantize" else result


def _to(device, value):
    """`value` with all its tensors on the device, and that device where it is one."""
    if isinstance(value, torch.device):
        return torch.device(device)
    if isinstance(value, Constants):
        return Constants(*(_to(device, part) for part in value))
    if isinstance(value, tuple):
        return tuple(_to(device, part) for part in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


@pytest.fixture(scope="module", params=WAYS)
def call(request):
    """call(name, *arguments): what the function of `nf4_triton` gives for tensors of the CPU; for dequantize, `out`."""
    if request.param == "device":
        from inlay.kernels import nf4_triton

        if torch.cuda.get_device_capability() < nf4_triton.OLDEST:
            pytest.skip("the device is too old for the kernels")
        yield lambda name, *arguments: _to("cpu", _call(name, *_to("cuda", arguments)))
    else:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _interpret) as pool:
            yield lambda *arguments: pool.submit(_call, *arguments).result()


def weights(num_blocks, block_size):
    """Blocks of different sizes of weights, which are no powers of two apart."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_blocks, block_size, generator=generator) * torch.linspace(0.1, 7.3, num_blocks)[:, None]


def quantized(rows, width, block_size, doubly):
    """(codes, constants, the weight that they are in float32), all by the equations."""
    places, absmax = blocks.quantize(weights(rows * width // block_size, block_size), blocks.nf4_codebook())
    codes = blocks.pack(places).view(rows, width // 2)
    constants = Constants(absmax, None, None, 0.0)
    if doubly:
        q, nested, offset = blocks.quantize_constants(absmax)
        constants = Constants(q, nested, blocks.constants_map(), offset.item())
        absmax = blocks.dequantize_constants(q, nested, blocks.constants_map(), offset.item())
    return codes, constants, blocks.dequantize(places, absmax, blocks.nf4_codebook()).view(rows, width)


@pytest.mark.parametrize("doubly", [True, False], ids=["doubly", "once"])
@pytest.mark.parametrize("block_size", [2, 64, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_have_the_bits_of_the_equations(call, dtype, block_size, doubly):
    rows, width = (101 if block_size < 1024 else 5), 3 * block_size
    codes, constants, weight = quantized(rows, width, block_size, doubly)
    for start, stop in ((0, rows), (rows // 2, rows // 2 + 1), (rows // 3, rows - 1)):  # from block 99 on, past 256
        out = torch.full((stop - start, width), torch.nan, dtype=dtype)
        out = call("dequantize", codes[start:stop], constants, 3 * start, block_size, out)
        assert torch.equal(out, weight[start:stop].to(dtype))


def test_a_contraction_would_change_constants():
    _, (q, nested, map, offset), _ = quantized(173, 192, 64, True)
    stepwise = blocks.dequantize_constants(q, nested, map, offset)
    wide = blocks.dequantize_constants(q, nested.double(), map.double(), offset)  # exact before the last rounding
    assert (wide.float() != stepwise).any()


@pytest.mark.parametrize("block_size", [2, 64, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_is_quantized_to_the_bits_of_the_equations(call, dtype, block_size):
    weight = weights(37, block_size).to(dtype)
    code = blocks.nf4_codebook()
    ties = torch.cat([code, (code[1:] + code[:-1]) / 2])[:block_size]
    weight[1, : len(ties)] = ties.to(dtype)
    weight[3] = 0
    weight[5] = -0.0
    weight[7] = (weights(1, block_size)[0] * 1e-39).to(dtype)
    weight[11] *= min(torch.finfo(dtype).max, 1e38) / 2 / 16
    weight[13] *= -(2.0**-13)
    places, absmax = blocks.quantize(weight, code)
    codes_found, absmax_found = call("quantize", weight)
    assert torch.equal(absmax_found, absmax)
    assert torch.equal(codes_found, blocks.pack(places))


@pytest.mark.parametrize("doubly", [True, False], ids=["doubly", "once"])
@pytest.mark.parametrize(("block_size", "tokens"), [(32, 16), (64, 1), (64, 3), (256, 3)])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_product_is_that_of_the_rows(call, dtype, tokens, block_size, doubly):
    rows, width = 67, (11 if block_size < 256 else 3) * block_size  # in two parts, or one with two runs to a block
    codes, constants, weight = quantized(rows, width, block_size, doubly)
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(5)).to(dtype)
    y = call("product", x, codes, constants, block_size)
    expected = x.double() @ weight.to(dtype).double().T
    assert y.dtype == dtype
    # sums are float32, and rounded once to a narrower dtype
    terms = width * weight.abs().max().item() ** 2 if dtype == torch.float32 else 1
    tolerances.assert_close(y, expected, dtype, terms)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_product_with_ones_is_the_weight_bit_for_bit(call, dtype):
    codes, constants, weight = quantized(67, 11 * 64, 64, True)
    for columns in torch.arange(0, 11 * 64, 13).split(16):  # at all places of a byte's run, and of a block's
        x = torch.nn.functional.one_hot(columns, 11 * 64).to(dtype)
        assert torch.equal(call("product", x, codes, constants, 64), weight[:, columns].T.to(dtype))


def test_what_does_not_suit_the_product_is_left_to_the_plain_way(call):
    codes, constants, _ = quantized(5, 64, 64, True)
    assert call("product", torch.ones(17, 64), codes, constants, 64) is None
    assert call("product", torch.ones(3, 64, dtype=torch.float64), codes, constants, 64) is None
    codes, constants, _ = quantized(5, 64, 16, True)
    assert call("product", torch.ones(3, 64), codes, constants, 16) is None


def test_the_kernels_agree_with_the_plain_way_where_they_are_right(call):
    assert call("_agrees", torch.device("cpu"))


def instructions(kernel, capability, types, **changes):
    """The names of the instructions of a kernel, as the device's compiler gets them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from inlay.kernels import nf4_triton

    sizes = {"PER_BLOCK": 1, "PER_NESTED": 256, "RUN": 32, "RUNS": 32, "BLOCK": 64, "BLOCKS": 32, "MIDPOINTS": 15}
    sizes |= {"ROWS": 64, "TOKENS": 16, "SMALLEST": blocks.SMALLEST}
    names = getattr(nf4_triton, kernel).arg_names
    sizes = {name: sizes[name] for name in names if name.isupper()}
    signature = dict(zip(names, types, strict=False)) | dict.fromkeys(sizes, "constexpr")
    source = ASTSource(fn=getattr(nf4_triton, kernel), signature=signature, constexprs=sizes)
    options = nf4_triton._OPTIONS | changes
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return set(re.findall(r"^\s+(?:@!?%p\d+ )?([a-z]\w*(?:\.\w+)+)", compiled.asm["ptx"], re.MULTILINE))


CONSTANTS = ["*u8", "*fp32", "*fp32", "fp32", "*fp32"]
SIGNATURES = {
    "_dequantize_kernel": ["*u8", *CONSTANTS, "*bf16", "i64", "i32"],
    "_quantize_kernel": ["*fp32", "*fp32", "*u8", "*fp32", "i32"],
    "_product_kernel": ["*bf16", "*u8", *CONSTANTS, "*fp32", "i32", "i32", "i32", "i32"],
}


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        pytest.skip("Triton interprets, and does not compile")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("capability", [80, 90])
def test_the_code_for_devices_rounds_every_step(capability):
    """No contraction, no approximate division, nothing flushed to zero, bfloat16 to the nearest."""
    found = {kernel: instructions(kernel, capability, types) for kernel, types in SIGNATURES.items()}
    for names in found.values():
        assert not {name for name in names if name.startswith("fma.") or ".ftz" in name or ".approx" in name}
        assert not {name for name in names if name.startswith(("mul.f", "add.f"))}  # may be contracted later
    assert {"mul.rn.f32", "add.rn.f32", "cvt.rn.bf16x2.f32"} <= found["_dequantize_kernel"]
    assert {name for name in found["_quantize_kernel"] if name.startswith("div.")} == {"div.rn.f64"}
    assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in found["_product_kernel"]


@pytest.mark.usefixtures("compiler")
def test_a_contraction_would_be_read():
    found = instructions("_dequantize_kernel", 80, SIGNATURES["_dequantize_kernel"], enable_fp_fusion=True)
    assert "fma.rn.f32" in found


def contracted(codes, constants, first, block_size, out):
    wide = constants._replace(nested=constants.nested.double(), map=constants.map.double())
    absmax = wide.read(first, first + out.numel() // block_size).float()
    out.copy_(blocks.dequantize(blocks.unpack(codes, block_size), absmax, blocks.nf4_codebook()).view(out.shape))


def product(cut, x, codes, constants, block_size):
    """x W^T for rows of ones, with the weight rounded to the nearest, or cut, to the dtype of x."""
    weight = torch.empty(len(codes), x.shape[1])
    nf4.dequantize(codes, constants, 0, block_size, weight)
    weight = (weight.view(torch.int32) & -(1 << 16)).view(torch.float32) if cut else weight
    return (x.double() @ weight.to(x.dtype).double().T).to(x.dtype)


def flushed(weight):
    codes, absmax = nf4.quantize(weight)
    codes.view(len(absmax), -1)[absmax == 0] = 0
    return codes, absmax


@pytest.mark.parametrize(
    ("wrong", "way"),
    [
        (None, None),
        ("dequantize", contracted),
        ("quantize", flushed),
        ("quantize", lambda weight: nf4.quantize(weight.nextafter(torch.tensor(0.0)))),
        ("product", functools.partial(product, True)),
        ("product", lambda *operands: None),
    ],
    ids=["right", "contracted", "flushed", "smaller", "cut", "missing"],
)
def test_a_device_that_is_wrong_does_not_agree(module, monkeypatch, wrong, way):
    ways = {"quantize": nf4.quantize, "dequantize": nf4.dequantize, "product": functools.partial(product, False)}
    for name, function in (ways | ({wrong: way} if wrong else {})).items():
        monkeypatch.setattr(module, name, function)
    assert module._agrees(torch.device("cpu")) == (wrong is None)


@pytest.fixture
def module(monkeypatch):
    from inlay.kernels import nf4_triton

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return nf4_triton


def available(module):
    return module.available.__wrapped__(torch.device("cuda", 0))


def test_a_device_that_agrees_is_served(module, monkeypatch):
    monkeypatch.setattr(module, "_agrees", lambda device: True)
    assert available(module)


def test_an_old_device_is_not_tried(module, monkeypatch):
    monkeypatch.setattr(module, "_agrees", lambda device: pytest.fail("tried"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not available(module)


def test_a_device_of_another_maker_is_not_tried(module, monkeypatch):
    monkeypatch.setattr(module, "_agrees", lambda device: pytest.fail("tried"))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not available(module)


def test_a_device_with_other_bits_is_left_to_the_plain_way(module, monkeypatch):
    monkeypatch.setattr(module, "_agrees", lambda device: False)
    with pytest.warns(UserWarning, match="not used on cuda:0, which is slower: they do not give the same bits"):
        assert not available(module)


def test_a_device_without_a_compiler_is_left_to_the_plain_way(module, monkeypatch):
    def fails(device):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(module, "_agrees", fails)
    with pytest.warns(UserWarning, match="RuntimeError: Failed to find C compiler"):
        assert not available(module)
