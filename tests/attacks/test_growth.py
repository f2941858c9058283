"""Tokenizers of downloads: steps that multiply are refused, those of real ones are not; a panic is an error in words."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from inlay.errors import FormatError
from inlay.text import growth
from tests.support.refusals import generate, refused

DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
EXPLODE = {
    "normalizer": {"type": "Sequence", "normalizers": [DOUBLING] * 30},
    "decoder": {"type": "Sequence", "decoders": [DOUBLING] * 30},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}] * 30},
    "one step": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 100_000},
}  # fmt: skip


@pytest.mark.parametrize("part", EXPLODE)
def test_a_tokenizer_that_explodes_is_refused(place, capsys, part):
    path = place / "base" / "tokenizer.json"
    name = "normalizer" if part == "one step" else part
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: EXPLODE[part]}))
    refused(capsys, *generate(place, "good"), says=[f"the {name} of this tokenizer makes a text many times as long"])


def wrapped(**parts):
    built = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    for name, part in parts.items():
        setattr(built, name, part)
    return type("Fast", (), {"backend_tokenizer": built})()


def test_too_many_special_tokens_around_a_row_are_refused():
    made = processors.TemplateProcessing(single=["$A", *["b"] * 2000], special_tokens=[("b", 1)])
    with pytest.raises(FormatError, match="tokens around a row"):
        growth.check(wrapped(post_processor=made), "here")


def test_what_real_tokenizers_do_is_taken():
    growth.check(
        wrapped(
            normalizer=normalizers.Sequence(
                [normalizers.NFKC(), normalizers.Replace(" ", "▁"), normalizers.Prepend("▁")]
            )
        ),
        "",
    )
    growth.check(
        wrapped(
            normalizer=normalizers.Sequence(
                [normalizers.Replace("``", '"'), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Lowercase()]
            )
        ),
        "",
    )
    growth.check(
        wrapped(
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()]),
            decoder=decoders.ByteLevel(),
        ),
        "",
    )
    growth.check(wrapped(post_processor=processors.BertProcessing(("a", 0), ("b", 1))), "")
    growth.check(object(), "")


class PanicException(BaseException):
    """As the library in Rust raises it."""


def test_a_tokenizer_that_panics_is_refused(place, capsys, monkeypatch):
    def panic(*tokenizer):
        raise PanicException("index out of bounds")

    monkeypatch.setattr(growth, "check", panic)
    refused(capsys, *generate(place, "good"), says=["no tokenizer that transformers can read", "index out of bounds"])


@pytest.mark.parametrize("value", [[512], {"a": 1}, "many"], ids=repr)
def test_a_length_that_is_none_is_refused(place, capsys, value):
    path = place / "base" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": value}))
    refused(capsys, *generate(place, "good"), says=["no tokenizer that transformers can read"])


@pytest.mark.parametrize(
    "values", [{"architectures": 5}, {"architectures": [5]}, {"id2label": 3}, {"model_type": [1]}], ids=repr
)
def test_a_configuration_of_other_kinds_is_refused(place, capsys, values):
    path = place / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    refused(capsys, *generate(place, "good"), says=["values of another kind", f"{next(iter(values))}="])
