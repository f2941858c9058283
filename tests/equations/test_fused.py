"""Norms and gates in one pass: the equations in float64, and models that do not notice."""

import copy
import itertools
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inlay.core.recompute import MIN_ELEMENTS, recomputing
from inlay.kernels import native, pointwise
from inlay.modules import fused
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
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(_draw(width, dtype=torch.float32), requires_grad=False)
        self.variance_epsilon = 1e-6

    def forward(self, x):
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normed.to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, width, activation=None):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.down_proj, self.act_fn = nn.Linear(3 * width, width), activation or nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def _with(parent, forward, attribute=None, **class_attributes):
    """A module of a class that does something else than its parent."""
    kind = type("Other", (parent,), {"forward": forward, **class_attributes})
    made = kind(64)
    if attribute is not None:
        setattr(made, *attribute)
    return made


def _normed(self, x, eps=None):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + (eps or self.variance_epsilon))).to(x.dtype)


def _through(self, gate, up):
    return self.down_proj(gate * up)


def _detached(self, x):
    wide = x.float()
    s = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (wide * s.detach()).to(x.dtype)


def _grouped(self, x):
    wide = x.float().unflatten(-1, (4, -1))
    s = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * (wide * s).flatten(-2).to(x.dtype)


def _root_first(self, x):
    wide = x.float()
    return self.weight * (wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)).to(x.dtype)


def _across_rows(self, x):
    wide = x.float()
    s = torch.rsqrt(wide.pow(2).mean((-1, -2), keepdim=True) + self.variance_epsilon)
    return self.weight * (wide * s).to(x.dtype)


OTHER_NORMS = {
    "takes the mean away": _with(Norm, lambda self, x: self.weight * _normed(self, x - x.mean(-1, keepdim=True))),
    "has an offset of one": _with(Norm, lambda self, x: (1 + self.weight) * _normed(self, x)),
    "adds a bias": _with(Norm, lambda self, x: self.weight * _normed(self, x), ("bias", nn.Parameter(torch.zeros(64)))),
    "holds a tensor": _with(Norm, lambda self, x: self.weight * _normed(self, x), ("bias", torch.zeros(64))),
    "has a submodule": _with(Norm, lambda self, x: self.weight * _normed(self, x), ("dropout", nn.Dropout(0.5))),
    "takes a gate": _with(Norm, lambda self, x, gate: self.weight * _normed(self, x * torch.sigmoid(gate))),
    "may take a gate": _with(
        Norm, lambda self, x, gate=None: self.weight * _normed(self, x if gate is None else x * torch.sigmoid(gate))
    ),
    "takes what is given by name": _with(Norm, lambda self, x, **named: self.weight * _normed(self, x)),
    "has another epsilon": _with(Norm, lambda self, x: self.weight * _normed(self, x, 1e-5)),
    "adds epsilon to the root": _with(Norm, _root_first),
    "is bounded": _with(Norm, lambda self, x: self.weight * _normed(self, x.clamp(-5e3, 5e3))),
    "ignores its weight": _with(Norm, lambda self, x: _normed(self, x)),
    "has other gradients": _with(Norm, _detached),
    "works on groups": _with(Norm, _grouped),
    "works on all rows at once": _with(Norm, _across_rows),
    "answers in float32": _with(Norm, lambda self, x: (self.weight * _normed(self, x)).double()),
    "is called otherwise": _with(
        Norm, Norm.forward, None, __call__=lambda self, *given: 2 * nn.Module.__call__(self, *given)
    ),
}
OTHER_MLPS = {
    "has another activation": Mlp(64, nn.GELU()),
    "has nearly the same activation": Mlp(64, nn.Mish()),
    "activates the other half": _with(
        Mlp, lambda self, x: _through(self, self.gate_proj(x), self.act_fn(self.up_proj(x)))
    ),
    "bounds its gate": _with(
        Mlp, lambda self, x: _through(self, self.act_fn(self.gate_proj(x).clamp(max=7)), self.up_proj(x))
    ),
    "adds one to the other half": _with(
        Mlp, lambda self, x: _through(self, self.act_fn(self.gate_proj(x)), self.up_proj(x) + 1)
    ),
    "is scaled": _with(Mlp, lambda self, x: Mlp.forward(self, x) * 1.01),
    "keeps its input": _with(Mlp, lambda self, x: x + Mlp.forward(self, x)),
    "holds a scale": _with(Mlp, Mlp.forward, ("scale", nn.Parameter(torch.ones(1)))),
    "holds a norm": _with(Mlp, Mlp.forward, ("norm", nn.LayerNorm(64))),
    "may take more": _with(Mlp, lambda self, x, scale=1: scale * Mlp.forward(self, x)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*OTHER_NORMS, *OTHER_MLPS])
def test_a_module_that_does_something_else_is_left_alone(name, dtype):
    other = copy.deepcopy((OTHER_NORMS | OTHER_MLPS)[name]).to(dtype)
    model = nn.Sequential(other)
    fused.fuse_(model, dtype)
    assert "forward" not in vars(other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_frozen", [True, False])
def test_usual_modules_are_given_it(dtype, is_frozen):
    parts = [Norm(64), Mlp(64)]
    model = nn.Sequential(*parts).to(dtype).requires_grad_(not is_frozen)
    before = [dict(vars(part)) for part in parts]
    fused.fuse_(model, dtype)
    assert all(vars(part).keys() - held.keys() == {"forward"} for part, held in zip(parts, before, strict=True))


class Either(Norm):
    def forward(self, x):
        return super().forward(x - self.mean * x.mean(-1, keepdim=True))


@pytest.mark.parametrize("first", [0, 1])
def test_modules_of_one_class_with_other_settings_are_tried_each(first):
    parts = [Either(64) for _ in range(2)]
    for number, part in enumerate(parts):
        part.mean = (number + first) % 2
    fused.fuse_(nn.Sequential(*parts), torch.float32)
    assert ["forward" in vars(part) for part in parts] == [not part.mean for part in parts]


@pytest.mark.parametrize("first", [0, 1])
def test_submodules_with_other_settings_are_tried_each(first):
    parts = [Mlp(64, activation) for activation in ([nn.SiLU(), nn.GELU()], [nn.GELU(), nn.SiLU()])[first]]
    fused.fuse_(nn.Sequential(*parts), torch.float32)
    assert ["forward" in vars(part) for part in parts] == [isinstance(part.act_fn, nn.SiLU) for part in parts]


def test_a_module_in_training_mode_or_with_more_arguments_does_itself():
    class Noisy(Mlp):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    mlp, norm, x = Noisy(8), Norm(8), torch.randn(2, 8)
    fused.fuse_(nn.Sequential(mlp, norm).eval(), torch.float32)
    assert "forward" in vars(mlp)
    assert torch.equal(mlp(x=x), Noisy.forward(mlp, x))
    assert torch.equal(norm(x=x), Norm.forward(norm, x))
    mlp.train()
    assert (mlp(x) == 0).any()
    mlp.eval()
    assert not (mlp(x) == 0).any()


def test_the_trial_compares_with_the_kernel(monkeypatch):
    wrong = pointwise.rms_norm
    monkeypatch.setattr(pointwise, "rms_norm", lambda x, w, eps: (1.01 * wrong(x, w, eps)[0], wrong(x, w, eps)[1]))
    gate = pointwise.silu_gate
    monkeypatch.setattr(pointwise, "silu_gate", lambda a, b: 1.01 * gate(a, b))
    model = nn.Sequential(Norm(64), Mlp(64))  # as they are before they are frozen, when a norm would do itself
    fused.fuse_(model, torch.float32)
    assert not any("forward" in vars(part) for part in model)


@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_through_it_are_those_of_the_module(recomputed):
    torch.manual_seed(0)
    model = nn.Sequential(Norm(64), Mlp(64)).requires_grad_(False).eval()
    x = torch.randn(1, 1 + MIN_ELEMENTS // 64, 64, requires_grad=True)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.pow(2).sum(), x)
    fused.fuse_(model, torch.float32)
    if recomputed:
        with recomputing():
            out = model(x)
    else:
        out = model(x)
    (ours,) = torch.autograd.grad(out.pow(2).sum(), x)
    assert out.grad_fn is not None
    assert_close(out, expected, torch.float32, 64 * 192)
    assert_close(ours, gradient, torch.float32, 64 * 192)


def test_what_it_makes_again_is_what_it_made():
    torch.manual_seed(0)
    model = nn.Sequential(Norm(64), Mlp(64)).requires_grad_(False).eval()
    fused.fuse_(model, torch.float32)
    x = torch.randn(1, 1 + MIN_ELEMENTS // 64, 64, requires_grad=True)
    with recomputing():
        kept = model(x)
    nodes = [kept.grad_fn]
    for node in nodes:
        nodes += [following for following, _ in node.next_functions if following is not None]
    made = {node.name(): node for node in nodes}
    product, norm = made["_SiluGateBackward"], made["_RmsNormBackward"]
    assert torch.equal(product._forward_cls.recomputed(product), pointwise.silu_gate(*product.saved_tensors))
    x, weight, _ = norm.saved_tensors
    assert torch.equal(norm._forward_cls.recomputed(norm), pointwise.rms_norm(x, weight, norm.eps)[0])


def test_a_norm_that_is_trained_does_itself():
    norm = Norm(8)
    fused.fuse_(nn.Sequential(norm).eval(), torch.float32)
    norm.weight.requires_grad_(True)
    norm(torch.randn(2, 8)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_models_rotation_takes_one_pass_where_it_is_said_and_its_file_stays_as_it_is(dtype):
    from transformers.models.llama import modeling_llama

    class Turning(nn.Module):
        def forward(self, q, k, cos, sin):
            return apply_rotary_pos_emb(q, k, cos, sin)  # noqa: F821  # of the file that the class is taken to be in

    own = modeling_llama.apply_rotary_pos_emb
    q, k = (_draw(1, 7, heads, 16, dtype=dtype, seed=heads).transpose(1, 2).requires_grad_() for heads in (4, 2))
    angles = torch.arange(7.0)[:, None] * torch.rand(8, generator=torch.Generator().manual_seed(0)).repeat(2)
    cos, sin = angles.cos()[None].to(dtype), angles.sin()[None].to(dtype)
    expected = own(q, k, cos, sin)
    g = [torch.ones_like(x).cumsum(-1) / 16 for x in expected]
    gradients = torch.autograd.grad(expected, (q, k), g)
    said = []
    code = Turning.forward
    Turning.forward = types.FunctionType(code.__code__, vars(modeling_llama), "forward")
    module = Turning()
    fused.fuse_rotation_(nn.Sequential(module), lambda: bool(said))
    assert all(torch.equal(one, other) for one, other in zip(module(q, k, cos, sin), expected, strict=True))
    said.append(True)
    turned = module(q, k, cos, sin)
    assert modeling_llama.apply_rotary_pos_emb is own
    assert turned[0].grad_fn.next_functions[0][0].next_functions[0][0].name() == "_RotateBackward"
    for one, other in zip((*turned, *torch.autograd.grad(turned, (q, k), g)), (*expected, *gradients), strict=True):
        assert_close(one, other, dtype, 4)


def _halves(x):
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _pairs(x):
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def _turned(rotate, each=lambda x, cos, sin: (x, cos, sin)):
    def own(q, k, cos, sin):
        made = (each(x, cos[:, None], sin[:, None]) for x in (q, k))
        return tuple(x * c + rotate(x) * s for x, c, s in made)

    return own


def _first_half_of_the_angles(x, cos, sin):
    half = x.shape[-1] // 2
    return x, cos[..., :half].repeat(1, 1, 1, 2), sin[..., :half].repeat(1, 1, 1, 2)


def _queries_alone(q, k, cos, sin):
    return _turned(_halves)(q, q, cos, sin)[0], k


OTHER_ROTATIONS = {
    "in pairs": _turned(_pairs),
    "with the first half of the angles": _turned(_halves, _first_half_of_the_angles),
    "backwards": _turned(_halves, lambda x, cos, sin: (x, cos, -sin)),
    "scaled": _turned(_halves, lambda x, cos, sin: (1.01 * x, cos, sin)),
    "of queries alone": _queries_alone,
    "of one tensor": lambda x, cos, sin: x,
    "along another dimension": lambda q, k, cos, sin: tuple(x * cos[:, :, None] for x in (q, k)),
    "by other gradients": _turned(lambda x: _halves(x).detach()),
    "of some widths": lambda q, k, cos, sin: _turned(_halves if q.shape[-1] < 64 else _pairs)(q, k, cos, sin),
}


@pytest.mark.parametrize("name", OTHER_ROTATIONS)
def test_a_rotation_of_another_kind_is_left_alone(name):
    assert not fused._is_usual(OTHER_ROTATIONS[name])


def test_the_usual_rotation_is_known_by_what_it_does():
    assert fused._is_usual(_turned(_halves))


def test_arguments_that_were_not_tried_reach_a_models_own_rotation():
    def own(q, k, cos, sin, unsqueeze_dim=1):
        return q + unsqueeze_dim, k

    def always():
        return True

    q, cos = torch.randn(1, 2, 3, 8), torch.randn(1, 3, 8)
    assert torch.equal(fused._rotated(own, always, q, q, cos, cos, 2)[0], q + 2)
    assert torch.equal(fused._rotated(own, always, q, q, cos, cos, unsqueeze_dim=3)[0], q + 3)
    assert torch.equal(fused._rotated(own, always, q, q, cos[..., :4], cos[..., :4])[0], q + 1)  # a part of each head
    assert torch.equal(
        fused._rotated(own, always, *[q.expand(2, -1, -1, -1)] * 2, cos, cos)[0], q.expand(2, -1, -1, -1) + 1
    )
