"""Counts of a config.json that no model of its files has: refused before anything of that size is made."""

import json
import time

import pytest
import transformers

from inlay.io import counts
from tests.support.refusals import generate, refused

COUNTS = {
    "layers": ({"num_hidden_layers": 100_000_000}, "num_hidden_layers=100,000,000: more than any model has"),
    "more layers than tensors": ({"num_hidden_layers": 1000}, "num_hidden_layers=1,000: the files hold "),
    "layers below zero": ({"num_hidden_layers": -1}, "num_hidden_layers=-1: below 0"),
    "vocabulary": ({"vocab_size": 10**12}, "vocab_size=1,000,000,000,000: more than any model has"),
    "a large vocabulary": ({"vocab_size": 10**7}, "vocab_size=10,000,000: the files hold "),
    "width": ({"hidden_size": 2**28}, "hidden_size=268,435,456: the files hold "),
    "inner width": ({"intermediate_size": 10**8}, "intermediate_size=100,000,000: the files hold "),
    "heads": ({"num_attention_heads": 10**9}, "num_attention_heads=1,000,000,000: the files hold "),
    "heads below zero": ({"num_attention_heads": -4}, "num_attention_heads=-4: below 0"),
    "labels": ({"num_labels": 10**9}, "num_labels=1,000,000,000: more than any model has"),
    "labels by name": (
        {"id2label": {str(i): str(i) for i in range(200_000)}},
        "id2label=200,000: more than any model has",
    ),
    "positions": ({"max_position_embeddings": 10**9}, "max_position_embeddings=1,000,000,000: the files hold "),
    "no positions": ({"max_position_embeddings": 0}, "max_position_embeddings=0: below 1"),
    "a part of it": ({"text_config": {"num_hidden_layers": 10**8}}, "num_hidden_layers=100,000,000: more than"),
    "as a fraction": ({"num_hidden_layers": 1e9}, "num_hidden_layers=1,000,000,000: more than"),
}


@pytest.mark.parametrize("what", COUNTS)
def test_counts_that_no_model_of_these_files_has_are_refused(place, capsys, what):
    values, words = COUNTS[what]
    path = place / "other" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    start = time.monotonic()
    refused(capsys, *generate(place, "good", model="other"), says=["what its model can't be", words])
    assert time.monotonic() - start < 20


def test_a_plan_needs_no_files_and_makes_no_hundred_million_layers(place, capsys):
    path = place / "other" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**8}))
    refused(capsys, "plan", place / "other", says=["more than any model has"])


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "bert", "albert", "t5", "mamba", "gemma3_text", "mixtral", "deberta-v2"]
)
def test_what_a_real_configuration_says_is_taken(tmp_path, kind):
    values = transformers.AutoConfig.for_model(kind).to_dict()
    counts.check(tmp_path, values, {})
