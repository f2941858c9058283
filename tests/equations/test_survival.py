"""A merge says what part of a tiny change rounding leaves, and is refused where it leaves next to nothing."""

import warnings

import pytest
import torch

import inlay
from inlay.base.load import load
from inlay.errors import CompatibilityError
from inlay.export import survival
from tests.support import bases, models


def held(folder, size, dtype=torch.bfloat16):
    """A base whose files are of this dtype, with an adapter of changes of about this size."""
    models.model("llama", dtype).save_pretrained(folder)
    bases.tokenizer().save_pretrained(folder)
    base = load(folder, dtype="float32")
    models.randomize(base.attach(inlay.Lora(r=2, lora_alpha=2), "new"), seed=3, std=size**0.5)
    return base


def by_hand(base):
    """The part that is left, over all weights."""
    kept = whole = 0.0
    for path, params in base.adapters["new"].params.items():
        weight = base.linears[path].weight(torch.float64)
        change = params["lora_B"].double() @ params["lora_A"].double()
        rounded = (weight + change).to(torch.bfloat16).double() - weight
        kept, whole = kept + (rounded * change).sum().item(), whole + change.square().sum().item()
    return kept / whole


@pytest.mark.parametrize("size", [1e-7, 5e-5, 1e-3, 0.1])
def test_the_part_that_is_left_is_that_of_all_weights(tmp_path, size):
    base = held(tmp_path / "base", size)
    assert abs(survival.surviving(base, base.adapters["new"]) - by_hand(base)) < 0.05


def test_a_change_that_rounding_erases_is_not_merged(tmp_path):
    base = held(tmp_path / "base", 1e-7)
    with pytest.raises(CompatibilityError, match="rounding to bfloat16 would erase") as caught:
        inlay.merge(base, "new", output=tmp_path / "merged")
    assert "% of its change would be left" in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_a_change_that_is_partly_erased_is_said(tmp_path):
    base = held(tmp_path / "base", 5e-5)
    part = survival.surviving(base, base.adapters["new"])
    assert survival.LEAST < part < survival.WHOLE, "of the size that this test is about"
    with pytest.warns(UserWarning, match=rf"leaves {100 * part:.0f} % of what new changes"):
        survival.check_survives(base, base.adapters["new"])


@pytest.mark.parametrize(("size", "dtype"), [(0.1, torch.bfloat16), (1e-7, torch.float32)])
def test_a_change_that_the_files_can_hold_is_merged_without_a_word(tmp_path, size, dtype):
    base = held(tmp_path / "base", size, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inlay.merge(base, "new", output=tmp_path / "merged")


def test_an_adapter_that_changes_nothing_is_merged(tmp_path):
    models.model("gpt2", torch.bfloat16).save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base", dtype="float32")
    base.attach(inlay.Lora(r=2), "new")
    assert survival.surviving(base, base.adapters["new"]) is None
    inlay.merge(base, "new", output=tmp_path / "merged")
