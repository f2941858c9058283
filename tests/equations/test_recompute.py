"""What is made again for the backward pass is what was left out: the same gradients, bit for bit, from less memory."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inlay.core import recompute
from inlay.core.recompute import MIN_ELEMENTS, recomputing
from inlay.core.routed import Factors, Segment, routed

TOKENS, WIDTH, INNER = 257, 67, 131
"""Every activation has more elements than `MIN_ELEMENTS`."""

ACTIVATIONS = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu, tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "one of its own": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3)))),
}


def _block(dtype, activation):
    """A norm as `transformers` has it and a gated MLP, over tensors that collect gradients."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    gate, up, down, scale = draw(INNER, WIDTH), draw(INNER, WIDTH), draw(WIDTH, INNER), draw(WIDTH)
    pairs = [draw(3, i).float() for i in (WIDTH, INNER)] + [draw(o, 3).float() for o in (INNER, WIDTH)]
    tensors = [draw(1, TOKENS, WIDTH), *pairs]

    def linear(x, weight, A, B):
        flat = routed(x.reshape(-1, x.shape[-1]), weight, None, [Factors(A, B, 0.3)], [Segment(2, TOKENS - 1, 0)])
        return flat.view(1, TOKENS, -1)

    def call(x, A_in, A_down, B_up, B_down):
        wide = x.to(torch.float32)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        y = scale * normed.to(dtype)
        p = activation(linear(y, gate, A_in, B_up)) * linear(y, up, A_in, B_up)
        return x + linear(p, down, A_down, B_down)

    return call, tensors


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bit_for_bit(dtype, activation):
    call, tensors = _block(dtype, ACTIVATIONS[activation])
    tensors = [t.requires_grad_() for t in tensors]
    plain = torch.autograd.grad(call(*tensors).float().pow(2).sum(), tensors)
    with recomputing():
        out = call(*tensors)
    for gradient, expected in zip(torch.autograd.grad(out.float().pow(2).sum(), tensors), plain, strict=True):
        assert torch.equal(gradient, expected)


def _kept_bytes(dtype, hooks):
    """What the graph of a block keeps besides what it was given."""
    call, tensors = _block(dtype, nn.functional.silu)
    tensors = [t.requires_grad_() for t in tensors]
    before = _storages()
    with hooks():
        out = call(*tensors)
    return sum(size for pointer, size in _storages().items() if pointer not in before and pointer != out.data_ptr())


def _storages():
    """The memory of all tensors that Python holds: address -> bytes."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _as_torch_does():
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach(), lambda t: t)


def test_of_a_block_its_inputs_and_the_outputs_of_its_maps_are_kept():
    size = 4 * TOKENS
    ours, torchs = (_kept_bytes(torch.float32, hooks) for hooks in (recomputing, _as_torch_does))
    assert torchs - ours == size * (2 * INNER + WIDTH)  # silu(g), p, y
    ours, torchs = (_kept_bytes(torch.bfloat16, hooks) for hooks in (recomputing, _as_torch_does))
    assert torchs - ours == size // 2 * (2 * INNER + WIDTH) + size // 2 * WIDTH  # and half of the widened x


def test_a_tensor_that_was_changed_in_place_is_not_computed_from():
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    with recomputing():
        y = x + 1
        z = y * y
    y.add_(1)
    with pytest.raises(AssertionError, match="changed in place"):
        z.sum().backward()


@pytest.mark.parametrize(("size", "is_kept"), [(MIN_ELEMENTS - 1, True), (MIN_ELEMENTS, False)])
def test_small_tensors_are_kept(size, is_kept):
    tensor = nn.functional.silu(torch.randn(size, requires_grad=True))
    assert (recompute._pack(tensor)().data_ptr() == tensor.data_ptr()) == is_kept


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_chain_of_pointwise_operations_has_its_gradient(data):
    """Products, activations, casts and views in any order, with operands that need a gradient and such that do not."""
    steps = data.draw(
        st.lists(st.sampled_from(["silu", "gelu", "mul", "scale", "square", "narrow", "view", "add"]), max_size=7)
    )
    x0, other0 = torch.randn(2, TOKENS, INNER, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    constant = torch.linspace(0.5, 1.5, INNER)

    def run():
        x, other = x0.clone().requires_grad_(), other0.clone().requires_grad_()
        h = x * 1.25
        for step in steps:
            h = {
                "silu": lambda h: nn.functional.silu(h),
                "gelu": lambda h: nn.functional.gelu(h),
                "mul": lambda h: h * other.view(h.shape),
                "scale": lambda h: constant * h.reshape(-1, INNER),
                "square": lambda h: h * h,
                "narrow": lambda h: h.to(torch.bfloat16).to(torch.float32),
                "view": lambda h: h.reshape(1, -1, INNER),
                "add": lambda h: h + 1,
            }[step](h)
        return torch.autograd.grad((h.exp().clamp(max=9) * h).sum(), [x, other], allow_unused=True)

    plain = run()
    with recomputing():
        ours = run()
    for gradient, expected in zip(ours, plain, strict=True):
        assert (gradient is None) == (expected is None)
        assert gradient is None or torch.equal(gradient.nan_to_num(), expected.nan_to_num())
