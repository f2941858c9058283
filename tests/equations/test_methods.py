"""Every method against the equation of its paper, by loops in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import inlay
from inlay import methods
from inlay.methods import hooks
from inlay.methods.contract import Block, Decoder, Own
from inlay.methods.lokr import factorization
from inlay.model.adapter import Adapter
from inlay.modules.linear import Convolution, Dense, Embedding
from tests.support import method_oracle as oracle
from tests.support.tolerances import assert_close

F64 = torch.float64
IN, OUT, TOKENS = 7, 11, 5
TERMS = IN * OUT * 9  # a sum over `in` and one over r, with gains of up to 3

both_biases = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def _fill_(module, seed=3):
    """Random values in float64 everywhere, frozen."""
    module.to(F64).requires_grad_(False)
    for number, parameter in enumerate(module.parameters()):
        parameter.copy_(_draw(*parameter.shape, seed=seed + number))
    return module


def _linear(bias, num_in=IN, num_out=OUT):
    return Dense(_fill_(nn.Linear(num_in, num_out, bias=bias)))


def _params(shapes, seed=20):
    """A tensor of random values for every shape."""
    return {name: _draw(*shape, seed=seed + number) for number, (name, shape) in enumerate(shapes.items())}


def _arrays(params):
    return {name: tensor.detach().numpy() for name, tensor in params.items()}


def _plain(base):
    """W and b of a base."""
    return base.weight(F64).numpy(), None if base.bias is None else base.bias.numpy()


def _check(method, params, base, function):
    """Base and change, and what they are merged into, are `function` of (x, W, b)."""
    W, b = _plain(base)
    if base.kind == "embedding":
        x = torch.tensor([4, 0, 4, 2, 3])
        inputs = np.eye(base.in_features)[x]
    else:
        x = _draw(TOKENS, base.in_features, seed=10)
        inputs = x.numpy()
    y = base(x)
    assert_close(y + method.delta(params, x, y, base), [function(one, W, b) for one in inputs], F64, TERMS)
    weight, bias = method.merge(params, base.weight(F64), base.bias)
    expected_weight, expected_bias = oracle.merged(lambda one: function(one, W, b), base.in_features)
    assert_close(weight, expected_weight, F64, TERMS)
    assert (bias is None) == (b is None)
    if bias is not None:
        assert_close(bias, expected_bias, F64, TERMS)


def _lora_function(params, scaling):
    p = _arrays(params)
    if "lora_magnitude_vector" in p:
        A, B, m = p["lora_A"], p["lora_B"], p["lora_magnitude_vector"]
        return lambda x, W, b: oracle.dora(x, W, b, A, B, m, scaling)
    return lambda x, W, b: oracle.lora(x, W, b, p["lora_A"], p["lora_B"], scaling)


@both_biases
@pytest.mark.parametrize(("rslora", "scaling"), [(False, 5 / 3), (True, 5 / math.sqrt(3))])
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_lora_and_dora_are_the_papers_equations(name, rslora, scaling, bias):
    method, base = methods.find(name)(r=3, lora_alpha=5, use_rslora=rslora), _linear(bias)
    params = _params(method.shapes(base))
    _check(method, params, base, _lora_function(params, scaling))


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_lora_and_dora_of_an_embedding_change_the_rows_that_are_read(name):
    method, base = methods.find(name)(r=3, lora_alpha=5), Embedding(_fill_(nn.Embedding(OUT, IN)))
    params = _params(method.shapes(base))
    _check(method, params, base, _lora_function(params, 5 / 3))


def test_doras_gradient_is_that_of_the_papers_equation():
    method, base = inlay.Dora(r=3, lora_alpha=5), _linear(True)
    params = {name: tensor.requires_grad_() for name, tensor in _params(method.shapes(base)).items()}
    x, g = _draw(2, IN, seed=10).requires_grad_(), _draw(2, OUT, seed=11)
    y = base(x)
    (method.delta(params, x, y, base) * g).sum().backward()
    W, b = _plain(base)
    step, leaves = 2.0**-9, {"x": x, **params}
    values = _arrays(leaves)

    def loss(name, value):
        v = values | {name: value}
        return sum(
            one @ (oracle.dora(row, W, b, *(v[key] for key in params), 5 / 3) - oracle.base(row, W, b))
            for row, one in zip(v["x"], g.numpy(), strict=True)
        )

    for name, leaf in leaves.items():
        expected = oracle.gradient(lambda value, name=name: loss(name, value), values[name], step)
        assert_close(leaf.grad, expected, F64, TERMS / step**2)  # the rounding of a sum, divided by the step


@both_biases
@pytest.mark.parametrize(
    ("path", "function"), [("k_proj", oracle.ia3_outputs), ("mlp.down_proj", oracle.ia3_inputs)], ids=["out", "in"]
)
def test_ia3_scales_the_outputs_of_keys_and_the_inputs_of_the_mlp(path, function, bias):
    method, base = inlay.Ia3().for_module(path), _linear(bias)
    params = _params(method.shapes(base))
    factors = params["ia3_l"].flatten().numpy()
    _check(method, params, base, lambda x, W, b: function(x, W, b, factors))


@pytest.mark.parametrize("kind", ["bias", "no_bias", "embedding"])
def test_vera_is_the_papers_equation_with_a_part_of_the_shared_matrices(kind):
    method = inlay.Vera(r=3)
    base = Embedding(_fill_(nn.Embedding(OUT, IN))) if kind == "embedding" else _linear(kind == "bias")
    shared = method.shared([base, _linear(False, num_in=13, num_out=2), _linear(False, num_in=2, num_out=17)])
    assert shared["vera_A"].shape == (3, 13)
    assert shared["vera_B"].shape == (17, 3)
    shared = _params({name: tuple(tensor.shape) for name, tensor in shared.items()}, seed=30)
    params = _params(method.shapes(base))
    A, B = shared["vera_A"].numpy()[:, : base.in_features], shared["vera_B"].numpy()[: base.out_features]
    d, lambda_b = params["vera_lambda_d"].numpy(), params["vera_lambda_b"].numpy()
    seen = {**method.share(shared, base), **params}
    _check(method, seen, base, lambda x, W, b: oracle.vera(x, W, b, A, B, d, lambda_b))


def _loha_function(params, scaling):
    p = _arrays(params)
    tensors = [p[name] for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")]
    return lambda x, W, b: oracle.loha(x, W, b, *tensors, scaling)


@both_biases
def test_loha_is_the_papers_equation(bias):
    method, base = inlay.Loha(r=2, alpha=3), _linear(bias)
    params = _params(method.shapes(base))
    _check(method, params, base, _loha_function(params, 3 / 2))


LOKR = {
    "near_the_root": (dict(r=1), (2, 3), (4, 4), {"lokr_w1", "lokr_w2_a", "lokr_w2_b"}),
    "whole": (dict(r=2), (2, 3), (4, 4), {"lokr_w1", "lokr_w2"}),
    "both": (dict(r=1, decompose_both=True), (2, 3), (4, 4), {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}),
    "both_as_far_as_r_allows": (dict(r=2, decompose_both=True, decompose_factor=2), (2, 2), (4, 6), {"lokr_w1"}),
    "a_factor_that_divides_both": (dict(r=1, decompose_factor=4), (4, 4), (2, 3), {"lokr_w1"}),
    "a_factor_that_divides_one": (dict(r=1, decompose_factor=3), (2, 3), (4, 4), {"lokr_w1"}),
}


@both_biases
@pytest.mark.parametrize(("settings", "small", "large", "names"), LOKR.values(), ids=LOKR.keys())
def test_lokr_is_the_papers_equation(settings, small, large, names, bias):
    method, base = inlay.Lokr(**settings, alpha=3), _linear(bias, num_in=12, num_out=8)
    params = _params(method.shapes(base))
    p = _arrays(params)
    w1, w2 = (p[name] if name in p else (p[f"{name}_a"], p[f"{name}_b"]) for name in ("lokr_w1", "lokr_w2"))
    shapes = [(f[0].shape[0], f[1].shape[1]) if isinstance(f, tuple) else f.shape for f in (w1, w2)]
    assert shapes == [small, large]
    assert names <= set(params)
    _check(method, params, base, lambda x, W, b: oracle.lokr(x, W, b, w1, w2, 3 / settings["r"]))


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 7, 16])
def test_lokrs_sides_multiply_to_the_size_and_are_the_nearest_that_do(factor):
    for size in (1, 2, 7, 8, 12, 36, 48, 60, 97, 128):
        assert factorization(size, factor) == oracle.lokr_sides(size, factor)


OFT = {
    "exact": (dict(oft_block_size=4, use_cayley_neumann=False), 4),
    "exact_shared": (dict(oft_block_size=4, use_cayley_neumann=False, block_share=True), 4),
    "blocks_for_a_size": (dict(oft_block_size=0, r=4, use_cayley_neumann=False), 3),
    "blocks_that_do_not_divide": (dict(oft_block_size=0, r=5, use_cayley_neumann=False), 3),
    "a_size_that_does_not_divide": (dict(oft_block_size=5, use_cayley_neumann=False), 4),
    "one_block": (dict(oft_block_size=32, use_cayley_neumann=False), 12),
    "series_shared": (dict(oft_block_size=0, r=2, block_share=True), 6),
    **{f"series_{n}": (dict(oft_block_size=4, num_cayley_neumann_terms=n), 4) for n in range(1, 8)},
}


@both_biases
@pytest.mark.parametrize(("settings", "size"), OFT.values(), ids=OFT.keys())
def test_oft_is_the_papers_equation(settings, size, bias):
    method, base = inlay.Oft(**settings), _linear(bias, num_in=12, num_out=8)
    params = {name: 0.3 * tensor for name, tensor in _params(method.shapes(base)).items()}
    numbers = params["oft_R"].numpy()
    assert len(numbers) == (1 if method.block_share else 12 // size)
    skews = [oracle.skew(row, size) for row in numbers] * (12 // size // len(numbers))
    terms = method.num_cayley_neumann_terms
    blocks = [oracle.neumann(Q, terms) if method.use_cayley_neumann else oracle.cayley(Q) for Q in skews]
    _check(method, params, base, lambda x, W, b: oracle.oft(x, W, b, blocks))


def test_ofts_series_goes_to_the_turn_by_minus_Q():
    base, x = _linear(True, num_in=12, num_out=8), _draw(TOKENS, 12, seed=10)
    y = base(x)
    series = inlay.Oft(oft_block_size=4, num_cayley_neumann_terms=60)
    exact = inlay.Oft(oft_block_size=4, use_cayley_neumann=False)
    params = {name: 0.1 * tensor for name, tensor in _params(series.shapes(base)).items()}
    opposite = {name: -tensor for name, tensor in params.items()}
    assert_close(series.delta(params, x, y, base), exact.delta(opposite, x, y, base), F64, TERMS)


@both_biases
def test_adalora_is_the_papers_equation(bias):
    method, base = inlay.Adalora(init_r=3, target_r=2, lora_alpha=5), _linear(bias)
    params = _params(method.shapes(base))
    p, scaling = _arrays(params), 5 / (3 + 1e-5)
    tensors = p["lora_A"], p["lora_B"], p["lora_E"].flatten()
    _check(method, params, base, lambda x, W, b: oracle.adalora(x, W, b, *tensors, scaling))


def _adalora_layers(method, seed):
    bases = [_linear(True), _linear(False, num_in=5, num_out=9), _linear(True, num_in=4, num_out=6)]
    return {f"layer{n}": _params(method.shapes(base), seed + 10 * n) for n, base in enumerate(bases)}


def test_adaloras_penalty_is_the_distance_from_orthogonal_factors():
    method = inlay.Adalora(init_r=3, target_r=2, orth_reg_weight=0.3)
    layers = _adalora_layers(method, seed=40)
    expected = oracle.adalora_penalty([(p["lora_A"].numpy(), p["lora_B"].numpy()) for p in layers.values()], 0.3)
    assert_close(method.penalty(layers), expected, F64, TERMS)


def _adalora_run(num_steps, **settings):
    """Which triplets are kept after each step of a run on fresh random tensors and gradients; ours, and the oracle's."""
    method = inlay.Adalora(init_r=6, target_r=2, beta1=0.8, beta2=0.7, **settings)
    start, end = (round(t * num_steps) if t < 1 else int(t) for t in (method.tinit, method.tfinal))
    state, steps, kept = {}, [], []
    for step in range(num_steps):
        layers = _adalora_layers(method, seed=100 * step)
        for number, params in enumerate(layers.values()):
            for place, tensor in enumerate(params.values()):
                tensor.grad = _draw(*tensor.shape, seed=5000 + 100 * step + 10 * number + place)
        before = [{name: tensor.clone() for name, tensor in params.items()} for params in layers.values()]
        steps.append(
            [{name[-1]: (t.clone().numpy(), t.grad.numpy()) for name, t in p.items()} for p in layers.values()]
        )
        method.after_step(layers, step, num_steps, state)
        kept.append(np.stack([p["lora_E"].flatten().numpy() != 0 for p in layers.values()]))
        for old, params, some in zip(before, layers.values(), kept[-1], strict=True):
            assert torch.equal(params["lora_E"], old["lora_E"] * torch.tensor(some)[:, None])
            assert all(torch.equal(params[name], old[name]) for name in ("lora_A", "lora_B"))
    return kept, oracle.adalora_kept(steps, start, end, 6, 2, 0.8, 0.7), num_steps - end


@pytest.mark.parametrize("settings", [dict(tinit=2, tfinal=3), dict(tinit=0.25, tfinal=0.3), dict(tinit=0, tfinal=4)])
def test_adalora_keeps_the_triplets_that_matter_most_within_its_budget(settings):
    ours, expected, last = _adalora_run(10, **settings)
    for step in range(last):
        assert np.array_equal(ours[step], expected[step]), f"after step {step}"
    assert len({int(kept.sum()) for kept in ours}) > 2


def test_adalora_ends_with_the_target_rank_on_average():
    ours, expected, last = _adalora_run(6, tinit=1, tfinal=2)
    assert [int(kept.sum()) for kept in ours[last:]] == [3 * 2] * 2
    assert np.array_equal(ours[last:], expected[last:])


@pytest.mark.parametrize("what", ["penalty", "after_step"])
def test_adalora_passes_by_modules_that_are_trained_whole(what):
    method = inlay.Adalora(init_r=3, target_r=2, modules_to_save="head", tinit=0)
    layers = _adalora_layers(method, seed=40)
    alone, whole = method.penalty(layers), {"head": {"weight": _draw(5, 4)}}
    for tensors in (*layers.values(), *whole.values()):
        for tensor in tensors.values():
            tensor.grad = tensor.clone()
    if what == "penalty":
        assert_close(method.penalty(layers | whole), alone, F64, TERMS)
    else:
        method.after_step(layers | whole, 1, 4, {})


class _Net(nn.Module):
    """A convolution between two functions without weights."""

    def __init__(self, bias):
        super().__init__()
        self.conv = nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), bias=bias)

    def forward(self, image):
        return torch.tanh(self.conv(image.sin()))


@both_biases
@pytest.mark.parametrize(
    ("method", "scaling"),
    [
        (inlay.Lora(r=3, lora_alpha=5, target_modules="conv"), 5 / 3),
        (inlay.Dora(r=3, lora_alpha=5, target_modules="conv"), 5 / 3),
        (inlay.Loha(r=2, alpha=3, target_modules="conv"), 3 / 2),
    ],
    ids=["lora", "dora", "loha"],
)
def test_a_changed_convolution_is_one_with_the_merged_kernel(method, scaling, bias):
    net, image = _fill_(_Net(bias)), _draw(2, 2, 6, 5, seed=10)
    base = Convolution(net.conv)
    params = _params(method.shapes(base))
    function = _loha_function(params, scaling) if "hada_w1_a" in params else _lora_function(params, scaling)
    W, b = _plain(base)
    weight, merged_bias = oracle.merged(lambda patch: function(patch, W, b), base.in_features)
    conv = net.conv
    merged_kernel = weight.reshape(conv.weight.shape)
    expected = oracle.convolution(
        np.sin(image.numpy()), merged_kernel, merged_bias, conv.stride, conv.padding, conv.dilation
    )
    held = inlay.attach(net, method)
    held.detach("default")
    held.put(Adapter("ours", method, {"conv": params}))
    assert_close(net(image), np.tanh(expected), F64, TERMS)
    kernel, kept_bias = method.merge(params, base.weight(F64), base.bias)
    assert_close(kernel.view(conv.weight.shape), merged_kernel, F64, TERMS)
    assert (kept_bias is None) == (b is None)
    if kept_bias is not None:
        assert_close(kept_bias, merged_bias, F64, TERMS)


FUNCTIONS = {"relu": oracle.relu, "gelu": oracle.gelu, "swish": oracle.swish, "tanh": math.tanh}
PLACEMENTS = {"houlsby": (("attention", "mlp"), False), "pfeiffer": (("mlp",), False), "parallel": (("mlp",), True)}


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_bottleneck_is_the_papers_equation(placement, name, norm):
    method = inlay.Bottleneck(placement=placement, bottleneck_size=3, non_linearity=name, layer_norm=norm, scaling=0.7)
    assert (method.roles, method.is_parallel) == PLACEMENTS[placement]
    params = _params(method.shapes(Block("layer", "mlp", IN)))
    p, h = _arrays(params), _draw(2, 3, IN, seed=10)
    tensors = [p[f"adapter_{part}"] for part in ("down", "down_bias", "up", "up_bias")]
    normed = (p["adapter_norm"], p["adapter_norm_bias"]) if norm else None
    expected = [
        [oracle.bottleneck(token, *tensors, FUNCTIONS[name], 0.7, normed) for token in row] for row in h.numpy()
    ]
    assert_close(method.transform(params, h), expected, F64, TERMS)


@pytest.mark.parametrize(
    ("settings", "size"),
    [(dict(reduction_factor=3), 4), (dict(reduction_factor=100), 1), (dict(bottleneck_size=5), 5)],
)
def test_the_bottleneck_is_the_width_by_its_factor_or_the_size_itself(settings, size):
    shapes = inlay.Bottleneck(**settings).shapes(Block("layer", "mlp", 14))
    assert shapes["adapter_down"] == (size, 14)
    assert shapes["adapter_up"] == (14, size)


TABLE = _draw(13, IN, seed=50)
"""The embeddings of a small vocabulary."""


def _decoder(tokenize=lambda text: [ord(letter) - ord("a") for letter in text]):
    return Decoder(3, IN, 2, 5, lambda ids: TABLE[ids], tokenize, len(TABLE))


def _filled(method):
    """Random tensors in the shapes that training starts from."""
    fresh = method.init(_decoder(), torch.Generator().manual_seed(0))
    return _params({name: tuple(tensor.shape) for name, tensor in fresh.items()})


@pytest.mark.parametrize("hidden", [None, 9])
def test_p_tuning_is_a_network_of_three_maps(hidden):
    method = inlay.PTuning(num_virtual_tokens=4, encoder_hidden_size=hidden)
    params = _filled(method)
    p = _arrays(params)
    assert p["map1"].shape == (hidden or IN,) * 2
    expected = oracle.network(p["embedding"], [(p[f"map{i}"], p[f"bias{i}"]) for i in range(3)], oracle.relu)
    assert expected.shape == (4, IN)
    assert_close(method.encode(params), expected, F64, TERMS * 9)
    kept = method.finish({"": params, "head": {"weight": TABLE}})
    assert_close(kept[""]["prompt_embeddings"], expected, F64, TERMS * 9)
    assert set(kept[""]) == {"prompt_embeddings"}
    assert kept["head"]["weight"] is TABLE


@pytest.mark.parametrize("hidden", [None, 9])
def test_prefix_tuning_is_a_network_of_two_maps(hidden):
    method = inlay.Prefix(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=hidden)
    params = _filled(method)
    p = _arrays(params)
    assert p["inner"].shape == (hidden or IN, IN)
    maps = [(p["inner"], p["inner_bias"]), (p["outer"], p["outer_bias"])]
    expected = oracle.network(p["embedding"], maps, math.tanh)
    assert expected.shape == (4, 2 * 3 * 2 * 5)
    assert_close(method.encode(params), expected, F64, TERMS)
    assert_close(method.virtual(params), expected, F64, TERMS)


def test_a_prefix_without_a_network_is_what_is_trained():
    method = inlay.Prefix(num_virtual_tokens=4)
    params = _filled(method)
    assert {name: tuple(tensor.shape) for name, tensor in params.items()} == {"prompt_embeddings": (4, 2 * 3 * 2 * 5)}
    assert method.virtual(params) is params["prompt_embeddings"]


@pytest.mark.parametrize(("count", "ids"), [(2, [2, 0]), (3, [2, 0, 5]), (7, [2, 0, 5, 2, 0, 5, 2])])
def test_a_prompt_from_a_text_repeats_or_cuts_its_tokens(count, ids):
    method = inlay.Prompt(num_virtual_tokens=count, prompt_tuning_init="TEXT", prompt_tuning_init_text="caf")
    prompt = method.init(_decoder(), torch.Generator().manual_seed(0))["prompt_embeddings"]
    assert torch.equal(prompt, TABLE[ids].float())


def test_a_prompt_from_the_vocabulary_is_rows_of_the_table():
    method = inlay.Prompt(num_virtual_tokens=60)
    prompt, other = (
        method.init(_decoder(), torch.Generator().manual_seed(seed))["prompt_embeddings"] for seed in (0, 1)
    )
    rows = [[i for i, row in enumerate(TABLE.float()) if torch.equal(row, one)] for one in prompt]
    assert all(len(found) == 1 for found in rows)
    assert {i for (i,) in rows} >= {0, len(TABLE) - 1}
    assert not torch.equal(prompt, other)


def test_a_random_prompt_is_spread_as_the_embeddings_of_tokens_that_are_drawn():
    method = inlay.Prompt(num_virtual_tokens=4, prompt_tuning_init="RANDOM")
    prompt = method.init(_decoder(), torch.Generator().manual_seed(0))["prompt_embeddings"]
    generator = torch.Generator().manual_seed(0)
    rows = TABLE.numpy()[torch.randint(len(TABLE), (4,), generator=generator)]
    deviation = math.sqrt(sum((number - rows.mean()) ** 2 for number in rows.flatten()) / (rows.size - 1))
    assert_close(prompt, deviation * torch.randn(4, IN, generator=generator), torch.float32, TERMS)


OWN = [
    Own("model.embed_tokens", "weight", "embedding", False),
    Own("model.layers.0.q_proj", "weight", "linear", True),
    Own("model.layers.0.q_proj", "bias", "linear", True),
    Own("model.layers.0.up_proj", "bias", "linear", False),
    Own("model.layers.0.conv", "bias", "conv2d", False),
    Own("model.layers.0.norm", "weight", "norm", False),
    Own("model.layers.0.norm", "bias", "norm", False),
    Own("model.norm", "weight", "norm", False),
    Own("model.scale", "gain", "other", False),
]
CHOICES = {
    "full": (inlay.Full(), range(9)),
    "bitfit": (inlay.Bitfit(), (2, 3, 4, 6)),
    "ln_tuning": (inlay.LnTuning(), (5, 6, 7)),
    "ln_tuning_by_name": (inlay.LnTuning(target_modules="0.norm"), (5, 6)),
    "ln_tuning_by_expression": (inlay.LnTuning(target_modules=r"model\.norm|.*q_proj"), (7,)),
    "lora": (inlay.Lora(), ()),
    "lora_all": (inlay.Lora(bias="all"), (2, 3, 4, 6)),
    "dora_only": (inlay.Dora(bias="lora_only"), (2,)),
    "ia3": (inlay.Ia3(), ()),
    "adalora": (inlay.Adalora(), ()),
}


@pytest.mark.parametrize(("method", "chosen"), CHOICES.values(), ids=CHOICES.keys())
def test_a_method_trains_those_of_the_models_own_tensors_that_its_name_says(method, chosen):
    assert [own for own in OWN if hooks.trains(method, own)] == [OWN[i] for i in chosen]
