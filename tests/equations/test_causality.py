"""A base for the next token is one whose tokens see nothing of what comes after them."""

import pytest
import torch
import transformers
from torch import nn

import inlay
from inlay.base import causality
from inlay.base.load import load
from inlay.errors import CompatibilityError
from tests.support import architectures, bases

POSITIONS = architectures.POSITIONS
SEES_WHAT_COMES = {
    "bert": {},
    "bert-generation": {},
    "big_bird": {},
    "camembert": POSITIONS,
    "cpmant": {},
    "data2vec-text": POSITIONS,
    "electra": dict(embedding_size=16),
    "ernie": {},
    "megatron-bert": {},
    "rembert": dict(input_embedding_size=16, output_embedding_size=16),
    "roberta": POSITIONS,
    "roberta-prelayernorm": POSITIONS,
    "roc_bert": dict(pronunciation_vocab_size=20, shape_vocab_size=20),
    "roformer": {},
    "xlm": {},
    "xlm-roberta": POSITIONS,
    "xlnet": dict(d_model=32, n_layer=2, n_head=4, d_head=8, d_inner=48),
    # made bidirectional by their configuration
    "gemma": dict(use_bidirectional_attention=True),
    "gemma3_text": dict(use_bidirectional_attention=True),
    "gpt2": dict(is_causal=False),
    "llama": dict(is_causal=False),
}
"""Type of model -> settings with which `transformers` makes a causal language model of it that is none."""


def loaded(path, kind, settings, dtype="float32", start=False):
    """A base; `start`: as fresh as training from nothing would find it."""
    built = architectures.model("AutoModelForCausalLM", kind, settings)
    if start:
        torch.manual_seed(1)
        built = transformers.AutoModelForCausalLM.from_config(built.config)
    built.save_pretrained(path)
    bases.tokenizer().save_pretrained(path)
    return load(path, dtype=dtype)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(k, "float32") for k in SEES_WHAT_COMES] + [(k, "bfloat16") for k in ("bert", "roc_bert", "llama")],
)
def test_what_sees_later_tokens_is_refused(tmp_path, kind, dtype):
    base = loaded(tmp_path, kind, SEES_WHAT_COMES[kind], dtype)
    with pytest.raises(CompatibilityError, match="sees the tokens that it is to predict"):
        base.check_causal()


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_a_fresh_encoder_is_refused_too(tmp_path, kind):
    with pytest.raises(CompatibilityError, match="is_decoder is not set"):
        loaded(tmp_path, kind, SEES_WHAT_COMES[kind], start=True).check_causal()


@pytest.mark.parametrize("kind", [kind for kind in SEES_WHAT_COMES if kind in architectures.CAUSAL])
def test_the_same_models_as_decoders_are_taken(tmp_path, kind):
    loaded(tmp_path, kind, architectures.CAUSAL[kind], "bfloat16").check_causal()


def test_training_evaluation_and_answers_are_refused(tmp_path):
    base = loaded(tmp_path / "base", "bert", {})
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(12))
    for asked in (
        lambda: inlay.train(base, rows, method=inlay.Lora(r=2), output=tmp_path / "out", max_steps=1),
        lambda: base.generate(["say 1"], max_new_tokens=2),
    ):
        with pytest.raises(
            CompatibilityError, match="--task sequence-classification, token-classification or embedding"
        ):
            asked()
    assert not (tmp_path / "out").exists()


class Peeks(nn.Module):
    """Looks a few tokens ahead, but for what `within` leaves it."""

    def __init__(self, inner, ahead, size, block=None):
        super().__init__()
        self.inner, self.ahead, self.size, self.block = inner, ahead, size, block

    def forward(self, x):
        later = torch.zeros_like(x)
        later[:, : -self.ahead] = x[:, self.ahead :]
        if self.block:
            t = torch.arange(x.shape[1])
            later[:, (t // self.block) != (t + self.ahead) // self.block] = 0
        return self.inner(x + self.size * later)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("ahead", "size", "block"), [(1, 1, None), (1, 0.1, None), (3, 1, None), (1, 1, 2), (1, 1, 16)]
)
def test_a_planted_look_ahead_is_seen(tmp_path, dtype, ahead, size, block):
    base = loaded(tmp_path, "llama", architectures.CAUSAL["llama"], dtype)
    body = base.model.base_model
    body.norm = Peeks(body.norm, ahead, size, block)
    with pytest.raises(CompatibilityError):
        base.check_causal()


class GroupRounding(nn.Module):
    """Rounds in a way that depends on all rows together, as experts do."""

    def forward(self, x):
        return x * (1 + 1e-3 * (1e3 * x.float().sum()).sin()).to(x.dtype)


def test_what_comes_of_other_rows_is_no_look_ahead(tmp_path):
    base = loaded(tmp_path, "llama", architectures.CAUSAL["llama"])
    base.model.base_model.norm = nn.Sequential(GroupRounding(), base.model.base_model.norm, GroupRounding())
    base.check_causal()


def test_a_model_is_asked_once_and_without_its_adapters(tmp_path, monkeypatch):
    base = loaded(tmp_path, "llama", architectures.CAUSAL["llama"])
    base.attach(inlay.Lora(r=2), "it")
    calls = []
    real = causality._movement
    monkeypatch.setattr(causality, "_movement", lambda *given: calls.append(base.active) or real(*given))
    base.check_causal()
    base.check_causal()
    assert calls == [None]
    assert base.active == "it"


@pytest.mark.parametrize(
    ("vocabulary", "special"), [(2, ()), (3, (0,)), (13, ()), (37, (0, 1, 2)), (97, (0,)), (50257, ())]
)
def test_rows_have_their_beginning_in_common_and_nothing_else(vocabulary, special):
    one, other = causality._rows(vocabulary, special)
    kept = causality.NUM_KEPT
    assert len(one) == len(other) == kept + causality.NUM_CHANGED
    assert one[:kept] == other[:kept]
    assert all(a != b for a, b in zip(one[kept:], other[kept:], strict=True))
    assert not {*one, *other} & set(special)
    assert max(*one, *other) < vocabulary
    assert causality._rows(None, ()) is None
    assert causality._rows(2, (0,)) is None
