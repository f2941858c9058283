"""Files that AdapterHub's `adapters` wrote, and whether it reads what Inlay writes.

    python tests/interop/adapterhub_golden.py make          by `adapters`: every case below, into adapterhub/ beside this file
    python tests/interop/adapterhub_golden.py write DIR     by Inlay: reads each case, writes it again into DIR
    python tests/interop/adapterhub_golden.py check DIR     by `adapters`: reads DIR, compares the logits with the first ones

`adapters` 1.3.0 wants transformers 4.57, which Inlay does not run with: `make` and `check` need an environment of their own,
`pip install adapters==1.3.0` beside torch; `write` needs Inlay's. Models and tensors are drawn by name from numpy's legacy
generator, whose numbers do not change, so that no weight of a base is stored.
"""

import json
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parent / "adapterhub"
LOGITS = GOLDEN / "logits.safetensors"
NAME = "task"
VOCABULARY = 13

_ENCODER = dict(num_hidden_layers=2, num_attention_heads=2, hidden_size=8, intermediate_size=12)
_DECODER = _ENCODER | dict(num_key_value_heads=1)
_SPECIAL = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2)
MODELS = {
    "bert": ("MaskedLM", transformers.BertConfig(**_SPECIAL, **_ENCODER)),
    "roberta": ("MaskedLM", transformers.RobertaConfig(**_SPECIAL, **_ENCODER)),
    "xlm-roberta": ("MaskedLM", transformers.XLMRobertaConfig(**_SPECIAL, **_ENCODER)),
    "electra": ("MaskedLM", transformers.ElectraConfig(**_SPECIAL, **_ENCODER, embedding_size=8)),
    "distilbert": (
        "MaskedLM",
        transformers.DistilBertConfig(vocab_size=VOCABULARY, dim=8, n_layers=2, n_heads=2, hidden_dim=12),
    ),
    "gpt2": ("CausalLM", transformers.GPT2Config(**_SPECIAL, n_embd=8, n_layer=2, n_head=2)),
    "llama": ("CausalLM", transformers.LlamaConfig(**_SPECIAL, **_DECODER)),
    "mistral": ("CausalLM", transformers.MistralConfig(**_SPECIAL, **_DECODER)),
    "t5": (
        "Seq2SeqLM",
        transformers.T5Config(vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2),
    ),
}
"""model_type -> (what AutoModelFor..., configuration)."""

_HOULSBY = dict(mh_adapter=True, output_adapter=True)
_PFEIFFER = dict(mh_adapter=False, output_adapter=True)
CASES = {
    "bert-houlsby": _HOULSBY | dict(reduction_factor=3, non_linearity="swish"),
    "bert-pfeiffer": _PFEIFFER | dict(reduction_factor=2.5, non_linearity="gelu"),
    "roberta-houlsby": _HOULSBY | dict(reduction_factor=4, non_linearity="tanh", scaling=1.5),
    "xlm-roberta-pfeiffer": _PFEIFFER | dict(reduction_factor=2, non_linearity="relu"),
    "electra-houlsby": _HOULSBY | dict(reduction_factor=16, non_linearity="swish"),
    "distilbert-houlsby": _HOULSBY | dict(reduction_factor=3, non_linearity="relu"),
    "distilbert-parallel": _PFEIFFER
    | dict(reduction_factor=2, non_linearity="relu", is_parallel=True, scaling=4.0, init_weights="mam_adapter"),
    "gpt2-houlsby": _HOULSBY | dict(reduction_factor=3, non_linearity="gelu"),
    "llama-houlsby": _HOULSBY | dict(reduction_factor=3, non_linearity="swish", scaling=0.75),
    "mistral-pfeiffer": _PFEIFFER | dict(reduction_factor=3, non_linearity="tanh"),
    "t5-houlsby": _HOULSBY | dict(reduction_factor=3, non_linearity="relu", cross_adapter=True),
    "t5-pfeiffer": _PFEIFFER | dict(reduction_factor=2, non_linearity="swish"),
}
"""model_type and placement -> the configuration there."""


def model_type(case):
    """The kind of model of a case."""
    return case.rpartition("-")[0]


def drawn(name, shape):
    """The numbers of the tensor of that name."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(0.5 * values).float()


def model(kind):
    """The base of that model_type."""
    what, config = MODELS[kind]
    built = getattr(transformers, f"AutoModelFor{what}").from_config(config).eval()
    with torch.no_grad():
        named = dict(built.named_parameters(remove_duplicate=False))
        for name in sorted(named):  # of a weight with several names, the last of them
            named[name].copy_(drawn(name, named[name].shape))
    return built


@torch.no_grad()
def logits(built):
    """What a model says to two rows."""
    ids = torch.tensor([[4, 9, 3, 11, 5], [7, 12, 6, 8, 10]])
    more = {"decoder_input_ids": ids.flip(1)} if built.config.is_encoder_decoder else {}
    return built(input_ids=ids, **more).logits


def make():
    """Let `adapters` write every case."""
    import adapters

    said = {}
    for case, config in CASES.items():
        built = model(model_type(case))
        said[f"{model_type(case)}-base"] = logits(built)
        adapters.init(built)
        built.add_adapter(NAME, config=adapters.BnConfig(**config))
        with torch.no_grad():
            for name, parameter in built.named_parameters():
                if f".{NAME}." in name:
                    parameter.copy_(drawn(name, parameter.shape))
        built.set_active_adapters(NAME)
        said[case] = logits(built.eval())
        built.save_adapter(str(GOLDEN / case), NAME, with_head=False, use_safetensors=True)
    save_file(said, LOGITS)


def write(folder):
    """Let Inlay read every case and write it again."""
    from inlay.base.attach import attach

    for case in CASES:
        (folder / case).mkdir(parents=True)
        attach(model(model_type(case)), GOLDEN / case, NAME).save(NAME, folder / case, {}, form="adapterhub")


def check(folder):
    """Let `adapters` read what Inlay wrote, and compare."""
    import adapters

    wanted, largest = load_file(LOGITS), {}
    for case in CASES:
        built = model(model_type(case))
        adapters.init(built)
        about: dict = {}
        built.load_adapter(str(folder / case), set_active=True, use_safetensors=True, loading_info=about)
        assert not about["missing_keys"], about
        assert not about["unexpected_keys"], about
        largest[case] = (logits(built.eval()) - wanted[case]).abs().max().item()
    print(json.dumps(largest, indent=2))
    assert max(largest.values()) < 1e-5


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    mode, *folders = sys.argv[1:]
    {"make": make, "write": write, "check": check}[mode](*map(Path, folders))
