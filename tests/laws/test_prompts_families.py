"""Virtual tokens do in a model what its own tokens, or a cache of the same keys and values, do; or they are refused by name."""

import pytest
import torch
from transformers import DynamicCache

import inlay
from inlay.errors import CompatibilityError, TargetError
from inlay.methods.p_tuning import PTuning
from inlay.methods.prefix import Prefix
from inlay.methods.prompt import Prompt
from tests.support import architectures, models
from tests.support.tolerances import LOGITS

TAKES_PREFIXES = ("bert", "gemma3_text", "gpt2", "gpt_oss", "llama", "modernbert-decoder", "opt", "phi3", "qwen3_moe")
NO_PREFIXES = {
    "bloom": CompatibilityError,  # its attention is its own
    "codegen": CompatibilityError,
    "deepseek_v3": CompatibilityError,  # keys are wider than values
    "falcon": CompatibilityError,
    "gpt_neo": CompatibilityError,
    "gptj": CompatibilityError,
    "jamba": CompatibilityError,  # some layers have no keys
    "mamba": TargetError,  # none has
    "mpt": CompatibilityError,
    "roberta": CompatibilityError,  # its positions begin after the number of its padding token
    "rwkv": TargetError,
}
COUNT = 3


def causal(kind):
    torch.manual_seed(7)
    return architectures.model("AutoModelForCausalLM", kind, architectures.CAUSAL[kind])


def apart(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def heads_of(config):
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@torch.no_grad()
def behind_a_cache(model, ids, virtual):
    """What the plain model says of tokens whose cache holds these keys and values."""
    (heads, dim), layers = heads_of(model.config), model.config.num_hidden_layers
    cache = DynamicCache(config=model.config)
    for layer in range(layers):
        start = 2 * layer * heads * dim
        keys = virtual[:, start : start + heads * dim].reshape(COUNT, heads, dim)
        values = virtual[:, start + heads * dim : start + 2 * heads * dim].reshape(COUNT, heads, dim)
        every = [part.transpose(0, 1).expand(len(ids), -1, -1, -1).contiguous() for part in (keys, values)]
        cache.update(*every, layer)
    places = torch.arange(COUNT, COUNT + ids.shape[1]).expand(len(ids), -1)
    mask = torch.ones(len(ids), COUNT + ids.shape[1], dtype=torch.long)
    return model(input_ids=ids, past_key_values=cache, attention_mask=mask, position_ids=places, use_cache=True).logits


@pytest.mark.parametrize("kind", TAKES_PREFIXES)
def test_a_prefix_does_what_a_cache_of_it_does(kind):
    model, ids = causal(kind), architectures.tokens(2, 9)
    held = inlay.attach(model, Prefix(num_virtual_tokens=COUNT), "new")
    virtual = models.randomize(held["new"], seed=3, std=1.0).params[""]["prompt_embeddings"]
    with torch.no_grad():
        ours, plain = model(input_ids=ids).logits, held.detach("new") and model(input_ids=ids).logits
    theirs = behind_a_cache(model, ids, virtual)
    assert apart(ours, theirs) <= LOGITS
    assert apart(plain, theirs) > 0.01


@pytest.mark.filterwarnings("ignore:other leaves out")  # which layers of Mamba never run
@pytest.mark.parametrize("kind", NO_PREFIXES)
def test_a_prefix_is_refused_where_the_model_would_ignore_it(kind):
    model = causal(kind)
    held, before = inlay.attach(model, inlay.Lora(r=2), "other"), dict(model.named_modules())
    with pytest.raises(NO_PREFIXES[kind]) as caught:
        held.attach(Prefix(num_virtual_tokens=COUNT), "new")
    assert type(model).__name__ in str(caught.value)
    assert "--method prompt" in str(caught.value)
    assert list(held) == ["other"]
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize("method", [Prompt, PTuning])
@pytest.mark.parametrize(
    "kind", ["bloom", "falcon", "gemma", "mamba", "mamba2", "mpt", "opt", "recurrent_gemma", "rwkv"]
)
def test_virtual_tokens_with_the_embeddings_of_tokens_are_these_tokens(kind, method):
    model, ids = causal(kind), architectures.tokens(2, 9)
    before = architectures.tokens(1, COUNT, seed=8)
    with torch.no_grad():
        theirs = model(input_ids=torch.cat([before.expand(2, -1), ids], 1), use_cache=False).logits[:, COUNT:]
        embeddings = model.get_input_embeddings()(before)[0]
    held = inlay.attach(model, method(num_virtual_tokens=COUNT), "new")
    held["new"].params = {"": {"prompt_embeddings": embeddings}}
    with torch.no_grad():
        assert apart(model(input_ids=ids, use_cache=False).logits, theirs) <= LOGITS


def test_a_model_whose_positions_are_its_own_refuses_virtual_tokens():
    with pytest.raises(CompatibilityError, match="virtual tokens of prompt tuning") as caught:
        inlay.attach(causal("roberta"), Prompt(num_virtual_tokens=COUNT))
    assert "RobertaForCausalLM" in str(caught.value)


def test_a_planted_model_that_looks_at_numbers_of_tokens_refuses_prompts():
    model = causal("llama")
    attention = model.model.layers[1].self_attn
    own, seen = attention.forward, {}
    model.model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)

    def forward(hidden_states, **settings):
        number = seen["input_ids"].sum() if seen.get("input_ids") is not None else 0
        return own(hidden_states * (1 + 0.01 * number), **settings)

    attention.forward = forward
    with pytest.raises(CompatibilityError, match="prompt tuning"):
        inlay.attach(model, Prompt(num_virtual_tokens=COUNT))


def test_a_planted_model_that_misses_the_prefix_of_one_layer_refuses_prefixes():
    model = causal("llama")
    attention = model.model.layers[1].self_attn
    own = attention.forward

    def forward(hidden_states, **settings):
        attention.config, shared = plain, attention.config
        try:
            return own(hidden_states, **settings)
        finally:
            attention.config = shared

    plain = type(model.config)(**model.config.to_dict())
    plain._attn_implementation = model.config._attn_implementation
    attention.forward = forward
    with pytest.raises(CompatibilityError, match="prefix tuning"):
        inlay.attach(model, Prefix(num_virtual_tokens=COUNT))


def test_a_model_that_answers_with_no_logits_refuses_virtual_tokens():
    body = architectures.model("AutoModel", "bert", {})
    with pytest.raises(CompatibilityError, match="prompt tuning"):
        inlay.attach(body, Prompt(num_virtual_tokens=COUNT))
