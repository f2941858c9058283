"""The tokenizer of a GGUF file as the tokenizer.json, tokenizer_config.json and chat_template.jinja that `transformers` reads.

    model gpt2    byte-level BPE: tokens and merges are there, and `tokenizer.ggml.pre` names what cuts texts first
    model llama   BPE over characters by scores, with bytes for what has no token, and a space in front of texts

An expression that is not known is refused by name: texts would become other tokens than in training. `transformers` reads these
files too, and cuts every text as GPT-2 does, whatever `pre` says: SmolLM2's digits, which stand alone, come together.
"""

import json
from collections.abc import Mapping
from typing import Any

from inlay.errors import CompatibilityError, FormatError, explain
from inlay.fields import shown

MAX_TOKEN_CHARACTERS = 4096
"""The longest token: spaces and rules of some have hundreds."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""The types of tokens."""

_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = _GPT2 | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _cut(digits: str) -> list[dict[str, Any]]:
    """The expression of GPT-4 and those that follow it, with this many digits together."""
    expression = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return [split, _BYTES]


CUTS = {
    "gpt-2": [_GPT2],
    "smollm": [_DIGITS, _GPT2],
    "llama-bpe": _cut(r"\p{N}{1,3}"),
    "qwen2": _cut(r"\p{N}"),
}
"""How texts are cut before they become tokens, by `tokenizer.ggml.pre`."""

_WHOLE_TOKENS = frozenset(["llama-bpe"])
"""Those whose pieces are tokens as they are, where there is such a token, whatever the merges say; they begin with `bos`."""

_COMPOSED = frozenset(["qwen2"])
"""Those that compose letters and accents first."""

_START = "tokenizer.ggml."
_ROLES = ("bos", "eos", "unknown", "padding")
_TRANSFORMERS_ROLES = {"unknown": "unk", "padding": "pad"}


def files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The files of the tokenizer: name -> content.

    **Raises:**

    - `FormatError`: parts are missing, or contradict each other.
    - `CompatibilityError`: the tokenizer is of a kind that is not known here.
    """
    own = {key.removeprefix(_START): value for key, value in metadata.items() if key.startswith(_START)}
    _check(own)
    kind = own.get("model")
    if kind == "gpt2":
        made = _byte_level(own)
    elif kind == "llama":
        made = _by_scores(own)
    else:
        raise _unknown("tokenizer.ggml.model", kind, ("gpt2", "llama"))
    tokens, types = own["tokens"], own.get("token_type", [])
    added = [number for number, type in enumerate(types) if type in (_CONTROL, _USER_DEFINED)]
    made |= {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, tokens[number], types[number] == _CONTROL) for number in added],
        "post_processor": _around(own, kind == "llama" or own.get("pre") in _WHOLE_TOKENS),
    }
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    roles = {role: own.get(f"{role}_token_id") for role in _ROLES}
    settings |= {
        f"{_TRANSFORMERS_ROLES.get(role, role)}_token": tokens[n] for role, n in roles.items() if n is not None
    }
    found = {"tokenizer.json": json.dumps(made, ensure_ascii=False), "tokenizer_config.json": json.dumps(settings)}
    template = metadata.get("tokenizer.chat_template")
    return found if template is None else found | {"chat_template.jinja": template}


def _check(own: Mapping[str, Any]) -> None:
    """Refuse parts that are missing, or that do not fit each other."""
    tokens, types = own.get("tokens"), own.get("token_type", [])
    problems = []
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise FormatError(explain("this file has no tokenizer", found="no array of texts tokenizer.ggml.tokens"))
    if len(set(tokens)) < len(tokens):
        problems.append("a token is there twice")
    if (longest := max(map(len, tokens))) > MAX_TOKEN_CHARACTERS:
        problems.append(f"a token has {longest:,} characters, at most {MAX_TOKEN_CHARACTERS:,} are read")
    if types and (len(types) != len(tokens) or not all(type(kind) is int for kind in types)):
        problems.append(f"{len(tokens):,} tokens, {len(types):,} types")
    for role in _ROLES:
        number = own.get(f"{role}_token_id")
        if number is not None and (type(number) is not int or not 0 <= number < len(tokens)):
            problems.append(f"{role}_token_id is {shown(number)}")
    if problems:
        raise FormatError(explain("this file's tokenizer contradicts itself", found=problems, do="fetch it again"))


def _byte_level(own: Mapping[str, Any]) -> dict[str, Any]:
    tokens, merges, cut = own["tokens"], own.get("merges"), own.get("pre")
    if not isinstance(merges, list) or not all(isinstance(pair, str) and pair.count(" ") == 1 for pair in merges):
        raise FormatError(explain("this file's tokenizer has no merges", found="tokenizer.ggml.merges: no pairs"))
    if not isinstance(cut, str) or cut not in CUTS:
        raise _unknown("tokenizer.ggml.pre", cut, CUTS)
    parts = CUTS[cut]
    return {
        "normalizer": {"type": "NFC"} if cut in _COMPOSED else None,
        "pre_tokenizer": parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts},
        "decoder": _GPT2,
        "model": _bpe(tokens, [pair.split(" ") for pair in merges], ignore_merges=cut in _WHOLE_TOKENS),
    }


def _by_scores(own: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer that joins the two neighbours whose union has the best score, as pairs in that order."""
    tokens, scores = own["tokens"], own.get("scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise FormatError(explain("this file's tokenizer has no score for each token", found="tokenizer.ggml.scores"))
    types = own.get("token_type") or [_NORMAL] * len(tokens)
    number = {token: i for i, token in enumerate(tokens)}
    pairs: list[tuple[float, int, int, str, str]] = []
    for token, score, kind in zip(tokens, scores, types, strict=True):
        cuts = range(1, len(token)) if kind == _NORMAL else ()
        halves = ((token[:cut], token[cut:]) for cut in cuts)
        pairs += [(-score, number[a], number[b], a, b) for a, b in halves if a in number and b in number]
    unknown = own.get("unknown_token_id", 0)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    front = own.get("add_space_prefix", True)
    first = [{"type": "Prepend", "prepend": "▁"}] if front else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, space]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": back + ([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if front else []),
        },
        "model": _bpe(tokens, [[a, b] for *_, a, b in sorted(pairs)], byte_fallback=True, unk_token=tokens[unknown])
        | {"fuse_unk": True},
    }


def _bpe(tokens: list[str], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    settings = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    settings |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    vocab = {token: number for number, token in enumerate(tokens)}
    return {"type": "BPE", **settings, **more, "vocab": vocab, "merges": merges}


def _added(number: int, token: str, is_special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **plain, "special": is_special}


def _around(own: Mapping[str, Any], begins: bool) -> dict[str, Any]:
    """The tokens that stand before and after a text, where the file says so; `begins`: what it means by saying nothing."""
    tokens = own["tokens"]
    wanted = {"bos": own.get("add_bos_token", begins), "eos": own.get("add_eos_token", False)}
    numbers = {role: own.get(f"{role}_token_id") for role, is_wanted in wanted.items() if is_wanted}
    ids = {role: number for role, number in numbers.items() if number is not None}

    def piece(role: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokens[ids[role]], "type_id": kind}}] if role in ids else []

    def text(name: str, kind: int) -> list[dict[str, Any]]:
        return [*piece("bos", kind), {"Sequence": {"id": name, "type_id": kind}}, *piece("eos", kind)]

    special = {tokens[n]: {"id": tokens[n], "ids": [n], "tokens": [tokens[n]]} for n in ids.values()}
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": special,
    }


def _unknown(key: str, value: Any, known: Any) -> CompatibilityError:
    found, do = f"{key} is {shown(value)}", f"one of {', '.join(known)}; or the model in another form"
    return CompatibilityError(explain("tokenizers of this kind are not known here", found=found, do=do))
