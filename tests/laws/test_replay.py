"""Steps that are replayed give the bits of steps that are not, under any adapters, and what can't be replayed is computed."""

import pytest
import torch

import inlay
from inlay import quant
from inlay.generation import replay
from inlay.generation.engine import Engine
from inlay.generation.sequence import Request
from inlay.kernels import native, program
from inlay.model.adapter import Sum
from inlay.model.adapter_set import AdapterSet
from inlay.modules.frozen import QuantizedLinear, freeze_
from inlay.modules.fused import fuse_
from tests.support import models

pytestmark = pytest.mark.skipif(native.variant() in (native.TORCH, "plain"), reason="there is no library of kernels")

NEW = 64
"""Long enough that tables of blocks grow."""
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def _held(family, dtype, method, scheme=None):
    model = models.model(family, dtype=dtype, sizes=SIZES)
    if scheme is not None:
        _quantize_(model, scheme)
    freeze_(model, dtype)
    fuse_(model, dtype)
    held = AdapterSet(model)
    for seed, name in enumerate("ab"):
        models.randomize(held.attach(method or inlay.Lora(r=2 + seed, lora_alpha=4), name, seed=seed), seed=seed)
    held.active = None
    return held


def _quantize_(model, scheme):
    """Quantise every linear map but the head."""
    how = quant.find(scheme)
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            matrix = how.open(how.quantize(module.weight.detach()))
            model.set_submodule(path, QuantizedLinear(matrix, module.bias, False))


def _answers(held, adapters, new=NEW):
    engine = Engine(held.module, held.router, cache_tokens=1024)
    asked = [
        Request(tokens=tuple(range(3, 9 + n)), adapter=adapter, max_new_tokens=new - 9 * n, num_logprobs=0)
        for n, adapter in enumerate(adapters)
    ]
    ended = sorted(engine.run(asked), key=lambda one: one.number)
    return [(one.answer, [said.value for said in one.logprobs]) for one in ended]


CASES = [
    *[(family, dtype, None) for family in ("llama", "qwen2", "qwen3") for dtype in (torch.float32, torch.bfloat16)],
    *[("llama", dtype, "nf4") for dtype in (torch.float32, torch.bfloat16)],
    *[pytest.param(family, torch.float32, None, marks=pytest.mark.slow) for family in ("mistral", "gemma3", "mixtral")],
]


@pytest.mark.parametrize(("family", "dtype", "scheme"), CASES, ids=str)
def test_replayed_steps_have_the_bits_of_others(monkeypatch, family, dtype, scheme):
    held = _held(family, dtype, None, scheme)
    a, b = held["a"], held["b"]
    runs = [0, 0]
    inner = program.recorded

    def counted(call):
        out, again = inner(call)
        runs[0] += again is not None

        def once_more():
            runs[1] += 1
            again()

        return out, again and once_more

    for adapters in ([None], [a], [a, b, None, Sum(((a, 0.5), (b, -2.0)))]):
        monkeypatch.setattr(program, "recorded", counted)
        replayed = _answers(held, adapters)
        monkeypatch.setattr(program, "recorded", lambda call: (call(), None))
        assert replayed == _answers(held, adapters)
    if family in ("gemma3", "mixtral"):  # whose norms and experts are torch's
        assert runs == [0, 0]
    else:
        assert runs[0] < runs[1] / 10
        assert runs[1] > NEW


@pytest.mark.parametrize("method", [inlay.Dora(r=2), inlay.Ia3(), inlay.Prefix(num_virtual_tokens=3)], ids=str)
def test_what_can_not_be_replayed_is_computed(monkeypatch, method):
    held = _held("llama", torch.float32, method)
    adapters = [held["a"], None, held["b"]]
    replayed = _answers(held, adapters, 30)
    monkeypatch.setattr(replay, "RECORDED", 10**9)
    assert replayed == _answers(held, adapters, 30)


def test_an_adapter_that_changes_is_recorded_anew():
    held = _held("llama", torch.float32, None)
    engine = Engine(held.module, held.router, cache_tokens=1024)

    def steps(count):
        one = engine.add(Request(tokens=tuple(range(3, 20)), adapter=held["a"], max_new_tokens=99, num_logprobs=0))
        for _ in range(count):
            engine.step()
        return one

    one = steps(8)
    with torch.no_grad():
        for tensor in held["a"].tensors():
            tensor.mul_(-1.5)  # keys and values of before stay, as for any adapter that is trained meanwhile
    engine.step()
    before = one.logprobs[-1].value
    engine.abort(one)
    ids = [*one.request.tokens, *one.answer[:-1]]
    with torch.no_grad(), held.using("a"):
        changed = held.module(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[one.answer[-1]]
    assert abs(before - float(changed)) > 1e-6  # keys of before
    two = steps(8)
    ids = [*two.request.tokens, *two.answer[:-1]]
    with torch.no_grad(), held.using("a"):
        wanted = held.module(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[two.answer[-1]]
    assert abs(two.logprobs[-1].value - float(wanted)) < 1e-5


def test_what_a_call_asks_of_torch_decides_whether_it_is_done_again():
    x, w, row = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    out, again = program.recorded(lambda: (x + w).view(24).view(3, 8).add_(row))
    expected = x + w + row
    assert torch.equal(out, expected)
    x.mul_(2)
    again()
    assert torch.equal(out, x + w + row)
    assert not torch.equal(out, expected)
    out, again = program.recorded(lambda: native.not_again() or x + w)
    assert torch.equal(out, x + w)
    assert again is None
    for call in (lambda: x * w, lambda: x @ w.T, lambda: torch.add(x, w, alpha=2), lambda: x + 1, lambda: x.T + w.T):
        found, again = program.recorded(call)
        assert torch.equal(found, call())
        assert again is None


def _in_place(module, args, out):
    out.mul_(0.5)


def _another(module, args, out):
    return out * 0.5


@pytest.mark.parametrize("between", [None, _in_place, _another], ids=["nothing", "in place", "another"])
def test_layers_that_follow_each_other_are_done_in_one_go(monkeypatch, between):
    held = _held("llama", torch.float32, None)
    layers = replay._layers(held.module)
    if between:
        layers[0].register_forward_hook(between)
    chains, once = [], []
    inner, run = replay._Recording.__init__, replay._Chain.run

    def noted(self, *args):
        inner(self, *args)
        chains.append(self.chain)

    monkeypatch.setattr(replay._Recording, "__init__", noted)
    monkeypatch.setattr(replay._Chain, "run", lambda self, leaves: (once.append(self), run(self, leaves)))
    replayed = _answers(held, [held["a"], None], 30)
    assert len(layers) > 1
    assert len(once) > 15
    assert len(set(map(id, chains))) == (2 if between else 1) * len(chains) / len(layers)
    monkeypatch.setattr(replay, "RECORDED", 10**9)
    assert replayed == _answers(held, [held["a"], None], 30)
