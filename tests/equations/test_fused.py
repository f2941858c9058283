"""Norms and gates in one pass: the equations in float64, and models that do not notice."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inlay.core.recall import MIN_ELEMENTS, recalling
from inlay.kernels import native, pointwise
from inlay.model import fused
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.skipif(
    not pointwise.available(torch.empty(0, 2)), reason="the library was not built, or has no instructions to use here"
)

VARIANTS = [name for name in native.supported() if name != "plain"]
DTYPES = [torch.float32, torch.bfloat16]

any_rows = given(
    rows=st.integers(1, 9),
    half=st.integers(1, 90),
    dtype=st.sampled_from(DTYPES),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
)


def _draw(*shape, dtype, seed=0, size=1.0):
    return (size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _norm(x, weight, eps):
    return weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps))


def _gate(a, b):
    return a / (1 + torch.exp(-a)) * b


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40, deadline=None)
@any_rows
def test_norm_and_its_gradient_are_those_of_the_equation(variant, rows, half, dtype, size):
    x, weight = _draw(rows, 2 * half, dtype=dtype, size=size), _draw(2 * half, dtype=dtype, seed=1)
    g = _draw(rows, 2 * half, dtype=dtype, seed=2)
    exact = x.double().requires_grad_()
    expected = _norm(exact, weight.double(), 1e-5)
    (gradient,) = torch.autograd.grad(expected, exact, g.double())
    with native.only(variant):
        y, s = pointwise.rms_norm(x, weight, 1e-5)
        dx = pointwise.rms_norm_backward(g, x, weight, s)
    assert_close(y, expected, dtype, 2)
    assert_close(s, 1 / torch.sqrt((x.double() ** 2).mean(-1) + 1e-5), torch.float32, 2 * half)
    scale = (g.double() * weight.double() * s.double()[:, None]).abs().max()  # of the terms, which may cancel
    assert_close(dx.double() / scale, gradient / scale, dtype, 4)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40, deadline=None)
@any_rows
def test_gate_and_its_gradients_are_those_of_the_equation(variant, rows, half, dtype, size):
    a, b, g = (_draw(rows, 2 * half, dtype=dtype, seed=seed, size=size if not seed else 1.0) for seed in range(3))
    exact = [x.double().requires_grad_() for x in (a, b)]
    expected = _gate(*exact)
    gradients = torch.autograd.grad(expected, exact, g.double())
    with native.only(variant):
        y, both = pointwise.silu_gate(a, b), pointwise.silu_gate_backward(g, a, b)
    assert_close(y, expected, dtype, 2)
    for gradient, exact_gradient in zip(both, gradients, strict=True):
        assert_close(gradient, exact_gradient, dtype, 4)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 5), heads=st.integers(1, 3), quarter=st.integers(1, 40), dtype=st.sampled_from(DTYPES))
def test_a_rotation_and_its_gradient_are_those_of_the_equation(variant, tokens, heads, quarter, dtype):
    dim = 4 * quarter
    x, g = (_draw(tokens, heads, dim, dtype=dtype, seed=seed) for seed in (0, 1))
    cos, sin = (_draw(tokens, dim, dtype=dtype, seed=seed) for seed in (2, 3))
    exact = x.double().requires_grad_()
    first, second = exact.split(2 * quarter, -1)
    expected = exact * cos.double()[:, None] + torch.cat([-second, first], -1) * sin.double()[:, None]
    (gradient,) = torch.autograd.grad(expected, exact, g.double())
    with native.only(variant):
        y, dx = pointwise.rotate(x, cos, sin), pointwise.rotate(g, cos, sin, backward=True)
    assert_close(y, expected, dtype, 2)
    assert_close(dx, gradient, dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant_gives_the_same_bits(dtype):
    x, g, b = (_draw(7, 202, dtype=dtype, seed=seed, size=5) for seed in range(3))
    weight, results = _draw(202, dtype=dtype, seed=4), []
    for variant in VARIANTS:
        with native.only(variant):
            y, s = pointwise.rms_norm(x, weight, 1e-6)
            results.append(
                (
                    y,
                    s,
                    pointwise.rms_norm_backward(g, x, weight, s),
                    pointwise.silu_gate(x, b),
                    *pointwise.silu_gate_backward(g, x, b),
                )
            )
    for one, other in itertools.pairwise(results):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_so_and_the_largest_saturate(dtype):
    a = torch.tensor([[float("nan"), -1e4, 1e4, 0.0, -89.0, 89.0, float("inf"), 3e38]]).to(dtype)
    ones = torch.ones_like(a)
    y = pointwise.silu_gate(a, ones)
    expected = nn.functional.silu(a.double())
    assert torch.equal(y.isnan(), expected.isnan())
    assert_close(y.nan_to_num(0, 0, 0), expected.to(dtype).nan_to_num(0, 0, 0), dtype, 1)
    normed, _ = pointwise.rms_norm(a, ones[0], 1e-6)
    assert normed.isnan().all()


# In a model


class Norm(nn.Module):
    def __init__(self, width, offset=0.0):
        super().__init__()
        self.weight = nn.Parameter(_draw(width, dtype=torch.float32), requires_grad=False)
        self.variance_epsilon, self.offset = 1e-6, offset

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight + self.offset) * normed.to(x.dtype)


class OffsetNorm(Norm):
    def __init__(self, width):
        super().__init__(width, offset=1.0)


class Mlp(nn.Module):
    def __init__(self, width, activation):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.down_proj, self.act_fn = nn.Linear(3 * width, width), activation

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class GeluMlp(Mlp):
    pass


@pytest.mark.parametrize("dtype", DTYPES)
def test_usual_modules_are_given_it_and_others_left_alone(dtype):
    torch.manual_seed(0)
    parts = [Norm(64), OffsetNorm(64), Mlp(64, nn.SiLU()), GeluMlp(64, nn.GELU())]
    model = nn.Sequential(*parts).to(dtype).requires_grad_(False)
    fused.fuse_(model, dtype)
    assert ["forward" in vars(part) for part in parts] == [True, False, True, False]


@pytest.mark.parametrize("recall", [False, True])
def test_gradients_through_it_are_those_of_the_module(recall):
    torch.manual_seed(0)
    model = nn.Sequential(Norm(64), Mlp(64, nn.SiLU())).requires_grad_(False)
    x = torch.randn(1, 1 + MIN_ELEMENTS // 64, 64, requires_grad=True)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.pow(2).sum(), x)
    fused.fuse_(model, torch.float32)
    if recall:
        with recalling():
            out = model(x)
    else:
        out = model(x)
    (ours,) = torch.autograd.grad(out.pow(2).sum(), x)
    assert out.grad_fn is not None
    assert_close(out, expected, torch.float32, 64 * 192)
    assert_close(ours, gradient, torch.float32, 64 * 192)


def test_what_it_makes_again_is_what_it_made():
    torch.manual_seed(0)
    model = nn.Sequential(Norm(64), Mlp(64, nn.SiLU())).requires_grad_(False)
    fused.fuse_(model, torch.float32)
    x = torch.randn(1, 1 + MIN_ELEMENTS // 64, 64, requires_grad=True)
    with recalling():
        kept = model(x)
    nodes = [kept.grad_fn]
    for node in nodes:
        nodes += [following for following, _ in node.next_functions if following is not None]
    made = {node.name(): node for node in nodes}
    product, norm = made["_SiluGateBackward"], made["_RmsNormBackward"]
    assert torch.equal(product._forward_cls.again(product), pointwise.silu_gate(*product.saved_tensors))
    x, weight, _ = norm.saved_tensors
    assert torch.equal(norm._forward_cls.again(norm), pointwise.rms_norm(x, weight, norm.eps)[0])


def test_a_norm_that_is_trained_does_itself():
    norm = Norm(8)
    fused.fuse_(nn.Sequential(norm), torch.float32)
    norm.weight.requires_grad_(True)
    norm(torch.randn(2, 8)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_models_own_rotation_is_replaced_while_it_is_called_and_no_longer(dtype):
    from transformers.models.llama import modeling_llama

    own = modeling_llama.apply_rotary_pos_emb
    q, k = (_draw(1, 7, heads, 16, dtype=dtype, seed=heads).transpose(1, 2).requires_grad_() for heads in (4, 2))
    angles = torch.arange(7.0)[:, None] * torch.rand(8, generator=torch.Generator().manual_seed(0)).repeat(2)
    cos, sin = angles.cos()[None].to(dtype), angles.sin()[None].to(dtype)
    expected = own(q, k, cos, sin)
    g = [torch.ones_like(x).cumsum(-1) / 16 for x in expected]
    gradients = torch.autograd.grad(expected, (q, k), g)
    with fused.rotation_of(modeling_llama.LlamaModel.__new__(modeling_llama.LlamaModel)):
        turned = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
        assert modeling_llama.apply_rotary_pos_emb is not own
    assert modeling_llama.apply_rotary_pos_emb is own
    assert turned[0].grad_fn.next_functions[0][0].next_functions[0][0].name() == "_RotateBackward"
    for one, other in zip((*turned, *torch.autograd.grad(turned, (q, k), g)), (*expected, *gradients), strict=True):
        assert_close(one, other, dtype, 4)


def test_a_rotation_of_another_kind_is_left_alone():
    def interleaved(q, k, cos, sin):
        return tuple(
            x * cos[:, None] + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin[:, None] for x in (q, k)
        )

    assert not fused._is_usual(interleaved)
