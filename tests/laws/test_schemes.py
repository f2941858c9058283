"""The laws of schemes: they hold for every file of quant/, and a new scheme is under them the day it lands."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay import quant
from inlay.core import product
from inlay.errors import FormatError
from tests.support.tolerances import assert_close

SHAPES = ((1, 64), (7, 64), (37, 192), (65, 320))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytestmark = pytest.mark.parametrize("scheme", [pytest.param(quant.find(name), id=name) for name in quant.names()])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def weight(shape, dtype):
    """Rows of several sizes, with one of zeros where there are several, and outliers."""
    generator = torch.Generator().manual_seed(shape[0])
    made = torch.randn(shape, generator=generator) * torch.linspace(0.03, 2.7, shape[0])[:, None]
    made[0, 5] = 11.3
    if shape[0] > 3:
        made[3] = 0
    return made.to(dtype)


@shapes
@dtypes
def test_no_weight_is_off_by_more_than_the_worst_error(scheme, shape, dtype):
    original = weight(shape, dtype)
    bound = scheme.worst_error(original)
    found = scheme.open(scheme.quantize(original)).dequantize(torch.float32)
    error = (found.double() - original.double()).abs()
    assert bound.shape == shape
    assert bound.dtype == torch.float32
    assert (error <= bound).all()
    assert shape[0] == 1 or (error > bound / 3).any(), "a bound that nothing comes near says little"


@shapes
@dtypes
def test_to_quantize_again_changes_no_code(scheme, shape, dtype):
    packed = scheme.quantize(weight(shape, dtype))
    again = scheme.quantize(scheme.open(packed).dequantize(torch.float32))
    assert torch.equal(again[""], packed[""])


@shapes
@dtypes
def test_its_layout_is_what_it_returns(scheme, shape, dtype):
    packed = scheme.quantize(weight(shape, dtype))
    layout = scheme.layout(shape, dtype)
    assert scheme.problem(shape) is None
    assert list(packed) == list(layout)
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in packed.items()} == layout
    assert scheme.num_bytes(shape, dtype) == scheme.open(packed).num_bytes == sum(t.nbytes for t in packed.values())
    assert all(tensor.is_contiguous() for tensor in packed.values())


@shapes
@dtypes
@pytest.mark.parametrize("read", DTYPES, ids=str)
def test_any_rows_are_those_of_the_whole(scheme, shape, dtype, read):
    matrix = scheme.open(scheme.quantize(weight(shape, dtype)))
    whole = matrix.dequantize(read)
    assert whole.dtype == read
    assert torch.equal(whole, matrix.dequantize(torch.float32).to(read))
    rows = shape[0]
    for start, stop in {(0, rows), (rows // 2, rows), (rows // 3, rows // 3 + 1), (rows - 1, rows), (0, 0)}:
        out = torch.full((stop - start, shape[1]), torch.nan, dtype=read)
        matrix.read(start, out)
        assert torch.equal(out, whole[start:stop])


@shapes
@dtypes
def test_the_weight_is_not_changed_and_need_not_be_contiguous(scheme, shape, dtype):
    original = weight(shape, dtype)
    before = original.clone()
    packed = scheme.quantize(original)
    scheme.worst_error(original)
    assert torch.equal(original, before)
    for other in (original.T.contiguous().T, torch.stack([original, original], 1)[:, 1]):
        spread = scheme.quantize(other)
        assert all(torch.equal(spread[key], packed[key]) for key in packed)


@shapes
@pytest.mark.parametrize("tokens", [1, 3, product.FEW_TOKENS, product.FEW_TOKENS + 1])
def test_products_are_those_of_the_dequantised_weight(scheme, shape, tokens):
    matrix = scheme.open(scheme.quantize(weight(shape, torch.bfloat16)))
    plain = matrix.dequantize(torch.float64)
    scale = plain.norm(dim=1).max().item()
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(tokens, shape[1], generator=generator) / scale
    g = torch.randn(tokens, shape[0], generator=generator) / scale
    bias = torch.randn(shape[0], generator=generator)
    y = product.linear(x, matrix, bias)
    assert_close(y, x.double() @ plain.T + bias, torch.float32, shape[1])
    assert_close(product.linear_backward(g, matrix), g.double() @ plain, torch.float32, shape[0])


@shapes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_product_of_narrow_inputs_is_rounded_to_their_dtype(scheme, shape, dtype):
    matrix = scheme.open(scheme.quantize(weight(shape, dtype)))
    plain = matrix.dequantize(torch.float64)
    x = (torch.randn(3, shape[1]) / plain.norm(dim=1).max()).to(dtype)
    y = product.linear(x, matrix, None)
    assert y.dtype == dtype
    assert_close(y, x.double() @ plain.T, dtype, 4)


@shapes
@dtypes
def test_saved_and_loaded_it_is_the_same_to_the_bit(scheme, shape, dtype, tmp_path):
    packed = scheme.quantize(weight(shape, dtype))
    names = {key: f"proj.weight{key}" if not key or key.startswith(".") else f"proj.{key}" for key in packed}
    save_file({names[key]: tensor for key, tensor in packed.items()}, tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors")
    assert len(loaded) == len(packed)
    assert all(any(name.endswith(mark) for name in loaded) for mark in scheme.marks)
    again = {key: loaded[name] for key, name in names.items()}
    assert all(torch.equal(again[key].view(torch.uint8), tensor.view(torch.uint8)) for key, tensor in packed.items())
    assert torch.equal(scheme.open(again).dequantize(torch.float32), scheme.open(packed).dequantize(torch.float32))


def test_over_other_tensors_it_is_their_weight(scheme):
    shape = (7, 192)
    matrix = scheme.open(scheme.quantize(weight(shape, torch.float32)))
    packed = scheme.quantize(-weight(shape, torch.float32))
    other = matrix.over({key: tensor.clone() for key, tensor in packed.items()})
    assert (other.shape, other.dtype) == (matrix.shape, matrix.dtype)
    assert torch.equal(other.dequantize(torch.float32), scheme.open(packed).dequantize(torch.float32))
    assert not torch.equal(other.dequantize(torch.float32), matrix.dequantize(torch.float32))


def test_it_says_when_a_product_begins(scheme):
    matrix, calls = scheme.open(scheme.quantize(weight((7, 64), torch.float32))), []
    matrix.before_use = lambda: calls.append(1)
    matrix.read(0, torch.empty(3, 64))
    matrix.read(3, torch.empty(4, 64))
    assert len(calls) == 1
    matrix.product(torch.randn(2, 64))
    assert len(calls) == 2


@pytest.mark.parametrize("shape", [(64,), (2, 3, 64), ()])
def test_only_matrices_are_quantised(scheme, shape):
    assert "matrix" in scheme.problem(shape)


def test_a_tensor_that_is_missing_or_of_another_form_is_refused(scheme):
    packed = scheme.quantize(weight((7, 64), torch.float32))
    required = [key for key in packed if key != "weight_format"]
    for key in required:
        with pytest.raises(FormatError):
            scheme.open({other: tensor for other, tensor in packed.items() if other != key})
    for key in required:
        for broken in (packed[key][:-1], packed[key].double(), torch.tensor(9_999_999_999)):
            with pytest.raises(FormatError):
                scheme.open({**packed, key: broken})
