"""What a base computes beside its weights: every value that moves a logit belongs to it, and as few others as can be."""

import copy
import json

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as token_models

from inlay.io import configuration, meaning
from tests.support import bases, models

SIZES = models._SIZES
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS = {
    **{family: models.CONFIGS[family] for family in ("llama", "gemma3", "mistral", "gpt2", "qwen3_moe")},
    "qwen2": transformers.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "cohere": transformers.CohereConfig(**SIZES, logit_scale=0.3),
    "gemma2": transformers.Gemma2Config(**SIZES, head_dim=4),
    "granite": transformers.GraniteConfig(**SIZES),
    "yarn": transformers.LlamaConfig(
        **SIZES, rope_scaling=dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=16)
    ),
    "llama3": transformers.LlamaConfig(**SIZES, rope_scaling=SCALED | {"original_max_position_embeddings": 16}),
}
"""Small configurations whose forward passes ask for many different values."""

MAY_DIFFER = {
    "eos_token_id", "is_encoder_decoder", "tie_word_embeddings", "attn_logit_softcapping", "sliding_window",
    "reorder_and_upcast_attn", "use_bidirectional_attention",
}  # fmt: skip
"""Values that count though a short row of tokens does not show it: roles, ties, longer rows, other ways to attend."""


def others(key, value):
    """Other values for `key`."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2, max(value // 2, 1)]
    if isinstance(value, float):
        return [value * 3 + 0.01]
    if isinstance(value, str):
        return ["relu", "gelu_new", "gelu", "silu"] if "act" in key else []
    if isinstance(value, dict) and "rope_theta" in value:
        return [value | {"rope_theta": 7.0}, value | {"rope_type": "linear", "factor": 4.0}]
    return [2, True, 0.7] if value is None else []


def variants(config):
    """(key, configuration with another value there), of every key that the file would have."""
    written = config.to_dict()
    for key in sorted(written.keys() - {"model_type", "vocab_size", "hidden_size", "dtype", "id2label", "label2id"}):
        for value in others(key, written[key]):
            try:
                yield key, type(config).from_dict(written | {key: value})
            except Exception:  # a value that the class does not take
                continue


@torch.no_grad()
def logits(config, weights, ids):
    """Of a model with this configuration and these weights; None where they do not fit it, or it can't be made."""
    try:
        built = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
        if {n: t.shape for n, t in built.state_dict().items()} != {n: t.shape for n, t in weights.items()}:
            return None
        built.load_state_dict(weights)
        return built(input_ids=ids).logits
    except Exception:
        return None


SLOW = {"gemma2", "qwen3_moe", "cohere", "granite", "llama3"}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CONFIGS]
)
@pytest.mark.filterwarnings("ignore")
def test_what_moves_a_logit_counts_and_little_else(family):
    torch.manual_seed(5)
    config = copy.deepcopy(CONFIGS[family])
    built = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for tensor in built.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.4 + (1.0 if tensor.dim() == 1 else 0.0))
    ids, weights = torch.randint(3, models.VOCABULARY, (2, 40)), built.state_dict()
    wanted, own = logits(config, weights, ids), configuration.decisive(config)
    missed, counted, tried = set(), set(), set()
    for key, variant in variants(config):
        found = logits(variant, weights, ids)
        if found is not None:
            tried.add(key)
            moves, counts = not torch.allclose(found, wanted, atol=1e-5), configuration.decisive(variant) != own
            missed |= {key} if moves and not counts else set()
            counted |= {key} if counts and not moves else set()
    assert missed == set()
    assert counted <= MAY_DIFFER, counted
    assert len(tried) > 9


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rope_theta": 500000.0}, {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}),
        ({"rope_theta": 10000.0}, {}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4}},
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1.0}}, {"rope_scaling": None}),
        ({"num_key_value_heads": None}, {"num_key_value_heads": 5}),
        ({"head_dim": None}, {"head_dim": 4}),
        ({"hidden_act": "silu"}, {"hidden_act": "swish"}),
        ({"eos_token_id": 2}, {"eos_token_id": [2]}),
        ({"torch_dtype": "bfloat16"}, {"dtype": "float32", "transformers_version": "4.1.0", "use_cache": False}),
        ({"pad_token_id": 0}, {"pad_token_id": 7}),
        ({"max_position_embeddings": 64}, {"max_position_embeddings": 128}),
        ({"attention_dropout": 0.0}, {"attention_dropout": 0.5, "initializer_range": 0.5, "_name_or_path": "x"}),
        ({"a_word_of_somebody": 1}, {"_attn_implementation": "eager", "unsloth_fixed": True}),
    ],
)
def test_what_is_the_same_is_written_in_one_form(tmp_path, one, other):
    written = models.CONFIGS["llama"].to_dict()
    for key in {*one, *other} | ({"rope_parameters"} if {"rope_theta", "rope_scaling"} & {*one, *other} else set()):
        written.pop(key, None)
    found = []
    for values in (one, other):
        (tmp_path / "config.json").write_text(json.dumps(written | values))
        found.append(configuration.decisive(configuration.read(tmp_path)))
    assert found[0] == found[1]
    assert found[0] == json.loads(json.dumps(found[0]))


def test_a_value_that_only_the_code_asks_for_counts():
    one, other = (transformers.Qwen2Config(**SIZES, **more) for more in ({"head_dim": 4}, {"head_dim": 8}))
    assert configuration.decisive(one) != configuration.decisive(other)
    assert configuration.decisive(one) == configuration.decisive(transformers.Qwen2Config(**SIZES, head_dim=4, mine=3))


def test_which_token_fills_up_rows_counts_where_positions_start_from_it():
    one, other = (transformers.RobertaConfig(pad_token_id=number) for number in (1, 0))
    assert configuration.decisive(one) != configuration.decisive(other)


def built(**changes):
    """A tokenizer with a normaliser and merges, changed at some places."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789,.!Ġ "
    names = ["<pad>", "<s>", "</s>", "<unk>", *characters, "th", "the", "in"]
    merges = changes.get("merges", [("t", "h"), ("th", "e"), ("i", "n")])
    vocabulary = {text: number for number, text in enumerate(dict.fromkeys(changes.get("names", names)))}
    made = Tokenizer(
        token_models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", dropout=changes.get("dropout"))
    )
    made.normalizer = changes.get("normalizer", normalizers.NFC())
    made.pre_tokenizer = changes.get("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.decoder = changes.get("decoder", decoders.ByteLevel())
    if "post_processor" in changes:
        made.post_processor = changes["post_processor"]
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"} | changes.get(
        "special", {}
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special, **changes.get("settings", {}))
    tokenizer.add_tokens(changes.get("added", []))
    return tokenizer


def computed(tokenizer):
    return {"config": {}, "tokenizer": meaning._digest(tokenizer), "tokens": meaning._tokens(tokenizer), "with": {}}


WITH_BOS = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
REVERSED = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *reversed("abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789,.!Ġ "),
    "th",
    "the",
    "in",
]


@pytest.mark.parametrize(
    "changes",
    [
        {"merges": [("t", "h"), ("th", "e")]},
        {"names": REVERSED},
        {"normalizer": normalizers.NFKC()},
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.Replace("quite rare", "x")},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])},
        {"decoder": decoders.Fuse()},
        {"added": [AddedToken("<tool>")]},
        {"added": [AddedToken("the", lstrip=True)]},
        {"special": {"eos_token": "<s>"}},
        {"special": {"bos_token": "</s>"}},
        {"post_processor": WITH_BOS},
        {"dropout": 0.3},
    ],
    ids=lambda changes: f"{next(iter(changes))}-{str(next(iter(changes.values())))[:20]}",
)
def test_another_tokenizer_is_another(changes):
    assert meaning.differences(computed(built()), computed(built(**changes)), same_file=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"special": {"sep_token": "</s>"}},
        {"settings": {"padding_side": "left", "model_max_length": 5, "truncation_side": "left"}},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_does_the_same_is_the_same(changes):
    assert meaning.differences(computed(built()), computed(built(**changes)), same_file=False) == []


def test_which_token_fills_up_rows_is_no_part_of_it():
    other = built()
    other.pad_token = "</s>"
    assert meaning.differences(computed(built()), computed(other), same_file=False) == []


def test_a_tokenizer_that_is_saved_again_is_the_same(tmp_path):
    bases.tokenizer().save_pretrained(tmp_path / "one")
    built().save_pretrained(tmp_path / "one")
    content = json.loads((tmp_path / "one" / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content |= {"truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}}
    (tmp_path / "one" / "tokenizer.json").write_text(json.dumps(content))
    one = transformers.AutoTokenizer.from_pretrained(tmp_path / "one")
    one.save_pretrained(tmp_path / "other")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "other")
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() != (tmp_path / "other" / "tokenizer.json").read_bytes()
    assert meaning.differences(computed(one), computed(other), same_file=False) == []


def test_merges_as_text_and_as_pairs_are_the_same():
    content = {
        "model": {"merges": ["a b", "ab c"], "vocab": {"a": 0}, "dropout": None},
        "added_tokens": [],
        "version": "1.0",
    }
    pairs = content | {"model": content["model"] | {"merges": [["a", "b"], ["ab", "c"]]}, "version": "2.0"}
    assert meaning._plain(content) == meaning._plain(pairs)


def test_other_versions_may_read_the_same_file_as_something_else():
    one, other = computed(built()), computed(built(normalizer=normalizers.NFKC()))
    newer = other | {"with": {"transformers": "99.0"}}
    assert meaning.differences(one, newer, same_file=True) == []
    assert meaning.differences(one, newer, same_file=False)
    assert meaning.differences(one, other, same_file=True)


def test_values_that_one_version_does_not_know_are_passed_over_between_versions():
    ours = {"config": {"a": 1, "sub": {"model_type": "x", "b": 2}}, "tokenizer": "0", "tokens": {}, "with": {"v": "2"}}
    theirs = {"config": {"a": 1, "old": 5, "sub": {"model_type": "x"}}, "with": {"v": "1"}}
    assert meaning.differences(theirs, ours, same_file=True) == []
    assert len(meaning.differences(theirs | {"with": {"v": "2"}}, ours, same_file=True)) == 2
    changed = theirs | {"config": {"sub": {"model_type": "x", "b": 3}}}
    assert meaning.differences(changed, ours, same_file=True) == ["sub.b was 3, and is 2 now"]


def test_a_rotation_is_compared_whole_whatever_the_version():
    ours = {"config": {"rope_parameters": {"rope_theta": 1e4}}, "tokenizer": "0", "tokens": {}, "with": {"v": "2"}}
    theirs = {"config": {"rope_parameters": {"rope_theta": 1e4, "factor": 8.0}}, "with": {"v": "1"}}
    assert meaning.differences(theirs, ours, same_file=True) == ["rope_parameters.factor was 8.0, and is not there now"]
