"""The examples of Python that people read first run word for word, on a small model of that name."""

import re
from pathlib import Path

import pytest
import torch

import inlay
from inlay.base.load import load
from inlay.errors import ConfigError
from tests.support import bases, models

DESIGN = """
base = inlay.load("Qwen/Qwen3-0.6B", quantize="nf4")         # .model (transformers' module), .tokenizer, .fingerprint
inlay.train(base, "rows.jsonl", method=inlay.Lora(r=16), output="mine")
base.attach("mine")                                         # named after its folder unless name= is given; now active
base.generate(["one", "two"], adapters=["mine", None])      # every row names its adapter
with base.using(None):                                      # the plain base, bit for bit
    base.model(input_ids)
inlay.merge(base, "mine", output="merged")
inlay.attach(any_torch_module, inlay.Lora(r=4))             # not only language models
"""
README = re.search(
    r"## From Python\n\n```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text("utf-8"), re.DOTALL
)[1]
SIZES = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4, head_dim=16)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, but for the base, the rows and another adapter that the examples speak of; what they bring is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    name = "Qwen/Qwen3-0.6B"
    models.model("qwen3", sizes=SIZES).save_pretrained(name)
    bases.tokenizer().save_pretrained(name)
    bases.jsonl("rows.jsonl", bases.rows(24))
    base = load(name)
    models.randomize(base.create(inlay.Lora(r=2), "other"), seed=1)
    Path("other").mkdir()
    base.save("other", Path("other"), {})
    module = torch.nn.Sequential(torch.nn.Linear(11, 7), torch.nn.Linear(7, 5))
    return {"inlay": inlay, "input_ids": models.tokens(2, 5), "any_torch_module": module}


@pytest.mark.parametrize("text", [DESIGN, README], ids=["design", "readme"])
def test_the_example_runs(here, text):
    exec(text, here)
    base = here["base"]
    assert base.active == ("mine" if text is DESIGN else "other")
    plain = inlay.load("Qwen/Qwen3-0.6B", quantize=base.scheme)
    with torch.no_grad(), base.using(None):
        assert torch.equal(base.model(here["input_ids"]).logits, plain.model(here["input_ids"]).logits)
    assert Path("merged/config.json").is_file()
    assert any(hasattr(module, "base") for module in here["any_torch_module"])


def test_an_adapter_that_is_there_is_taken_for_itself_alone(here):
    base = load("Qwen/Qwen3-0.6B")
    first = base.attach("other")
    base.active = None
    assert base.attach("other") is first
    assert base.active == "other"
    with pytest.raises(ConfigError, match="of that name is attached already"):
        base.attach("elsewhere/other")
    first.params["model.layers.0.self_attn.q_proj"]["lora_A"][0, 0] += 1
    with pytest.raises(ConfigError, match="of that name is attached already"):
        base.attach("other")
    first.params["model.layers.0.self_attn.q_proj"]["lora_A"][0, 0] -= 1
    base.detach("other")
    base.put(inlay.Adapter("other", inlay.Lora(r=2, lora_alpha=5), first.params))  # of another scaling
    with pytest.raises(ConfigError, match="of that name is attached already"):
        base.attach("other")
