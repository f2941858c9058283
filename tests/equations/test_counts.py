"""Published numbers of trained weights, from the published geometries: on the meta device, so no weight exists.

The sources of the numbers are named beside each; where a paper prints 4.7M, the whole number is what its formula gives.
"""

import time

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    RobertaConfig,
)

import inlay
from inlay.layout.decoder import decoder_of
from inlay.layout.layout import Layout


def _gpt(layers, width, heads):
    """GPT-2's geometry, which GPT-3 has too."""
    return GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=50257, n_positions=2048 if layers == 96 else 1024
    )


def _apart(layers, width, heads):
    """The same widths with queries, keys and values as maps of their own, which is what the papers count."""
    return OPTConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        word_embed_proj_dim=width,
        vocab_size=50257,
    )


def _llama(layers, width, heads, inner, vocabulary=32000, kv=None):
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv or heads,
        intermediate_size=inner,
        vocab_size=vocabulary,
    )


def _roberta(layers, width, heads):
    return RobertaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        vocab_size=50265,
    )


GEOMETRIES = {
    "gpt2-m": _gpt(24, 1024, 16),
    "gpt2-l": _gpt(36, 1280, 20),
    "gpt3": _gpt(96, 12288, 96),
    "gpt2-m apart": _apart(24, 1024, 16),
    "gpt2-l apart": _apart(36, 1280, 20),
    "gpt3 apart": _apart(96, 12288, 96),
    "roberta-base": _roberta(12, 768, 12),
    "roberta-large": _roberta(24, 1024, 16),
    "deberta-xxl": DebertaV2Config(
        num_hidden_layers=48, hidden_size=1536, num_attention_heads=24, intermediate_size=6144
    ),
    "llama-7b": _llama(32, 4096, 32, 11008),
    "llama-13b": _llama(40, 5120, 40, 13824),
    "llama-33b": _llama(60, 6656, 52, 17920),
    "llama-65b": _llama(80, 8192, 64, 22016),
    "llama-3.1-8b": _llama(32, 4096, 32, 14336, 128256, 8),
}


def qv(r, names="q_proj,v_proj"):
    return inlay.Lora(r=r, target_modules=names)


def lin(size):
    """The adapters of Lin et al.: after the MLP, with a norm of their own."""
    return inlay.Bottleneck(placement="pfeiffer", bottleneck_size=size, layer_norm=True)


def houlsby(size):
    return inlay.Bottleneck(placement="houlsby", bottleneck_size=size)


BERT = "query,value"
ALL4 = "q_proj,k_proj,v_proj,out_proj"
COUNTS = [
    # LoRA (Hu et al. 2021), tables 2, 3, 4 and 15
    ("roberta-base", qv(8, BERT), 294_912),
    ("roberta-large", qv(8, BERT), 786_432),
    ("deberta-xxl", qv(16, "query_proj,value_proj"), 4_718_592),
    ("gpt2-m apart", qv(4), 393_216),
    ("gpt2-l apart", qv(4), 737_280),
    ("gpt3 apart", qv(1), 4_718_592),
    ("gpt3 apart", qv(2, "v_proj"), 4_718_592),
    ("gpt3 apart", qv(2), 9_437_184),
    ("gpt3 apart", qv(1, ALL4), 9_437_184),
    ("gpt3 apart", qv(4), 18_874_368),
    ("gpt3 apart", qv(2, ALL4), 18_874_368),
    ("gpt3 apart", qv(8), 37_748_736),
    ("gpt3 apart", qv(4, ALL4), 37_748_736),
    ("gpt3 apart", qv(64), 301_989_888),
    ("gpt3 apart", qv(64, ALL4), 603_979_776),
    ("gpt2-m", inlay.Full(), 354_823_168),
    ("gpt2-l", inlay.Full(), 774_030_080),
    ("gpt3", inlay.Full(), 174_604_259_328),
    ("gpt2-m", lin(6), 368_784),
    ("gpt2-m", lin(224), 11_089_152),
    ("gpt2-l", lin(8), 875_808),
    ("gpt2-l", lin(248), 23_002_848),
    ("gpt3", houlsby(1), 7_078_080),
    ("gpt3", houlsby(4), 21_234_432),
    ("gpt3", houlsby(8), 40_109_568),
    ("gpt3", houlsby(16), 77_859_840),
    ("gpt3", houlsby(64), 304_361_472),
    *[("gpt3", inlay.Prompt(num_virtual_tokens=n + 8), count) for n, count in
      [(32, 491_520), (64, 884_736), (128, 1_671_168), (256, 3_244_032), (512, 6_389_760)]],
    # AdapterFusion (Pfeiffer et al. 2020), as in LoRA's table 2
    ("roberta-large", inlay.Bottleneck(placement="pfeiffer", bottleneck_size=16), 811_392),
    # Prefix-Tuning (Li and Liang 2021)
    ("gpt2-m", inlay.Prefix(num_virtual_tokens=5), 245_760),
    # QLoRA (Dettmers et al. 2023): r = 64 on all linear layers
    ("llama-7b", inlay.Lora(r=64), 159_907_840),
    ("llama-13b", inlay.Lora(r=64), 250_347_520),
    ("llama-33b", inlay.Lora(r=64), 487_587_840),
    ("llama-65b", inlay.Lora(r=64), 799_539_200),
    ("llama-7b", inlay.Full(), 6_738_415_616),
    ("llama-65b", inlay.Full(), 65_285_660_672),
    ("llama-3.1-8b", inlay.Full(), 8_030_261_248),
    # LoRA Without Regret (Thinking Machines 2025): 0.49B, which counts the output head
    ("llama-3.1-8b", inlay.Lora(r=256, target_modules="gate_proj,up_proj,down_proj,lm_head"), 486_866_944),
    # VeRA (Kopiczko et al. 2023), tables 1 to 4
    ("roberta-base", inlay.Vera(r=1024, target_modules=BERT), 43_008),
    ("roberta-large", inlay.Vera(r=256, target_modules=BERT), 61_440),
    ("gpt2-m apart", inlay.Vera(r=1024, target_modules="q_proj,v_proj"), 98_304),
    ("gpt2-l apart", inlay.Vera(r=1024, target_modules="q_proj,v_proj"), 165_888),
    *[("roberta-base", inlay.Vera(r=r, target_modules=BERT), count) for r, count in [(1, 18_456), (16, 18_816), (256, 24_576)]],
    *[("roberta-base", qv(r, BERT), 36_864 * r) for r in (1, 16, 256)],
]  # fmt: skip


@pytest.fixture(scope="module")
def layouts():
    """The layouts of the geometries, made when they are asked for."""
    made = {}

    def of(name):
        if name not in made:
            config = GEOMETRIES[name]
            auto = AutoModelForMaskedLM if isinstance(config, RobertaConfig | DebertaV2Config) else AutoModelForCausalLM
            with torch.device("meta"):
                model = auto.from_config(config)
            made[name] = Layout(model, lambda: decoder_of(model, None))
            assert not made[name].unused  # one forward on the meta device, once for each model
        return made[name]

    return of


@pytest.mark.parametrize(("geometry", "method", "count"), COUNTS, ids=lambda value: str(value)[:40].replace(" ", "_"))
def test_the_published_number_of_weights(layouts, geometry, method, count):
    layout = layouts(geometry)
    start = time.process_time()
    assert layout.count(method) == count
    assert time.process_time() - start < 1  # some milliseconds: nothing is made


def test_prompt_tuning_of_t5_xxl():
    """20,480 weights for 5 tokens: The Power of Scale (Lester et al. 2021), whose T5-XXL is 4,096 wide."""
    from inlay.methods.contract import Decoder

    decoder = Decoder(24, 4096, 64, 64, lambda ids: ids, lambda text: [], 32128)
    assert 5 * inlay.Prompt(num_virtual_tokens=5).numbers(decoder) == 20_480


@pytest.mark.parametrize(("r", "count"), [(1, 2_383_968), (16, 2_755_584), (256, 8_700_000)])
def test_vera_s_rows_for_gpt_3_count_its_frozen_matrices(layouts, r, count):
    """The paper's 2.4M, 2.8M and 8.7M are the trained vectors and the shared A and B together, at q and v."""
    layout, method = layouts("gpt3 apart"), inlay.Vera(r=r, target_modules="q_proj,v_proj")
    both = layout.count(method) + 2 * 12288 * r
    assert both == 96 * 2 * (12288 + r) + 2 * 12288 * r
    assert abs(both - count) / count < 0.01


def test_the_command_says_how_many(tmp_path, capsys):
    from tests.support.command import run_json

    GEOMETRIES["gpt3"].save_pretrained(tmp_path)
    said = run_json(capsys, "plan", tmp_path, "--method", "bottleneck", "--bottleneck-size", 1)
    assert said["trainable_parameters"] == 7_078_080
