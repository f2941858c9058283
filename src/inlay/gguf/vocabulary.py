"""The tokenizer of a model directory as a GGUF file says it, shown to be the same before anything is written.

    tokens, token_type, merges or scores        from tokenizer.json
    model, pre                                  of those that `inlay.gguf.tokenizer` reads, the one that makes the same tokens
    bos_token_id ..., add_bos_token             from tokenizer_config.json, and from what is put in front of a text

A file of GGUF names a way of cutting texts and does not hold it. So the values are read back as a tokenizer, and both cut
`SAMPLES`; where no known way makes the same tokens, the model is refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from inlay.errors import CompatibilityError, FormatError, explain
from inlay.gguf import tokenizer
from inlay.io import json_files

SAMPLES = (
    "Hello world, it's 12345 o'clock!  Two spaces, 3.14 and\n\n\ttabs; x1 = y_2 + 'z'\r\n",
    "WE'RE здесь, 你好世界 今天, cafe\u0301 na\u00efve, \U0001f600\U0001f44d\U0001f3fd  \u00bd \u0661\u0662\u0663",
    " leading and trailing ",
    "def f(a, b):\n    return a**2 if b else None  # 1_000_000\n",
    "https://example.org/a-b?c=1&d=%20 ... !!! ??? \u2014 \u201cquoted\u201d don't I'LL",
)
"""Texts in which ways of cutting differ: digits, apostrophes, runs of spaces and lines, other scripts, accents apart."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""What a file calls the tokens with a role, and what tokenizer_config.json does."""


def values(directory: Path, size: int) -> dict[str, Any]:
    """The values `tokenizer.*` of a file with `size` tokens: rows of the embedding without one are called [PAD].

    **Raises:**

    - `CompatibilityError`: there is no tokenizer.json, or one that no known way of cutting makes.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        wrong = "this model's tokenizer can't be written into a GGUF file"
        raise CompatibilityError(
            explain(wrong, found=f"{directory} has no tokenizer.json", do="save it as a fast tokenizer")
        )
    content = json_files.read_json(path, json_files.MAX_TOKENIZER_BYTES)
    settings_path = directory / "tokenizer_config.json"
    settings = json_files.read_json(settings_path) if settings_path.is_file() else {}
    theirs = Tokenizer.from_file(str(path))
    wanted = [theirs.encode(text).ids for text in SAMPLES]
    own = _tokens(content, size) | _roles(settings, theirs)
    for way in _ways(content, own):
        found = {f"tokenizer.ggml.{key}": value for key, value in (own | way).items()}
        if _encoded(found) == wanted:
            return found | _template(directory, settings)
    wrong = "GGUF files have no way of cutting texts that makes this tokenizer's tokens"
    known = f"model {content['model'].get('type')}; known are {', '.join(tokenizer.CUTS)}, and BPE by scores"
    raise CompatibilityError(explain(wrong, found=f"{path}: {known}", do="inlay merge without --gguf"))


def _tokens(content: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Texts and types of all tokens."""
    model = content["model"]
    by_number = (
        {number: token for token, number in model.get("vocab", {}).items()} if model.get("type") == "BPE" else {}
    )
    types = dict.fromkeys(by_number, _NORMAL)
    if model.get("byte_fallback"):
        types |= {n: _BYTE for n, token in by_number.items() if len(token) == 6 and token.startswith("<0x")}
        types |= {n: _UNKNOWN for n, token in by_number.items() if token == model.get("unk_token")}
    for added in content.get("added_tokens", ()):
        by_number[added["id"]] = added["content"]
        if types.get(added["id"]) != _UNKNOWN:
            types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    if not by_number or max(by_number) >= size:
        found = f"{len(by_number):,} tokens of a {model.get('type')} model, {size:,} rows of the embedding"
        raise CompatibilityError(
            explain("this tokenizer does not go with the embedding", found=found, do="inlay merge without --gguf")
        )
    return {
        "tokens": [by_number.get(number, f"[PAD{number}]") for number in range(size)],
        "token_type": [types.get(number, _UNUSED) for number in range(size)],
    }


def _roles(settings: Mapping[str, Any], theirs: Tokenizer) -> dict[str, Any]:
    """The tokens with a role by number, and which of them stand before and after a text."""
    found: dict[str, Any] = {}
    for role, name in _ROLES.items():
        token = settings.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = theirs.token_to_id(token) if isinstance(token, str) else None
        found |= {} if number is None else {f"{role}_token_id": number}
    plain, whole = theirs.encode("a", add_special_tokens=False).ids, theirs.encode("a").ids
    more = whole[: len(whole) - len(plain)] if whole[-len(plain) :] == plain else whole[:1]
    return found | {"add_bos_token": bool(more), "add_eos_token": whole[-1:] != plain[-1:]}


def _ways(content: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the file may say of merges and cuts."""
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in content["model"].get("merges", ())]
    if content["model"].get("byte_fallback"):
        ranks: dict[str, int] = {}
        for rank, (one, other) in enumerate(merges):
            ranks.setdefault(one + other, rank)
        scores = [-float(ranks.get(token, len(ranks))) for token in own["tokens"]]
        yield from ({"model": "llama", "scores": scores, "add_space_prefix": front} for front in (True, False))
    else:
        joined = [" ".join(pair) for pair in merges]
        yield from ({"model": "gpt2", "pre": name, "merges": joined} for name in tokenizer.CUTS)


def _encoded(found: Mapping[str, Any]) -> list[list[int]] | None:
    """The samples as what reads such a file cuts them."""
    try:
        made = Tokenizer.from_str(tokenizer.files(found)["tokenizer.json"])
    except (FormatError, CompatibilityError):
        return None
    return [made.encode(text).ids for text in SAMPLES]


def _template(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template."""
    path = directory / "chat_template.jinja"
    text = json_files.read_bytes(path).decode("utf-8") if path.is_file() else settings.get("chat_template")
    return {"tokenizer.chat_template": text} if isinstance(text, str) else {}
