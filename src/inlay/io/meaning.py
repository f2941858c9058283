"""What a base computes beside its weights, as `inlay.json` keeps it under `computes`, and how that of another base differs.

    config      what of the configuration decides what the weights compute: see `inlay.io.configuration.decisive`
    tokenizer   SHA-256 over what the loaded tokenizer does: vocabulary, merges, normaliser, pre-tokenizer, decoder, added
                tokens
    tokens      which tokens have roles, and which of them stand around a text and a pair of texts
    with        the versions that read the files
    ends        the tokens that end an answer, which the generation settings may add to

`Fingerprint.tokenizer` is of the bytes of a file, and a tokenizer that is saved again does the same with other bytes: merges as
pairs, settings written out. What is digested here is what `transformers` made of the files. The post-processor is left out:
what it does is in `tokens`. Values are kept rather than digested where they are few, so that a refusal can name them, and a
later version whose classes know more values still reads what is here.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from inlay.fields import shown
from inlay.io import configuration

KEY = "computes"
"""What `inlay.json` calls it."""

ROLES = ("bos", "eos")
"""The roles of tokens that are compared by number; what others do is in the tokens around texts."""

SAMPLES = (
    "Hello, world!  It's 12,345.67 o'clock.\n\n\tTabs & spaces   end ",
    "ÀÉÎÕÜ naïve ﬁne Å Å ½ ② １２３ Straße İi ǅ",
    "日本語のテキスト 한국어 العربية हिन्दी Ελληνικά русский 👩‍👩‍👧 🙂",
    "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": x**2}  # <s> </s> <|endoftext|> [CLS]\r\n",
    "  leading, UPPER lower CamelCase snake_case https://example.org/?q=1#top",
)
"""Texts whose tokens are part of the digest: they tell where something outside the tokenizer's own parts is at work."""


class Kept(TypedDict, total=False):
    """The form of what is kept, where it is read again."""

    config: Mapping[str, Any]
    tokenizer: str | None
    tokens: Mapping[str, Any]
    ends: tuple[int, ...]


def computes(directory: Path, tokenizer: Any) -> dict[str, Any]:
    """What the base in `directory` computes beside its weights, with its loaded tokenizer."""
    return {
        "config": configuration.decisive(configuration.read(directory)),
        "tokenizer": _digest(tokenizer),
        "tokens": _tokens(tokenizer),
        "with": {name: importlib.metadata.version(name) for name in ("transformers", "tokenizers")},
    }


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], same_file: bool) -> list[str]:
    """What differs between what an adapter's base computed and what this one does, in words; nothing where both are the same.

    **Arguments:**

    - `theirs`, `ours`: as `computes` returns them; parts that are missing count as the same.
    - `same_file`: the files of the tokenizers are equal. Where they are, and other versions read them, what these made of them
      may differ.
    """
    same_versions = theirs.get("with") == ours["with"]
    found = _values(theirs.get("config", {}), ours["config"], same_versions)
    known = theirs.get("tokenizer")
    if known is not None and known != ours["tokenizer"] and not (same_file and not same_versions):
        found.append("the tokenizer makes other tokens of texts")
    return found + _values(theirs.get("tokens", {}), ours["tokens"], False)


def _values(theirs: Mapping[str, Any], ours: Mapping[str, Any], whole: bool, where: str = "") -> list[str]:
    """The values that differ; those that one of the two lacks too, where both are `whole`."""
    found = []
    for key in theirs:
        if key not in ours:
            if whole:
                found.append(f"{where}{key} was {shown(theirs[key])}, and is not there now")
        elif isinstance(theirs[key], Mapping) and isinstance(ours[key], Mapping):
            found += _values(theirs[key], ours[key], whole or "model_type" not in ours[key], f"{where}{key}.")
        elif theirs[key] != ours[key]:
            found.append(f"{where}{key} was {shown(theirs[key])}, and is {shown(ours[key])} now")
    extra = [key for key in ours if key not in theirs] if whole else []
    return found + [f"{where}{key} is {shown(ours[key])} now, and was not there" for key in extra]


def _tokens(tokenizer: Any) -> dict[str, Any]:
    """The tokens with roles, by number, and what stands around texts of one letter."""
    roles = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return {role: number for role, number in roles.items() if number is not None} | {
        "around a text": _around(tokenizer, "a"),
        "around a pair": _around(tokenizer, "a", "a"),
    }


def _around(tokenizer: Any, *texts: str) -> list[int] | None:
    """The tokens of one text or a pair with the special ones; None where the tokenizer takes no pairs."""
    try:
        return list(tokenizer(*texts)["input_ids"])
    except Exception:  # tokenizers of old kinds, in words of their own
        return None


def _digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: Any = sorted(tokenizer.get_vocab().items()) if backend is None else _plain(json.loads(backend.to_str()))
    is_random = backend is not None and parts["model"].get("dropout")  # then the same text has other tokens each time
    ids = [] if is_random else [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SAMPLES]
    return hashlib.sha256(json.dumps([parts, ids], sort_keys=True).encode()).hexdigest()


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """The parts of a tokenizer's JSON that decide about tokens and texts, in one form."""
    model = dict(content.get("model") or {})
    if isinstance(model.get("merges"), list):
        model["merges"] = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    added = sorted(content.get("added_tokens") or [], key=lambda token: token["id"])
    kept = {part: content.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")}
    return _pruned({"model": model, "added_tokens": added, **kept})


def _pruned(value: Any) -> Any:
    """Without members that are null, and without what only the places of tokens in a text depend on."""
    if isinstance(value, dict):
        return {key: _pruned(item) for key, item in value.items() if item is not None and key != "trim_offsets"}
    return (
        [_pruned(item) for item in value] if isinstance(value, list) and value and isinstance(value[0], dict) else value
    )
