"""What `inlay.load` makes of a checkpoint computes what `transformers` makes of it, for every architecture there is a small model of."""

import pytest
import torch
import transformers

from inlay.model.load import load
from tests.support import architectures
from tests.support.tolerances import LOGITS

TASKS = [("AutoModelForCausalLM", kind) for kind in architectures.CAUSAL]


class Pair:
    """A small model's directory, and both sides' model of it."""

    def __init__(self, folder, auto_class, kind):
        self.folder, self.kind = folder, kind
        architectures.directory(folder, auto_class, kind, architectures.settings(auto_class, kind))
        self.base = load(folder, dtype="float32")
        self.theirs = getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=TASKS, ids=lambda task: task[1])
def pair(request, tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("base"), *request.param)


def apart(ours, theirs):
    """The largest difference, as part of the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def both_logits(pair, ids, mask=None, training=False):
    """What both sides say of these rows, where they are not padding."""
    said = []
    with torch.no_grad():
        for model in (pair.base.model, pair.theirs):
            model.train(training)
            torch.manual_seed(0)
            out = model(input_ids=ids, attention_mask=mask, use_cache=False)
            model.eval()
            said.append(out.logits if mask is None else out.logits[mask.bool()])
    return said


def masks(rows, length):
    """No mask, and those of rows that are padded at the end and at the beginning."""
    right, left = (torch.ones(rows, length, dtype=torch.long) for _ in range(2))
    right[0, -4:] = 0
    left[-1, :4] = 0
    return {"alone": None, "padded at the end": right, "padded at the beginning": left}


def test_logits_are_those_of_transformers(pair):
    ids = architectures.tokens(3, 13)
    for how, mask in masks(3, 13).items():
        assert apart(*both_logits(pair, ids, mask)) <= LOGITS, how
    assert apart(*both_logits(pair, ids[:1])) <= LOGITS, "one row"
    assert apart(*both_logits(pair, ids, training=True)) <= LOGITS, "in training mode"


def test_tokens_see_nothing_of_what_comes_after_them(pair):
    pair.base.check_causal()
