"""Tokenizers of GGUF files: one by scores does what llama.cpp does; those that contradict themselves are refused."""

import pytest
from tokenizers import Tokenizer

from inlay.errors import CompatibilityError, FormatError
from inlay.gguf.tokenizer import files

PIECES = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab"]
SCORES = [-1.0, -2.0, -3.0, -4.0, -6.0, -5.0, -8.0, -7.0]


def by_scores(**more):
    """The metadata of a small tokenizer of Llama 2's kind."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    own = {
        "model": "llama",
        "tokens": tokens,
        "scores": [0.0] * 259 + SCORES,
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    } | more
    return {f"tokenizer.ggml.{key}": value for key, value in own.items() if value is not None}


def encoded(metadata, text):
    return Tokenizer.from_str(files(metadata)["tokenizer.json"]).encode(text).tokens


def test_the_best_score_is_joined_first():
    assert encoded(by_scores(), "abc") == ["<s>", "▁a", "bc"]  # bc before ab, then ▁a
    assert encoded(by_scores(), "ab ab") == ["<s>", "▁ab", "▁ab"]
    assert encoded(by_scores(add_space_prefix=False, add_bos_token=False), "ab") == ["ab"]
    assert encoded(by_scores(), "é</s>") == ["<s>", "▁", "<0xC3>", "<0xA9>", "</s>"]


def test_texts_come_back():
    tokenizer = Tokenizer.from_str(files(by_scores())["tokenizer.json"])
    for text in ("abc ab", "é日\n", "a  b"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"tokens": None}, FormatError, "has no tokenizer"),
        ({"tokens": [1, 2]}, FormatError, "has no tokenizer"),
        ({"tokens": ["a", "a"], "scores": [0.0, 0.0], "token_type": [1, 1]}, FormatError, "there twice"),
        ({"tokens": ["a" * 5000], "token_type": [1]}, FormatError, "5,000 characters"),
        ({"token_type": [1, 2]}, FormatError, "2 types"),
        ({"scores": [0.0]}, FormatError, "no score"),
        ({"bos_token_id": 2**40}, FormatError, "bos_token_id"),
        ({"eos_token_id": -1}, FormatError, "eos_token_id"),
        ({"unknown_token_id": "x"}, FormatError, "unknown_token_id"),
        ({"model": "bert"}, CompatibilityError, "'bert'"),
        ({"model": "gpt2", "merges": ["a b c"], "pre": "gpt-2"}, FormatError, "no merges"),
        ({"model": "gpt2", "merges": ["a b"], "pre": "default"}, CompatibilityError, "'default'"),
    ],
)
def test_what_contradicts_itself_is_refused(more, error, words):
    with pytest.raises(error, match=words):
        files(by_scores(**more))
