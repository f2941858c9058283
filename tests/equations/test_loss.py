"""The loss of packed rows against the model's own on a padded batch, for every family of models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inlay
from inlay.base.load import load
from inlay.core import recompute
from inlay.core.cross_entropy import cross_entropy_sum
from inlay.evaluation.loss import evaluate
from inlay.model import attention
from inlay.modules import fused
from inlay.packing import rows as batch
from inlay.tasks import _memory as memory
from inlay.tasks import _packed as loss
from inlay.text.mask import Example
from tests.support import bases, models

FAMILIES = {family: (family, {}) for family in models.CONFIGS} | {
    "sliding": ("mistral", {"sliding_window": 4}),
    "sliding and full": (
        "gemma3",
        {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "grouped": ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 3}),
}
"""Every family, and what attends in other ways: name -> (family, what its configuration has besides)."""


def _base(path, family, **changes):
    if changes:
        changed = models.CONFIGS[family].__class__(**(models.CONFIGS[family].to_dict() | changes))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(models.CONFIGS, family, changed)
            bases.directory.__wrapped__(path, family)  # not a copy of what the family was before
            return load(path, dtype="float32")
    return load(bases.directory(path, family), dtype="float32")


def _rows(lengths=(9, 4, 17, 5, 11), seed=2):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, models.VOCABULARY, (length,), generator=generator).tolist()
        rows.append(Example(tuple(ids), tuple(i % 3 != 1 and i < length - 1 for i in range(length)), "row"))
    return rows


def _padded(base, rows):
    made = batch.collate(rows)
    return cross_entropy_sum(base.model(input_ids=made.input_ids, use_cache=False).logits, made.labels)


def _with_gradients(base, loss_of, rows):
    tensors = base.parameters()
    total = loss_of(base, rows)
    return total.item(), torch.autograd.grad(total, tensors)


def _assert_the_same(base, rows, rel=1e-5):
    actual, gradients = _with_gradients(base, loss.loss_of, rows)
    expected, expected_gradients = _with_gradients(base, _padded, rows)
    assert actual == pytest.approx(expected, rel=rel)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert (gradient - other).norm() <= rel * other.norm() + 1e-12


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_have_the_loss_and_the_gradients_of_padded_ones(tmp_path, monkeypatch, name):
    monkeypatch.setattr(recompute, "MIN_ELEMENTS", 1)
    monkeypatch.setattr(memory, "RECOMPUTE_BYTES", 0)  # whatever can be made again is
    family, changes = FAMILIES[name]
    base = _base(tmp_path / "base", family, **changes)
    models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "it"), seed=4)
    assert loss.unpacked_because(base) is None
    _assert_the_same(base, _rows())
    assert base.model.config._attn_implementation == "inlay_sdpa"  # for good: nothing is switched for a call
    together = loss.loss_of(base, _rows()).item()
    assert together == pytest.approx(sum(loss.loss_of(base, [row]).item() for row in _rows()), rel=1e-6)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """In float64 but for its norms, which compute in float32 in any dtype."""
    base = _base(tmp_path_factory.mktemp("llama") / "base", "llama")
    base.model.to(torch.float64)
    adapter = models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "it"), seed=4)
    adapter.params = {path: {key: tensor.double() for key, tensor in p.items()} for path, p in adapter.params.items()}
    return base


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 23), min_size=1, max_size=7),
    seed=st.integers(0, 99),
    least=st.sampled_from([1, 500]),
)
def test_rows_of_any_lengths_and_masks_have_the_loss_and_the_gradients_of_padded_ones(llama, lengths, seed, least):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in _rows(lengths, seed):
        trained = torch.randint(0, 2, (len(row.input_ids),), generator=generator).bool().tolist()
        rows.append(Example(row.input_ids, (*trained[:-1], True), "row"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompute, "MIN_ELEMENTS", least)
        patch.setattr(memory, "RECOMPUTE_BYTES", 0)
        _assert_the_same(llama, rows, rel=1e-6)


def test_what_can_be_made_again_is_kept_where_there_is_little_of_it(llama, monkeypatch):
    packed = []
    real = recompute._pack
    monkeypatch.setattr(recompute, "_pack", lambda tensor: packed.append(tensor.shape) or real(tensor))
    size = memory.activation_bytes(llama, sum(batch.pack(_rows()).lengths))
    llama.parameters()  # that gradients are asked for
    for least, asked in ((size + 1, False), (size, True)):
        monkeypatch.setattr(memory, "RECOMPUTE_BYTES", least)
        loss.loss_of(llama, _rows())
        assert bool(packed) == asked


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
def test_an_adapted_head_is_asked_itself(tmp_path, family):
    base = _base(tmp_path / "base", family)
    method = inlay.Lora(r=3, lora_alpha=5, target_modules=(base.head, "c_attn" if family == "gpt2" else "q_proj"))
    models.randomize(base.attach(method, "it"), seed=4)
    assert base.head in base.adapters["it"].params
    assert loss.unpacked_because(base) is None
    _assert_the_same(base, _rows())


def test_our_attention_is_asked_for_whole_documents_alone(tmp_path, monkeypatch):
    calls = []
    real = attention.document_attention
    monkeypatch.setattr(attention, "document_attention", lambda *given: calls.append(given[3]) or real(*given))
    for family, window, asked in (
        ("llama", {}, 3),
        ("mistral", {"sliding_window": 4}, 0),
        ("mistral", {"sliding_window": 40}, 3),
    ):
        base = _base(tmp_path / f"{family}{window}", family, **window)
        assert loss.unpacked_because(base) is None
        calls.clear()
        rows = _rows()
        loss.loss_of(base, rows)
        assert calls == [batch.pack(rows).lengths] * asked


def test_packed_rows_are_rotated_in_one_pass_and_others_as_the_model_does(tmp_path, monkeypatch):
    base, turned = _base(tmp_path / "base", "llama"), []
    monkeypatch.setattr(fused, "_rotate", lambda *given, real=fused._rotate: turned.append(given) or real(*given))
    loss.loss_of(base, _rows())
    turned.clear()
    loss.loss_of(base, _rows())
    assert len(turned) == base.model.config.num_hidden_layers
    base.model(input_ids=models.tokens(1, 5))
    assert len(turned) == base.model.config.num_hidden_layers


def test_only_labelled_positions_reach_the_head(tmp_path, monkeypatch):
    base, seen = _base(tmp_path / "base", "llama"), []
    real = loss.head_cross_entropy_sum
    monkeypatch.setattr(loss, "head_cross_entropy_sum", lambda *given: seen.append(len(given[0])) or real(*given))
    loss.loss_of(base, _rows())
    assert seen == [batch.num_targets(_rows())]


class _Scaled(torch.nn.Module):
    """A norm that also adds the mean of all tokens before: what a state carried along the row does."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


def _refusing(base):
    call = base.model.base_model.forward
    base.model.base_model.forward = lambda input_ids, use_cache=None, **kw: call(input_ids=input_ids, **_known(kw))


def _known(given):
    if given.get("position_ids") is not None:
        raise TypeError("position_ids")
    return given


def _capped(base):
    call = base.model.forward

    def forward(**given):
        out = call(**given)
        out.logits = 30 * torch.tanh(out.logits / 30)
        return out

    base.model.forward = forward


def _bounded(base):
    """Beyond what it usually says."""
    call = base.model.forward

    def forward(**given):
        out = call(**given)
        out.logits = out.logits.clamp(-50, 50)
        return out

    base.model.forward = forward


def _stateful(base):
    base.model.base_model.norm = _Scaled(base.model.base_model.norm)


def _eager(base):
    base.model.config._attn_implementation = "eager"


@pytest.mark.parametrize(
    ("change_", "reason"),
    [
        (_capped, "changes what its head says"),
        (_bounded, "changes what its head says"),
        (_stateful, "see more"),
        (_eager, "eager"),
        (_refusing, "TypeError"),
    ],
)
def test_a_model_that_cannot_be_packed_is_padded(tmp_path, change_, reason):
    base = _base(tmp_path / "base", "llama")
    models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "it"), seed=4)
    change_(base)
    assert reason in loss.unpacked_because(base)
    _assert_the_same(base, _rows())
    assert max(len(part) * max(len(e.input_ids) for e in part) for part in loss.parts(base, _rows(), 20)) <= 20


MIXED = {
    "low-rank": (inlay.Lora(r=2), inlay.Lora(r=3, bias="all")),
    "a weight and norms": (inlay.Dora(r=2), inlay.LnTuning()),
    "blocks": (inlay.Bottleneck(reduction_factor=4), inlay.Ia3()),
    "a prompt and a prefix": (inlay.Prompt(num_virtual_tokens=3), inlay.Prefix(num_virtual_tokens=2)),
    "a prefix and none": (inlay.Prefix(num_virtual_tokens=4), inlay.Oft(oft_block_size=4)),
}


@pytest.mark.parametrize("kind", MIXED)
def test_rows_of_several_adapters_are_packed_together(tmp_path, monkeypatch, kind):
    base = _base(tmp_path / "base", "llama")
    for seed, (name, method) in enumerate(zip("ab", MIXED[kind], strict=True)):
        models.randomize(base.attach(method, name), seed=seed)
    rows, names = _rows(), ["a", None, "b", "b", "a"]
    passes = []
    monkeypatch.setattr(loss, "_hidden", lambda *given, real=loss._hidden: passes.append(given) or real(*given))
    trained = {name: base.adapters[name].train_() for name in "ab"}
    expected, slopes = 0.0, []
    for name, row in zip(names, rows, strict=True):
        base.active = name
        alone = loss.loss_of(base, [row])
        expected += alone.item()
        slopes.append(torch.autograd.grad(alone, trained[name]) if name else None)
    passes.clear()
    with base.using(names):
        together = loss.loss_of(base, rows)
    assert len(passes) == 1
    assert together.item() == pytest.approx(expected, rel=1e-6)
    for name, tensors in trained.items():
        mine = [slope for slope, other in zip(slopes, names, strict=True) if other == name]
        for got, *each in zip(torch.autograd.grad(together, tensors, retain_graph=True), *mine, strict=True):
            wanted = sum(each)
            assert (got - wanted).norm() <= 1e-4 * wanted.norm()  # float32, summed in another order


def test_rows_that_name_their_adapters_are_evaluated_with_them_in_any_order(tmp_path):
    base = _base(tmp_path / "base", "llama")
    for seed, name in enumerate("ab"):
        models.randomize(base.attach(inlay.Lora(r=2 + seed, lora_alpha=5), name), seed=seed)
    rows, names = _rows((9, 4, 12, 6)), ["a", "b", None, "b"]
    mixed = evaluate(base, names, rows, 10) * batch.num_targets(rows)
    alone = sum(
        evaluate(base, name, [row], 100) * batch.num_targets([row]) for name, row in zip(names, rows, strict=True)
    )
    assert mixed == pytest.approx(alone, rel=1e-6)


def test_the_probe_leaves_the_base_as_it_was(tmp_path):
    base = _base(tmp_path / "base", "llama")
    base.attach(inlay.Lora(r=3), "it")
    before = models.byte_image(base.model)
    loss.unpacked_because(base)
    assert base.active == "it"
    assert models.byte_image(base.model) == before
    assert not base.linears[base.head].module._forward_hooks


def test_rows_without_a_target_add_nothing(tmp_path):
    base = _base(tmp_path / "base", "llama")
    silent = Example((5, 6, 7), (False,) * 3, "silent")
    assert loss.loss_of(base, [silent]).item() == 0
    assert loss.loss_of(base, [*_rows(), silent]).item() == pytest.approx(loss.loss_of(base, _rows()).item(), rel=1e-6)
