"""What `transformers` keeps in float32 beside 16 bits stays so: gates of experts, decays of states, norms of some."""

import pytest
import torch
import transformers

import inlay
from inlay.core.product import product_dtype
from tests.support import architectures

CAUSAL = "AutoModelForCausalLM"


def multiplied_as_ours(layer, x):
    """What `layer` makes of x where it multiplies in the dtype that Inlay does on this processor, which torch may not."""
    dtype = product_dtype(x)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return torch.nn.functional.linear(x.to(dtype), layer.weight.to(dtype), bias).to(x.dtype)


@pytest.mark.parametrize("kind", ["afmoe", "ernie4_5_moe", "olmo_hybrid", "rwkv"])
def test_a_model_in_16_bits_is_that_of_transformers_to_the_bit(tmp_path, monkeypatch, kind):
    architectures.directory(tmp_path / "base", CAUSAL, kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float16).eval()
    wide = {name for name, parameter in theirs.named_parameters() if parameter.dtype == torch.float32}
    base = inlay.load(tmp_path / "base", dtype="float16")
    assert wide
    assert wide == {name for name, parameter in base.model.named_parameters() if parameter.dtype == torch.float32}
    ids = architectures.tokens(2, 12)
    with torch.no_grad():
        ours = base.logits(ids, None)
        monkeypatch.setattr(torch.nn.Linear, "forward", multiplied_as_ours)
        assert torch.equal(ours, theirs(input_ids=ids).logits)


@pytest.mark.parametrize("kind", ["ernie4_5_moe", "olmo_hybrid"])
def test_an_adapter_learns_beside_them(tmp_path, kind):
    base = inlay.load(architectures.directory(tmp_path / "base", CAUSAL, kind), dtype="bfloat16")
    assert any(parameter.dtype == torch.float32 for parameter in base.model.parameters())
    rows = [{"text": "abc def"}, {"text": "abd"}] * 4
    losses: list[float] = []
    inlay.train(
        base,
        rows,
        method=inlay.Lora(r=2),
        output=tmp_path / "out",
        max_steps=3,
        on_step=lambda progress: losses.append(progress.losses[-1]),
    )
    assert len(losses) == 3
    assert all(loss == loss for loss in losses)
